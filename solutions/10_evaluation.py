# %% [markdown]
# # 10 Exercises: evaluation
#
# Ten exercises: you write the scores and the tests that stand between a model and a claim about it. The first ones
# are a few lines of text handling and arithmetic. The later ones score options by likelihood and compare two models
# on the same questions, which is where evaluations of small models most often go wrong.

# %%
import math
import re
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.course import check, use

# %% [markdown] tags=["exercise"]
# Two answers can differ in spelling and mean the same. Bring an answer into a standard form, after the rules of
# VQA:
#
# 1. lower case;
# 2. a comma between two digits vanishes (`1,000` is `1000`);
# 3. a point that does not have a digit on *both* sides becomes a space, and so does every other mark except the
#    apostrophe (an underscore counts as a mark);
# 4. the articles `a`, `an` and `the` are dropped;
# 5. the number words `zero` to `ten`, and `none` for 0, become digits;
# 6. single spaces, none at the ends.
#
# `"The Two red Circles."` becomes `"2 red circles"`.

# %%
ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def normalise_answer(text: str) -> str:
    """The standard form of an answer."""
    # SOLUTION
    digits = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    words = re.sub(r"[^\w\s.']|_", " ", text).split()
    return " ".join(digits.get(word, word) for word in words if word not in ARTICLES)
    # END SOLUTION


# %%
check("evaluation.normalise_answer", normalise_answer)

# %% [markdown] tags=["exercise"]
# VQA asked ten people each question. Its accuracy of an answer is `min(matches / 3, 1)`, where *matches* counts how
# many of the other people gave the same answer: each person is left out once, and the mean over these scores is
# taken. With two matches among ten people that gives (2 × 1/3 + 8 × 2/3) / 10 = 0.6.
#
# Normalise the answer and the people's answers before you compare. With fewer than two people nobody remains to
# compare with: raise a `ValueError`.

# %%
normalise_answer = use("evaluation.normalise_answer", normalise_answer)


def vqa_accuracy(answer: str, human_answers: list[str]) -> float:
    """VQA's accuracy of one answer, from 0 to 1."""
    # SOLUTION
    if len(human_answers) < 2:
        raise ValueError("VQA accuracy leaves one person out, so it needs at least two.")
    given = normalise_answer(answer)
    matches = [normalise_answer(human) == given for human in human_answers]
    scores = [min((sum(matches) - own) / 3, 1.0) for own in matches]
    return sum(scores) / len(scores)
    # END SOLUTION


# %%
check("evaluation.vqa_accuracy", vqa_accuracy)

# %% [markdown] tags=["exercise"]
# The interval of a share by Wilson's formula. With $p$ = correct / total and $n$ = total:
#
# $$\frac{p + \frac{z^2}{2n}}{1 + \frac{z^2}{n}} \;\pm\; \frac{z}{1 + \frac{z^2}{n}} \sqrt{\frac{p(1-p)}{n} +
# \frac{z^2}{4n^2}}$$
#
# Return the lower and the upper end, neither below 0 nor above 1. Without any question nothing is known: `(0.0, 1.0)`.


