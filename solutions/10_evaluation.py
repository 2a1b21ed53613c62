# %% [markdown]
# # 10 Exercises: evaluation
#
# Ten exercises: you write the scores and the tests that stand between a model and a claim about it. The first ones
# are a few lines of text handling and arithmetic. The later ones score options by likelihood and compare two models
# on the same questions, which is where evaluations of small models most often go wrong.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/10_evaluation.ipynb) ·
# [the exercises](../exercises/10_evaluation.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/10_evaluation.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/10_evaluation.ipynb

# %% tags=["stamped"]
# @title Set-up: the nanovlm that is installed; Colab installs it first.
import subprocess
import sys
from importlib import import_module

try:
    import_module("nanovlm.course")
except ImportError:
    package = "nanovlm[notebook] @ git+https://github.com/nanovlm-course/nanovlm@main"
    if "google.colab" not in sys.modules:
        advice = f'In a clone run `make lab`, elsewhere pip install "{package}".'
        raise ModuleNotFoundError(f"This kernel has no nanovlm. {advice}") from None
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", package]).returncode:
        raise RuntimeError("pip could not install nanovlm (see above). Run this again.") from None
    import_module("nanovlm.course")

# %%
import math
import re
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 10.1 · Two answers that mean the same
# `evaluation.normalise_answer` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** Exact match counts “Two.” as wrong where “2” was expected. Each rule of a normalisation
# moves the score, so two papers that normalise differently do not report the same quantity.

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

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Write down the order first. Which rule has to run before you can recognise “The” or “(the)” as an article?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Lower case; commas between digits vanish; points that are not between two digits and all other marks but the
# apostrophe become spaces; split into words; drop articles; replace number words; join with single spaces.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# text = re.sub(a comma with a digit on each side, "", text.lower())
# text = re.sub(a point without a digit on one of its sides, " ", text)
# words = re.sub(everything that is no letter, digit, space, point or apostrophe, " ", text).split()
# return the words that are no article, number words as digits, joined by one space
# ```
#
# </details>

# %%
ARTICLES = {"a", "an", "the"}
NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)


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

# %% [markdown] tags=["stamped"]
# ## Exercise 10.2 · Ten people, one answer
# `evaluation.vqa_accuracy` · difficulty ●○○ · about 8 minutes
#
# **Why it matters.** People disagree about pictures. VQA's accuracy gives full marks where three of nine others
# agree, and part of them below; a version without leaving one out reports more than the benchmark would.

# %% [markdown] tags=["exercise"]
# VQA asked ten people each question. Its accuracy of an answer is `min(matches / 3, 1)`, where *matches* counts how
# many of the other people gave the same answer: each person is left out once, and the mean over these scores is
# taken. With two matches among ten people that gives (2 × 1/3 + 8 × 2/3) / 10 = 0.6.
#
# Normalise the answer and the people's answers before you compare. With fewer than two people nobody remains to
# compare with: raise a `ValueError`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Leave out each person in turn. What is the score against those who remain?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Normalise everything. With t matches in all, leaving out a person who agrees leaves t - 1 matches, and leaving
# out one who does not leaves t. Score each time min(matches / 3, 1), and take the mean.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# given = normalise_answer(answer)
# matches = [whether normalise_answer(h) == given for h in human_answers]
# scores = [min(matches that remain without this person / 3, 1) for each person]
# return the mean of scores
# ```
#
# </details>

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

# %% [markdown] tags=["stamped"]
# ## Exercise 10.3 · An interval that survives 500 of 500
# `evaluation.wilson` · difficulty ●○○ · about 10 minutes
#
# **Why it matters.** The textbook interval, share ± 1.96 standard errors, has no width at 500 of 500 and goes
# below 0 at 1 of 20. Those are the places where small models and small tests live.

# %% [markdown] tags=["exercise"]
# The interval of a share by Wilson's formula. With $p$ = correct / total and $n$ = total:
#
# $$\frac{p + \frac{z^2}{2n}}{1 + \frac{z^2}{n}} \;\pm\; \frac{z}{1 + \frac{z^2}{n}} \sqrt{\frac{p(1-p)}{n} +
# \frac{z^2}{4n^2}}$$
#
# Return the lower and the upper end, neither below 0 nor above 1. Without any question nothing is known: `(0.0, 1.0)`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Every piece of the formula has the same denominator, 1 + z² / n. Compute that first.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# share = correct / total; the centre is (share + z² / 2n) / (1 + z² / n); the half width is z / (1 + z² / n)
# times the root of share (1 - share) / n + z² / 4n². Without any question nothing is known: (0, 1).
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# if total == 0: return 0.0, 1.0
# below = 1 + z * z / total
# centre = (share + z * z / (2 * total)) / below
# half = z / below * math.sqrt(variance of the share + a term with total squared)
# return centre - half and centre + half, not outside 0 and 1
# ```
#
# </details>


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

