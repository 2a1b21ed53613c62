"""Chapter 10: answers that people write before they know better, and what the check should say of each."""

from __future__ import annotations

import itertools
import math
import re
import string
from collections import Counter

import torch

from nanovlm.evaluation.answers import normalise_answer

# -- evaluation.normalise_answer ---------------------------------------------------------------------------------------


def only_lower_and_strip(text):
    return " ".join(word for word in text.lower().strip().split() if word not in ("a", "an", "the"))


def with_string_punctuation(text):
    """The popular one-liner: SQuAD's."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def articles_by_replace(text):
    digits = {w: str(n) for n, w in enumerate("zero one two three four five six seven eight nine ten".split())}  # noqa: SIM905
    digits["none"] = "0"
    text = re.sub(r"(\d),(\d)", r"\1\2", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    for article in ("the", "an", "a"):
        text = text.replace(article, "")
    return " ".join(digits.get(w, w) for w in re.sub(r"[^\w\s.']|_", " ", text).split())


def _rest(text, digits=True, none=True):
    names = "zero one two three four five six seven eight nine ten".split()  # noqa: SIM905
    table = {w: str(n) for n, w in enumerate(names)} if digits else {}
    if none:
        table["none"] = "0"
    return " ".join(table.get(w, w) for w in text.split() if w not in {"a", "an", "the"})


def no_number_words(text):
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    return _rest(re.sub(r"[^\w\s.']|_", " ", text), digits=False, none=False)


def none_forgotten(text):
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    return _rest(re.sub(r"[^\w\s.']|_", " ", text), none=False)


def commas_as_spaces(text):
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text.lower())
    return _rest(re.sub(r"[^\w\s.']|_", " ", text))


def all_points_as_spaces(text):
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    return _rest(re.sub(r"[^\w\s']|_", " ", text))


# -- evaluation.vqa_accuracy -------------------------------------------------------------------------------------------


def _same(answer, humans):
    return sum(normalise_answer(h) == normalise_answer(answer) for h in humans)


def popular_short_form(answer, human_answers):
    return min(1.0, _same(answer, human_answers) / 3)


def share_of_people(answer, human_answers):
    return _same(answer, human_answers) / len(human_answers)


def raw_texts(answer, human_answers):
    total = 0.0
    for i in range(len(human_answers)):
        others = human_answers[:i] + human_answers[i + 1 :]
        total += min(1.0, sum(o == answer for o in others) / 3)
    return total / len(human_answers)


def always_ten(answer, human_answers):
    total = 0.0
    for i in range(len(human_answers)):
        total += min(1.0, _same(answer, human_answers[:i] + human_answers[i + 1 :]) / 3)
    return total / 10


def no_cap(answer, human_answers):
    total = 0.0
    for i in range(len(human_answers)):
        total += _same(answer, human_answers[:i] + human_answers[i + 1 :]) / 3
    return total / len(human_answers)


def anybody(answer, human_answers):
    return 1.0 if _same(answer, human_answers) else 0.0


# -- evaluation.wilson -------------------------------------------------------------------------------------------------


def wald(correct, total, z=1.96):
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    e = z * (p * (1 - p) / total) ** 0.5
    return p - e, p + e


def wald_clipped(correct, total, z=1.96):
    low, high = wald(correct, total, z)
    return max(0.0, low), min(1.0, high)


def z_written_in(correct, total, z=1.96):
    return _wilson(correct, total, 1.96)


def _wilson(correct, total, z):
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    d = 1 + z**2 / total
    m = (p + z**2 / (2 * total)) / d
    h = z * ((p * (1 - p) + z**2 / (4 * total)) / total) ** 0.5 / d
    return max(0.0, m - h), min(1.0, m + h)


def divides_by_zero(correct, total, z=1.96):
    p = correct / total
    d = 1 + z**2 / total
    m = (p + z**2 / (2 * total)) / d
    h = z * ((p * (1 - p) + z**2 / (4 * total)) / total) ** 0.5 / d
    return max(0.0, m - h), min(1.0, m + h)


def root_without_second_term(correct, total, z=1.96):
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    d = 1 + z**2 / total
    m = (p + z**2 / (2 * total)) / d
    h = z * (p * (1 - p) / total) ** 0.5 / d
    return max(0.0, m - h), min(1.0, m + h)


def nothing_divided(correct, total, z=1.96):
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    m = p + z**2 / (2 * total)
    h = z * (p * (1 - p) / total + z**2 / (4 * total**2)) ** 0.5
    return max(0.0, m - h), min(1.0, m + h)


# -- evaluation.blind_pairing ------------------------------------------------------------------------------------------


def the_permutation_itself(subsets, order):
    return order[:]


def rolled_over_everything(subsets, order):
    out = [0] * len(order)
    for a, b in zip(order, order[1:] + order[:1], strict=True):
        out[a] = b
    return out


def the_next_index(subsets, order):
    return [(i + 1) % len(subsets) for i in range(len(subsets))]


def neighbours_in_the_file(subsets, order):
    out = []
    for i, subset in enumerate(subsets):
        members = [j for j, s in enumerate(subsets) if s == subset]
        out.append(members[(members.index(i) + 1) % len(members)])
    return out


def the_one_before(subsets, order):
    out = [0] * len(order)
    for subset in set(subsets):
        members = [s for s in order if subsets[s] == subset]
        for k, s in enumerate(members):
            out[s] = members[k - 1]
    return out


def last_one_stays(subsets, order):
    out = list(range(len(order)))
    for subset in set(subsets):
        members = [s for s in order if subsets[s] == subset]
        for a, b in itertools.pairwise(members):
            out[a] = b
    return out


# -- evaluation.scorer_test --------------------------------------------------------------------------------------------


def only_good_answers(scorer):
    return all(scorer(a, b) for a, b in [("A", "A"), ("b", "B"), ("(C)", "C"), ("D.", "D"), (" A ", "A")])


def only_bad_answers(scorer):
    return not any(scorer(a, b) for a, b in [("A cat", "A"), ("B", "A"), ("", "A"), ("A, B, C, D", "B"), ("Dad", "D")])


def the_obvious_pair(scorer):
    return bool(scorer("A", "A")) and not scorer("B", "A")


def no_small_letter(scorer):
    good = all(scorer(a, b) for a, b in [("A", "A"), ("(C)", "C"), ("D.", "D"), (" A ", "A")])
    bad = any(scorer(a, b) for a, b in [("A cat", "A"), ("B", "A"), ("", "A"), ("It is A", "A"), ("Dad", "D")])
    return good and not bad


def no_empty_answer(scorer):
    good = all(scorer(a, b) for a, b in [("A", "A"), ("b", "B"), ("(C)", "C"), ("D.", "D"), (" A ", "A")])
    return good and not any(scorer(a, b) for a, b in [("A cat", "A"), ("B", "A"), ("It is A", "A"), ("Dad", "D")])


def asks_the_wrong_way_round(scorer):
    return not (
        scorer("A", "A")
        and scorer("b", "B")
        and scorer("(C)", "C")
        and scorer("D.", "D")
        and scorer(" A ", "A")
        and not scorer("A cat", "A")
        and not scorer("B", "A")
        and not scorer("", "A")
        and not scorer("Is A", "A")
    )


# -- evaluation.selection_gain -----------------------------------------------------------------------------------------


def the_reported_score(share, questions, looks):
    n = torch.full((2000, looks), float(questions))
    return (torch.binomial(n, torch.full_like(n, share)) / questions).amax(dim=1).mean().item()


def in_points(share, questions, looks):
    return 100 * (the_reported_score(share, questions, looks) - share)


def mean_of_looks(share, questions, looks):
    n = torch.full((4000, looks), float(questions))
    return (torch.binomial(n, torch.full_like(n, share)) / questions).mean().item() - share


def one_standard_error(share, questions, looks):
    return (share * (1 - share) / questions) ** 0.5


def half_an_interval(share, questions, looks):
    return 1.96 * (share * (1 - share) / questions) ** 0.5


def error_of_the_mean(share, questions, looks):
    return (share * (1 - share) / questions / looks) ** 0.5


# -- evaluation.recall_at_k --------------------------------------------------------------------------------------------


def with_topk(scores, k):
    n = len(scores)
    target = torch.arange(n)[:, None]
    forth = (scores.topk(k, dim=1).indices == target).any(dim=1).float().mean().item()
    back = (scores.t().topk(k, dim=1).indices == target).any(dim=1).float().mean().item()
    return forth, back


def strictly_better(scores, k):
    def one(s):
        return ((s > s.diagonal()[:, None]).sum(1) < k).float().mean().item()

    return one(scores), one(scores.t())


def rank_from_zero(scores, k):
    def one(s):
        rank = (s >= s.diagonal()[:, None]).sum(1) - 1
        return (rank <= k).float().mean().item()

    return one(scores), one(scores.t())


def one_direction(scores, k):
    share = ((scores >= scores.diagonal()[:, None]).sum(1) <= k).float().mean().item()
    return share, share


def directions_exchanged(scores, k):
    d = scores.diagonal()
    rows = ((scores >= d[None, :]).sum(0) <= k).float().mean().item()
    columns = ((scores >= d[:, None]).sum(1) <= k).float().mean().item()
    return rows, columns


def only_the_first(scores, k):
    d = scores.diagonal()
    return (
        ((scores >= d[:, None]).sum(1) == 1).float().mean().item(),
        ((scores >= d[None, :]).sum(0) == 1).float().mean().item(),
    )


# -- evaluation.paired_bootstrap ---------------------------------------------------------------------------------------


def two_intervals(first, second, drawn):
    q = torch.tensor([0.025, 0.975])
    a, b = first[drawn].mean(1).quantile(q), second[drawn].mean(1).quantile(q)
    return float(second.mean() - first.mean()), float(b[0] - a[1]), float(b[1] - a[0])


def first_minus_second(first, second, drawn):
    d = first - second
    low, high = d[drawn].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return d.mean().item(), low, high


def five_per_cent_each(first, second, drawn):
    d = second - first
    low, high = d[drawn].mean(1).quantile(torch.tensor([0.05, 0.95])).tolist()
    return d.mean().item(), low, high


def by_standard_deviation(first, second, drawn):
    d = second - first
    s = d[drawn].mean(1).std().item()
    return d.mean().item(), d.mean().item() - 1.96 * s, d.mean().item() + 1.96 * s


def over_the_wrong_axis(first, second, drawn):
    d = second - first
    low, high = d[drawn].mean(0).quantile(torch.tensor([0.025, 0.975])).tolist()
    return d.mean().item(), low, high


def centre_of_the_resamples(first, second, drawn):
    means = (second - first)[drawn].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975])).tolist()
    return means.mean().item(), low, high


# -- evaluation.pick_option --------------------------------------------------------------------------------------------


def _gathered(logits, ids):
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def forgets_to_shift(logits, input_ids, attention_mask, prompt_length):
    values = _gathered(logits, input_ids)[:, prompt_length:]
    real = attention_mask[:, prompt_length:]
    scores = (values * real).sum(1) / real.sum(1)
    return scores, int(scores.argmax())


def sums(logits, input_ids, attention_mask, prompt_length):
    values = _gathered(logits[:, :-1], input_ids[:, 1:])[:, prompt_length - 1 :]
    scores = (values * attention_mask[:, prompt_length:]).sum(1)
    return scores, int(scores.argmax())


def the_whole_text(logits, input_ids, attention_mask, prompt_length):
    values = _gathered(logits[:, :-1], input_ids[:, 1:])
    real = attention_mask[:, 1:]
    scores = (values * real).sum(1) / real.sum(1)
    return scores, int(scores.argmax())


def mean_with_padding(logits, input_ids, attention_mask, prompt_length):
    values = _gathered(logits[:, :-1], input_ids[:, 1:])[:, prompt_length - 1 :]
    scores = values.mean(1)
    return scores, int(scores.argmax())


def starts_one_late(logits, input_ids, attention_mask, prompt_length):
    values = _gathered(logits[:, :-1], input_ids[:, 1:])[:, prompt_length:]
    real = attention_mask[:, prompt_length + 1 :]
    scores = (values * real).sum(1) / real.sum(1)
    return scores, int(scores.argmax())


def without_the_end(logits, input_ids, attention_mask, prompt_length):
    scores = []
    for row in range(len(input_ids)):
        n = int(attention_mask[row].sum()) - 1
        values = _gathered(logits[row, :-1], input_ids[row, 1:])[prompt_length - 1 : n - 1]
        scores.append(values.mean())
    scores = torch.stack(scores)
    return scores, int(scores.argmax())


def losses(logits, input_ids, attention_mask, prompt_length):
    targets = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)
    targets[:, : prompt_length - 1] = -100
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].mT, targets, reduction="none")
    scores = loss.sum(1) / (targets != -100).sum(1)
    return scores, int(scores.argmin())


# -- evaluation.bleu ---------------------------------------------------------------------------------------------------


def _grams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _bleu(candidates, references, max_n, hits, mean=None, penalty=None):
    shares, c, r = [], 0, 0
    for n in range(1, max_n + 1):
        found = total = 0
        for text, refs in zip(candidates, references, strict=True):
            own = _grams(text.split(), n)
            found += hits(own, [_grams(ref.split(), n) for ref in refs])
            total += len(own)
        shares.append(found / total)
    for text, refs in zip(candidates, references, strict=True):
        size = len(text.split())
        c += size
        r += min((len(ref.split()) for ref in refs), key=lambda k: (abs(k - size), k))
    if min(shares) == 0 and mean is None:
        return 0.0
    score = mean(shares) if mean else math.exp(sum(map(math.log, shares)) / max_n)
    return score * (penalty(c, r) if penalty else 1.0 if c >= r else math.exp(1 - r / c))


def _clipped(own, refs):
    most = Counter()
    for ref in refs:
        most |= Counter(ref)
    return sum((Counter(own) & most).values())


def unclipped(candidates, references, max_n=4):
    return _bleu(candidates, references, max_n, lambda own, refs: sum(any(g in ref for ref in refs) for g in own))


def arithmetic(candidates, references, max_n=4):
    return _bleu(candidates, references, max_n, _clipped, mean=lambda s: sum(s) / len(s))


def no_penalty(candidates, references, max_n=4):
    return _bleu(candidates, references, max_n, _clipped, penalty=lambda c, r: 1.0)


def penalty_upside_down(candidates, references, max_n=4):
    return _bleu(candidates, references, max_n, _clipped, penalty=lambda c, r: 1.0 if c <= r else math.exp(1 - c / r))


def mean_of_sentences(candidates, references, max_n=4):
    each = [_bleu([c], [r], max_n, _clipped) for c, r in zip(candidates, references, strict=True)]
    return sum(each) / len(each)


def added_references(candidates, references, max_n=4):
    def hits(own, refs):
        return sum((Counter(own) & sum((Counter(ref) for ref in refs), Counter())).values())

    return _bleu(candidates, references, max_n, hits)


WRONG = {
    "evaluation.normalise_answer": [
        (only_lower_and_strip, "Only the capitals"),
        (with_string_punctuation, "SQuAD"),
        (articles_by_replace, "inside words"),
        (no_number_words, "Number words stay"),
        (none_forgotten, "none"),
        (commas_as_spaces, "comma between digits"),
        (all_points_as_spaces, "point between digits"),
    ],
    "evaluation.vqa_accuracy": [
        (popular_short_form, "leaves each person out"),
        (share_of_people, "share of people"),
        (raw_texts, "Normalise both"),
        (always_ten, "divide by 10"),
        (no_cap, "cap is missing"),
        (anybody, "One person who agrees"),
    ],
    "evaluation.wilson": [
        (wald, "Wald's interval"),
        (wald_clipped, "cut off"),
        (z_written_in, "z is not used"),
        (divides_by_zero, "divide by zero"),
        (root_without_second_term, "lacks its second term"),
        (nothing_divided, "Neither the centre nor"),
    ],
    "evaluation.blind_pairing": [
        (the_permutation_itself, "keeps its own"),
        (rolled_over_everything, "One ring runs through all"),
        (the_next_index, "The order is not used, and subsets"),
        (neighbours_in_the_file, "The order is not used: each sample"),
        (the_one_before, "runs backwards"),
        (last_one_stays, "the last sample of each"),
    ],
    "evaluation.scorer_test": [
        (only_good_answers, "only about answers that are right"),
        (only_bad_answers, "only about answers that must be refused"),
        (the_obvious_pair, "plain letter and about another"),
        (no_small_letter, "no small letter"),
        (no_empty_answer, "empty answer"),
        (asks_the_wrong_way_round, "wrong way round"),
    ],
    "evaluation.selection_gain": [
        (the_reported_score, "would be reported"),
        (in_points, "points of a hundred"),
        (mean_of_looks, "average over the looks"),
        (one_standard_error, "one standard error"),
        (half_an_interval, "half the width"),
        (error_of_the_mean, "More looks do not average"),
    ],
    "evaluation.recall_at_k": [
        (with_topk, "topk"),
        (strictly_better, "Ties count for the model"),
        (rank_from_zero, "start at 0"),
        (one_direction, "Both numbers are picture to text"),
        (directions_exchanged, "exchanged"),
        (only_the_first, "recall at 1"),
    ],
    "evaluation.paired_bootstrap": [
        (two_intervals, "ends of two separate intervals"),
        (first_minus_second, "first minus second"),
        (five_per_cent_each, "90 %"),
        (by_standard_deviation, "1.96 standard deviations"),
        (over_the_wrong_axis, "wrong axis"),
        (centre_of_the_resamples, "mean of the resamples"),
    ],
    "evaluation.pick_option": [
        (forgets_to_shift, "Off by one"),
        (sums, "This is the sum"),
        (the_whole_text, "prompt's tokens are counted"),
        (mean_with_padding, "Padding is scored"),
        (starts_one_late, "first token is left out"),
        (without_the_end, "end token is left out"),
        (losses, "wrong sign"),
    ],
    "evaluation.bleu": [
        (unclipped, "Nothing is clipped"),
        (arithmetic, "arithmetic mean"),
        (no_penalty, "brevity penalty is missing"),
        (penalty_upside_down, "inverted"),
        (mean_of_sentences, "each sentence's own BLEU"),
        (added_references, "add the references' counts up"),
    ],
}
