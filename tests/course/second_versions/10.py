"""Chapter 10 once more, written in two other ways each."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from fractions import Fraction
from statistics import NormalDist

import torch
from torch import Tensor

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def normal_by_characters(text: str) -> str:
    """One character at a time, with its neighbours."""
    padded = f" {text.lower()} "
    out = []
    for before, c, after in zip(padded, padded[1:-1], padded[2:], strict=False):
        between = before.isdigit() and after.isdigit()
        if c == "," and between:
            continue
        kept = c.isalnum() or c == "'" or (c == "." and between)
        out.append(c if kept else " ")
    words = []
    for word in "".join(out).split():
        if word in ("a", "an", "the"):
            continue
        words.append(str(WORDS.index(word)) if word in WORDS else "0" if word == "none" else word)
    return " ".join(words)


def normal_by_translate(text: str) -> str:
    """Marks by translation, after protecting what stands between digits."""
    chars = list(text.lower())
    for i, c in enumerate(chars):
        inside = 0 < i < len(chars) - 1 and text[i - 1].isdigit() and text[i + 1].isdigit()
        if inside and c in ",.":
            chars[i] = "" if c == "," else "\x00"
    cleaned = "".join(chars)
    cleaned = "".join(c if c.isalnum() or c in "'\x00" else " " for c in cleaned).replace("\x00", ".")
    numbers = dict(zip(WORDS, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"], strict=True), none="0")
    return " ".join(numbers.get(w, w) for w in cleaned.split() if w not in {"a", "an", "the"})


def vqa_by_loops(answer: str, human_answers: list[str]) -> float:
    """Leave each one out and count the others."""
    if len(human_answers) <= 1:
        raise ValueError("two people at least")
    given, humans = normal_by_characters(answer), [normal_by_characters(h) for h in human_answers]
    total = 0.0
    for i in range(len(humans)):
        others = humans[:i] + humans[i + 1 :]
        total += min(1, others.count(given) / 3)
    return total / len(humans)


def vqa_in_closed_form(answer: str, human_answers: list[str]) -> float:
    """The t who agree see t - 1 others, the rest see t."""
    n = len(human_answers)
    if n < 2:
        raise ValueError("nobody is left to compare with")
    t = sum(normal_by_translate(h) == normal_by_translate(answer) for h in human_answers)
    third = Fraction(1, 3)
    return float((t * min(max(t - 1, 0) * third, 1) + (n - t) * min(t * third, 1)) / n)


def wilson_by_roots(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The two shares q at which (p - q)^2 = z^2 q (1 - q) / n: a quadratic equation."""
    if not total:
        return (0.0, 1.0)
    p, k = correct / total, z * z / total
    a, b, c = 1 + k, -(2 * p + k), p * p
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return max(0.0, (-b - root) / (2 * a)), min(1.0, (-b + root) / (2 * a))