# %% [markdown] tags=["stamped"]
# ## Exercise 10.4 · Mend it: some pictures stay where they are
# `evaluation.blind_pairing` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** The blind score is what a number is compared with. If some samples keep their own picture,
# or get one of another kind, the baseline is too high or too low, and so is every claim that rests on it.

# %% [markdown] tags=["exercise"]
# The function below deals out other pictures for the blind score, and its symptom is this: on 200 samples of two
# subsets, the blind score of a perfect model came out at 52 % where 50 % was expected, and some charts were asked
# about signs.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# A permutation may leave a sample where it is. Which arrangement of n things moves all of them, by
# construction?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Take one subset at a time. Its samples, in the order given, form a ring: each gets the picture of the one that
# follows it, and the last gets the first one's. A subset of a single sample has no ring: raise a ValueError.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for each subset: members = [s for s in order if subsets[s] == subset]
#     fewer than two: raise ValueError
#     for place, sample in enumerate(members): other[sample] = members[(the next place) % len(members)]
# ```
#
# </details>


# %%
def broken_pairing(subsets: list[str], order: list[int]) -> list[int]:
    """order: a random permutation of the samples -> whose picture each sample is shown."""
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
            raise ValueError(f"Subset {subset!r} has one sample only: there is no other picture.")
        for place, sample in enumerate(members):
            other[sample] = members[(place + 1) % len(members)]
    return other
    # END SOLUTION


# %%
check("evaluation.blind_pairing", blind_pairing)

# %% [markdown] tags=["stamped"]
# ## Exercise 10.5 · Write the test: which scorers are broken?
# `evaluation.scorer_test` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A scorer is code, and nobody sees its mistakes: they come out as a better or a worse
# model. The regex that this chapter is about was released because no test asked it about “A cat”.

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

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Collect answers of both kinds: some that a right scorer takes, some that it must refuse. One kind alone
# catches half of the broken ones.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Right: the letter in both cases, in parentheses, with a full stop, with spaces round it. Wrong: a sentence
# that begins with the letter, ends with it, or lists all letters; another letter; nothing; a word that contains
# it.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# right = [(answer, letter), …]; wrong = [(answer, letter), …]
# return all(scorer(a, l) for a, l in right) and not any(… for a, l in wrong)
# ```
#
# </details>


# %%
def scorer_is_right(scorer: Callable[[str, str], bool]) -> bool:
    """Whether the scorer takes all that it should and refuses all that it should."""
    # SOLUTION
    right = [("B", "B"), ("b", "B"), ("(C)", "C"), ("D.", "D"), (" A ", "A")]
    wrong = [
        ("A cat", "A"),
        ("A, B, C, D", "C"),
        ("C", "B"),
        ("", "A"),
        ("Because", "B"),
        ("The answer is A", "A"),
    ]
    takes = all(scorer(answer, letter) for answer, letter in right)
    return takes and not any(scorer(answer, letter) for answer, letter in wrong)
    # END SOLUTION


# %%
check("evaluation.scorer_test", scorer_is_right)

# %% [markdown] tags=["stamped"]
# ## Exercise 10.6 · Measure what choosing buys
# `evaluation.selection_gain` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** A checkpoint that was chosen because it scored highest on a test reports more than it can
# do, even if all checkpoints are equally good. You cannot see that in the number; you can measure how large it
# is.

# %% [markdown] tags=["exercise"]
# You have a model whose true accuracy is `share`. You evaluate it `looks` times on a test of `questions` questions,
# each time on other questions of the same difficulty, and report the highest score. How much higher than `share` is
# that on average?
#
# Measure it: simulate a few thousand such stories and average. (A formula exists; a simulation with 2,000 trials is
# close enough, within 0.25 points.)

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The model is the same at every look: only the questions that it happens to get right differ. Which
# distribution has the number of right answers?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Simulate: for 2,000 trials draw `looks` binomial counts, divide by the number of questions, keep the highest
# of each trial, average over the trials, subtract the true share.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# n = torch.full((2000, looks), float(questions))
# scores = torch.binomial(n, torch.full_like(n, share)) / questions
# return (something over dim=1, then the mean) - share
# ```
#
# </details>


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

# %% [markdown] tags=["stamped"]
# ## Exercise 10.7 · Is its own text among the first k?
# `evaluation.recall_at_k` · difficulty ●●○ · about 12 minutes
#
# **Why it matters.** Retrieval tests whether a model tells pictures apart without generating anything. A tie
# counted in the model's favour makes a model that scores everything equally perfect.

# %% [markdown] tags=["exercise"]
# `scores[i, j]` says how well picture `i` and text `j` fit; picture `i` belongs to text `i`. Recall at k is the
# share of pictures whose own text is among the k best, and the share of texts whose own picture is.
#
# A tie counts against the model: the rank of the right one is the number of candidates that are *at least as good*,
# itself included. Return picture to text first, then text to picture.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The right text of picture i is text i: its score is on the diagonal. How many scores in its row are at least
# as high?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# rank = the number of scores in the row that are >= the diagonal's, itself included; recall is the share of
# ranks that are at most k. For the other direction the same on the transpose.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# def one_way(scores): rank = (scores >= the diagonal as a column).sum(dim=1); return the mean of rank <= k
# return one_way(scores), one_way(scores.T)
# ```
#
# </details>


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