# %%
def wilson(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of correct / total; z = 1.96 makes it a 95 % interval."""
    # SOLUTION
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    below = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / below
    half = z / below * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
    # END SOLUTION


# %%
check("evaluation.wilson", wilson)

# %% [markdown] tags=["exercise"]
# The function below deals out other pictures for the blind score, and its symptom is this: on 200 samples of two
# subsets, the blind score of a perfect model came out at 52 % where 50 % was expected, and some charts were asked
# about signs.


# %%
def broken_pairing(subsets: list[str], order: list[int]) -> list[int]:
    """order: a random permutation of the samples. Entry i of the result: whose picture sample i is shown."""
    return [order[i] for i in range(len(subsets))]


# %% [markdown]
# Mend it. Within each subset, the samples in the order of `order` form a ring: each is shown the picture of the
# sample that follows it, and the last is shown the first one's. Then nobody keeps a picture, and none leaves its
# subset. A subset with a single sample cannot be mended: raise a `ValueError`.
#
# With four samples of one subset and the order `[2, 0, 3, 1]`, sample 2 is shown picture 0, and sample 1 picture 2.


# %%
def blind_pairing(subsets: list[str], order: list[int]) -> list[int]:
    """Entry i: whose picture sample i is shown."""
    # SOLUTION
    other = [-1] * len(subsets)
    for subset in dict.fromkeys(subsets):
        members = [sample for sample in order if subsets[sample] == subset]
        if len(members) < 2:
            raise ValueError(f"The subset {subset!r} has one sample only: there is no other picture.")
        for place, sample in enumerate(members):
            other[sample] = members[(place + 1) % len(members)]
    return other
    # END SOLUTION


# %%
check("evaluation.blind_pairing", blind_pairing)

# %% [markdown] tags=["exercise"]
# A model answers multiple-choice questions in words, and a *scorer* decides whether a word is the right letter.
# Write the test that a scorer has to pass. `scorer(answer, letter)` returns something that is true where it takes
# the answer.
#
# A right scorer takes the letter alone: in capitals or not, perhaps in parentheses, perhaps with a full stop,
# perhaps with spaces round it. It refuses everything else: sentences, lists of letters, other letters, nothing.
#
# Your function returns `True` for a right scorer and `False` for a broken one. The check runs it on two right
# scorers and twelve broken ones, nanoVLM v0.1's among them.


# %%
def scorer_is_right(scorer: Callable[[str, str], bool]) -> bool:
    """Whether the scorer takes all that it should and refuses all that it should."""
    # SOLUTION
    right = [("B", "B"), ("b", "B"), ("(C)", "C"), ("D.", "D"), (" A ", "A")]
    wrong = [("A cat", "A"), ("A, B, C, D", "C"), ("C", "B"), ("", "A"), ("Because", "B"), ("The answer is A", "A")]
    takes = all(scorer(answer, letter) for answer, letter in right)
    return takes and not any(scorer(answer, letter) for answer, letter in wrong)
    # END SOLUTION


# %%
check("evaluation.scorer_test", scorer_is_right)

# %% [markdown] tags=["exercise"]
# You have a model whose true accuracy is `share`. You evaluate it `looks` times on a test of `questions` questions,
# each time on other questions of the same difficulty, and report the highest score. How much higher than `share` is
# that on average?
#
# Measure it: simulate a few thousand such stories and average. (A formula exists; a simulation with 2,000 trials is
# close enough, within 0.25 points.)


# %%
def selection_gain(share: float, questions: int, looks: int) -> float:
    """The mean of the highest of `looks` scores, minus the true share."""
    # SOLUTION
    n = torch.full((2_000, looks), float(questions))
    scores = torch.binomial(n, torch.full_like(n, share)) / questions  # [trials, looks]
    return scores.amax(dim=1).mean().item() - share
    # END SOLUTION


# %%
check("evaluation.selection_gain", selection_gain)

# %% [markdown] tags=["exercise"]
# `scores[i, j]` says how well picture `i` and text `j` fit; picture `i` belongs to text `i`. Recall at k is the
# share of pictures whose own text is among the k best, and the share of texts whose own picture is.
#
# A tie counts against the model: the rank of the right one is the number of candidates that are *at least as good*,
# itself included. Return picture to text first, then text to picture.


# %%
def recall_at_k(scores: Tensor, k: int) -> tuple[float, float]:
    """scores [pictures, texts], as many of one as of the other."""

    # SOLUTION
    def one_way(scores: Tensor) -> float:
        rank = (scores >= scores.diagonal()[:, None]).sum(dim=1)
        return (rank <= k).double().mean().item()

    return one_way(scores), one_way(scores.T)
    # END SOLUTION


# %%
check("evaluation.recall_at_k", recall_at_k)

# %% [markdown] tags=["exercise"]
# Two models answered the same questions. `first[i]` and `second[i]` are their scores on question `i`. Each row of
# `drawn` holds the indices of one resample: as many questions as there are, drawn with replacement.
#
# Return three numbers: the mean of `second` minus the mean of `first`, and the ends of its 95 % percentile interval
# over the resamples (`torch.quantile`, 2.5 % and 97.5 %). Both models are to be compared on the same drawn
# questions.


# %%
def paired_bootstrap(first: Tensor, second: Tensor, drawn: Tensor) -> tuple[float, float, float]:
    """first, second [questions]; drawn [resamples, questions] -> difference, low, high."""
    # SOLUTION
    gains = second - first  # [questions]
    means = gains[drawn].mean(dim=1)  # [resamples]
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975])).tolist()
    return gains.mean().item(), low, high
    # END SOLUTION


# %%
check("evaluation.paired_bootstrap", paired_bootstrap)

# %% [markdown] tags=["exercise"]
# One row for each option of a multiple-choice question: the prompt's tokens, the option's tokens, the token that
# ends the answer, and padding on the right (where `attention_mask` is 0). The prompt has `prompt_length` tokens in
# every row.
#
# The score of an option is the mean log-probability of its tokens *and of its end token*. Return the scores
# `[options]` and the index of the best option as an `int`.


# %%
def pick_option(logits: Tensor, input_ids: Tensor, attention_mask: Tensor, prompt_length: int) -> tuple[Tensor, int]:
    """logits [options, T, vocab_size]; input_ids, attention_mask [options, T]."""
    # SOLUTION
    log_probs = logits[:, :-1].log_softmax(dim=-1)  # predicts the tokens 1 … T - 1
    values = log_probs.gather(-1, input_ids[:, 1:, None]).squeeze(-1)  # [options, T - 1]
    positions = torch.arange(1, input_ids.shape[1])
    of_option = (positions >= prompt_length) & attention_mask[:, 1:].bool()
    scores = (values * of_option).sum(dim=1) / of_option.sum(dim=1)
    return scores, int(scores.argmax())
    # END SOLUTION


# %%
check("evaluation.pick_option", pick_option)

# %% [markdown] tags=["exercise"]
# BLEU of a set of candidates, each with one or more references, on words split at spaces. For each n from 1 to
# `max_n`: how many of all candidates' n-grams are found in their references, and how many are there? An n-gram
# counts at most as often as in the one reference that has it most often. Add over all candidates, then divide.
#
# BLEU is the geometric mean of these precisions (0 if one of them is 0), times a penalty where the candidates are
# too short: $e^{1 - r/c}$ if $c < r$, else 1. Here $c$ is the candidates' words in all, and $r$ adds up, for each
# candidate, the length of the reference closest to its own (the shorter one in a tie).


# %%
def ngrams(words: list[str], n: int) -> Counter:
    """How often each run of n words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(candidates: list[str], references: list[list[str]], max_n: int = 4) -> float:
    """BLEU from 0 to 1."""
    # SOLUTION
    found, possible = [0] * max_n, [0] * max_n
    length = closest = 0
    for candidate, texts in zip(candidates, references, strict=True):
        words, others = candidate.split(), [text.split() for text in texts]
        length += len(words)
        closest += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, max_n + 1):
            own, most = ngrams(words, n), Counter()
            for other in others:
                most |= ngrams(other, n)
            found[n - 1] += sum((own & most).values())
            possible[n - 1] += sum(own.values())
    if 0 in found:
        return 0.0
    mean_log = sum(math.log(f / p) for f, p in zip(found, possible, strict=True)) / max_n
    return math.exp(mean_log + min(0.0, 1 - closest / length))
    # END SOLUTION


# %%
check("evaluation.bleu", bleu)