def wilson_by_counts(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The formula with numbers of answers instead of shares."""
    if total == 0:
        return 0.0, 1.0
    wrong, zz = total - correct, z**2
    middle = (correct + zz / 2) / (total + zz)
    half = z / (total + zz) * (correct * wrong / total + zz / 4) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def ring_by_queues(subsets: list[str], order: list[int]) -> list[int]:
    """Group once, then pair each group with itself turned by one."""
    groups = defaultdict(list)
    for sample in order:
        groups[subsets[sample]].append(sample)
    if any(len(group) == 1 for group in groups.values()):
        raise ValueError("a subset of one sample")
    found = {a: b for group in groups.values() for a, b in zip(group, group[1:] + group[:1], strict=True)}
    return [found[i] for i in range(len(subsets))]


def ring_by_search(subsets: list[str], order: list[int]) -> list[int]:
    """From each sample's place go on until one of its subset comes."""
    n, out = len(order), []
    for sample in range(n):
        place = order.index(sample)
        following = next(
            order[(place + step) % n]
            for step in range(1, n + 1)
            if subsets[order[(place + step) % n]] == subsets[sample]
        )
        if following == sample:
            raise ValueError("nobody else in this subset")
        out.append(following)
    return out


def scorer_by_table(scorer) -> bool:
    """Pairs with the verdict that each is to get."""
    table = {
        ("A", "A"): True,
        ("c", "C"): True,
        ("(d)", "D"): True,
        ("(B)", "B"): True,
        ("B.", "B"): True,
        ("\tA\n", "A"): True,
        (" C ", "C"): True,
        ("D", "A"): False,
        ("", "C"): False,
        ("A dog and a cat", "A"): False,
        ("I choose B", "B"): False,
        ("A or B", "B"): False,
        ("Dog", "D"): False,
    }
    return {bool(scorer(*pair)) == verdict for pair, verdict in table.items()} == {True}


def scorer_by_letters(scorer) -> bool:
    """Every letter in every accepted form, against every other letter."""
    forms = ("{}", "({})", "{}.", " {} ")
    for letter in "ABCD":
        for form in forms:
            for said in "ABCD":
                for spelled in (said, said.lower()):
                    if bool(scorer(form.format(spelled), letter)) != (said == letter):
                        return False
        if scorer("", letter) or scorer(f"{letter} thing", letter) or scorer(f"It is {letter}", letter):
            return False
        if scorer(f"X{letter.lower()}", letter):
            return False
    return True


def gain_by_quantiles(share: float, questions: int, looks: int) -> float:
    """A normal approximation; the mean of the highest over its quantiles."""
    spread = math.sqrt(share * (1 - share) / questions)
    steps = [(i + 0.5) / 400 for i in range(400)]
    tops = [NormalDist().inv_cdf(u ** (1 / looks)) for u in steps]
    return spread * sum(tops) / len(tops)


def gain_by_normals(share: float, questions: int, looks: int) -> float:
    """Simulated with normal scores instead of counts."""
    scores = share + math.sqrt(share * (1 - share) / questions) * torch.randn(4000, looks)
    return float(scores.max(dim=1).values.mean()) - share


def recall_by_sorting(scores: Tensor, k: int) -> tuple[float, float]:
    """Sort each row; the right one is found if the k + 1st score is below it."""

    def one(rows: list[list[float]]) -> float:
        hits = 0
        for i, row in enumerate(rows):
            others = sorted((value for j, value in enumerate(row) if j != i), reverse=True)
            hits += len(others) < k or others[k - 1] < row[i]
        return hits / len(rows)

    return one(scores.tolist()), one(scores.T.tolist())


def recall_by_kth(scores: Tensor, k: int) -> tuple[float, float]:
    """Hide the right ones, and compare them with the k-th best of the others."""
    n = len(scores)
    right = scores.diagonal().clone()
    others = scores.clone()
    others.fill_diagonal_(-math.inf)
    forth, back = (o.sort(dim=1, descending=True).values[:, k - 1] < right for o in (others, others.T))
    return float(forth.sum()) / n, float(back.sum()) / n


def bootstrap_by_means(first: Tensor, second: Tensor, drawn: Tensor) -> tuple[float, float, float]:
    """The means of both models on the same draws."""
    differences = second[drawn].mean(1) - first[drawn].mean(1)
    ends = torch.quantile(differences.double(), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(second.mean() - first.mean()), float(ends[0]), float(ends[1])


def bootstrap_by_counts(first: Tensor, second: Tensor, drawn: Tensor) -> tuple[float, float, float]:
    """How often each question was drawn, as a product with the gains."""
    n = len(first)
    counts = torch.stack([torch.bincount(row, minlength=n) for row in drawn]).float()
    means = (counts @ (second - first) / n).sort().values
    size = len(means)

    def at(q: float) -> float:
        place = q * (size - 1)
        low = int(place)
        high = min(low + 1, size - 1)
        return float(means[low] + (place - low) * (means[high] - means[low]))

    return float((second - first).sum() / n), at(0.025), at(0.975)


def pick_by_cross_entropy(logits: Tensor, input_ids: Tensor, attention_mask: Tensor, prompt_length: int):
    """Targets of -100 and torch's loss."""
    targets = input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, -100)
    targets[:, : prompt_length - 1] = -100
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
    scores = -losses.sum(dim=1) / (targets != -100).sum(dim=1)
    return scores, scores.argmax().item()


def pick_by_rows(logits: Tensor, input_ids: Tensor, attention_mask: Tensor, prompt_length: int):
    """One option at a time, with slices."""
    scores = []
    for row, ids, real in zip(logits, input_ids, attention_mask, strict=True):
        end = int(real.sum())
        steps = row[prompt_length - 1 : end - 1]
        chosen = steps[torch.arange(end - prompt_length), ids[prompt_length:end]]
        scores.append((chosen - steps.logsumexp(dim=1)).mean())
    best = max(range(len(scores)), key=lambda i: float(scores[i]))
    return torch.stack(scores), best


def bleu_by_lists(candidates: list[str], references: list[list[str]], max_n: int = 4) -> float:
    """Lists and max of counts, no Counter arithmetic."""
    product, c, r = 1.0, 0, 0
    for n in range(1, max_n + 1):
        hits = total = 0
        for candidate, texts in zip(candidates, references, strict=True):
            runs = [[w[i : i + n] for i in range(len(w) - n + 1)] for w in (t.split() for t in (candidate, *texts))]
            own, others = runs[0], runs[1:]
            total += len(own)
            seen: list[list[str]] = []
            for run in own:
                if run not in seen:
                    seen.append(run)
                    hits += min(own.count(run), max(other.count(run) for other in others))
        if hits == 0:
            return 0.0
        product *= hits / total
    for candidate, texts in zip(candidates, references, strict=True):
        size = len(candidate.split())
        c += size
        r += sorted((len(t.split()) for t in texts), key=lambda k: (abs(k - size), k))[0]
    return product ** (1 / max_n) * (1.0 if c >= r else math.exp(1 - r / c))


def bleu_by_tensors(candidates: list[str], references: list[list[str]], max_n: int = 4) -> float:
    """Counts per n in a tensor, logarithms in torch."""
    found, possible = torch.zeros(2, max_n, dtype=torch.float64)
    lengths = []
    for candidate, texts in zip(candidates, references, strict=True):
        words = candidate.split()
        options = sorted(len(t.split()) for t in texts)
        lengths.append((len(words), min(options, key=lambda size: abs(size - len(words)))))
        for n in range(max_n):

            def count(text: list[str], n: int = n) -> Counter:
                return Counter(zip(*(text[i:] for i in range(n + 1)), strict=False))

            own = count(words)
            found[n] += sum(min(k, max(count(t.split())[g] for t in texts)) for g, k in own.items())
            possible[n] += sum(own.values())
    if bool((found == 0).any()):
        return 0.0
    c, r = (sum(column) for column in zip(*lengths, strict=True))
    return float((found / possible).log().mean().exp()) * math.exp(min(0.0, 1 - r / c))


VERSIONS = {
    "evaluation.normalise_answer": (normal_by_characters, normal_by_translate),
    "evaluation.vqa_accuracy": (vqa_by_loops, vqa_in_closed_form),
    "evaluation.wilson": (wilson_by_roots, wilson_by_counts),
    "evaluation.blind_pairing": (ring_by_queues, ring_by_search),
    "evaluation.scorer_test": (scorer_by_table, scorer_by_letters),
    "evaluation.selection_gain": (gain_by_quantiles, gain_by_normals),
    "evaluation.recall_at_k": (recall_by_sorting, recall_by_kth),
    "evaluation.paired_bootstrap": (bootstrap_by_means, bootstrap_by_counts),
    "evaluation.pick_option": (pick_by_cross_entropy, pick_by_rows),
    "evaluation.bleu": (bleu_by_lists, bleu_by_tensors),
}