# %% [markdown] tags=["stamped"]
# ## Exercise 10.8 · Is the second model better?
# `evaluation.paired_bootstrap` · difficulty ●●○ · about 15 minutes
#
# **Why it matters.** Two overlapping intervals do not say that two models are equal. Asked the same questions
# they fail on the same hard ones, and the interval of the difference is then much narrower than either of their
# own.

# %% [markdown] tags=["exercise"]
# Two models answered the same questions. `first[i]` and `second[i]` are their scores on question `i`. Each row of
# `drawn` holds the indices of one resample: as many questions as there are, drawn with replacement.
#
# Return three numbers: the mean of `second` minus the mean of `first`, and the ends of its 95 % percentile interval
# over the resamples (`torch.quantile`, 2.5 % and 97.5 %). Both models are to be compared on the same drawn
# questions.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# What is one thing that you can resample, if both models answered the same questions? The question.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# For each row of `drawn`: the mean score of the second model on the drawn questions minus the mean of the first
# on the *same* ones. Then the 2.5 % and 97.5 % quantiles of these differences.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# gains = one number for each question
# means = gains of the drawn questions, averaged over each row      # [resamples]
# low, high = torch.quantile(means, the two tails of 95 %).tolist()
# return gains.mean().item(), low, high
# ```
#
# </details>


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

# %% [markdown] tags=["stamped"]
# ## Exercise 10.9 · Which option does it find most probable?
# `evaluation.pick_option` · difficulty ●●● · about 20 minutes
#
# **Why it matters.** Scoring options needs no letters and no parsing, so it measures what a model knows rather
# than how it formats. It has four places to be wrong by one, and none of them raises an error.

# %% [markdown] tags=["exercise"]
# One row for each option of a multiple-choice question: the prompt's tokens, the option's tokens, the token that
# ends the answer, and padding on the right (where `attention_mask` is 0). The prompt has `prompt_length` tokens in
# every row.
#
# The score of an option is the mean log-probability of its tokens *and of its end token*. Return the scores
# `[options]` and the index of the best option as an `int`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The logits at position t predict the token at position t + 1. Which positions predict the option's tokens?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# log_softmax, then drop the last position; gather the log-probability of each *next* token; keep those whose
# predicted position is at or behind prompt_length and not padding; sum and divide by how many there are.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# log_probs = logits[:, :-1].log_softmax(dim=-1)                     # predicts tokens 1 … T - 1
# values = log_probs.gather(-1, the tokens they predict, as [options, T - 1, 1]).squeeze(-1)
# of_option = (positions 1 … T - 1 are at least prompt_length) & attention_mask of those positions
# scores = (values * of_option).sum(dim=1) / of_option.sum(dim=1)
# ```
#
# </details>


# %%
def pick_option(
    logits: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    prompt_length: int,
) -> tuple[Tensor, int]:
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

# %% [markdown] tags=["stamped"]
# ## Exercise 10.10 · BLEU by hand
# `evaluation.bleu` · difficulty ●●● · about 25 minutes
#
# **Why it matters.** It is still reported for captions, and five choices hide in four letters: what is clipped,
# what is added up over the set, which mean, which reference length, which direction of the penalty.

# %% [markdown] tags=["exercise"]
# BLEU of a set of candidates, each with one or more references, on words split at spaces. For each n from 1 to
# `max_n`: how many of all candidates' n-grams are found in their references, and how many are there? An n-gram
# counts at most as often as in the one reference that has it most often. Add over all candidates, then divide.
#
# BLEU is the geometric mean of these precisions (0 if one of them is 0), times a penalty where the candidates are
# too short: $e^{1 - r/c}$ if $c < r$, else 1. Here $c$ is the candidates' words in all, and $r$ adds up, for each
# candidate, the length of the reference closest to its own (the shorter one in a tie).

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Take it apart: for one n, how many of the candidates' n-grams are found, and how many are there? Add both over
# all candidates before you divide.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# An n-gram counts at most as often as in the reference that has it most (the maximum of Counters is |, the
# minimum is &). Geometric mean of the precisions for 1 … max_n; if one of them is 0, so is BLEU. Penalty exp(1
# - r / c) if c < r, where r adds up each candidate's closest reference length (the shorter one in a tie).
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for each n: found += (own & most).total(); possible += own.total()
#      with own = ngrams(candidate words, n), most = the | of the references' ngrams
# if some found is 0: return 0.0
# return math.exp(mean over n of log(found / possible) + the smaller of 0 and (1 - r / c))
# ```
#
# </details>


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
