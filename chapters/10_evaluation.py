# %% [markdown]
# # 10 Evaluation
#
# Two models have two scores, and you want to know whether one model is better. To find out, you take scores apart:
# what counts as right, how sure a number is, what a model gets without looking, and what six protocols make of one
# and the same model. At the end you can say what the best-known number of nanoVLM means, the project that this course
# re-implements.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [← 09 Generation](09_generation.ipynb) ·
# [11 Full training →](11_full_training.ipynb) ·
# [exercises](../exercises/10_evaluation.ipynb) ·
# [notation and terms](notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/10_evaluation.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/10_evaluation.ipynb

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

# %% [markdown]
# **After this chapter you can**
#
# 1. give every score its interval and its blind baseline, and compare two models on the same questions;
# 2. score multiple choice by letter, by regex and by likelihood, and say what each of them measures;
# 3. read a published number and list what would have to be known before believing it.

# %% [markdown]
# **It needs** chapters 05 and 06 (answers and their end token, the whole model) and some arithmetic. **It takes**
# about an hour of reading and running, quizzes included; the exercises take about two hours more.

# %%
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

# %%
from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import budget, lever, quiz, use
from nanovlm.data.thimble import Thimble, multiple_choice_sample
from nanovlm.evaluation.scores import answer_all, interval, questions_of
from nanovlm.viz.evaluation import Share, share_rows
from nanovlm.viz.start_here import sample_card

# %% [markdown]
# ## The question: is 222 million better than 7 billion?
#
# The [README of nanoVLM at
# v0.1](https://github.com/huggingface/nanoVLM/blob/v0.1/README.md) reports **35.3 %** on MMStar for its model of
# 222 million parameters. The [card of
# MMStar](https://huggingface.co/datasets/Lin-Chen/MMStar/blob/1aa29ae60da1db0b1b88ab146d2edada96ebe86b/README.md)
# reports **30.3 %** for LLaVA-1.5, which has 7 billion. Before you read on, write down what you would need to know
# to compare them.

# %%
quiz("ch10.two_numbers")

# %% [markdown]
# Some functions of this chapter are its exercises. Those that you have solved are yours below; for the rest the
# reference stands in, so you can read on first and write them afterwards.

# %%
normalise_answer = use("evaluation.normalise_answer")
vqa_accuracy = use("evaluation.vqa_accuracy")
wilson = use("evaluation.wilson")
blind_pairing = use("evaluation.blind_pairing")
paired_bootstrap = use("evaluation.paired_bootstrap")
recall_at_k = use("evaluation.recall_at_k")
bleu = use("evaluation.bleu")

# %% [markdown]
# One thing can be known without any model: how sure the two numbers are. MMStar has 1,500 questions, so
# each share comes with an interval; the formula is further down. Four options make about 25 % by guessing. The
# other rows are published scores of small models, and not all by one procedure: SmolVLM2-500M and LFM2.5-VL-450M are
# both from the table in [LFM2.5-VL-450M's card](https://huggingface.co/LiquidAI/LFM2.5-VL-450M), and nanoVLM-450M was
# run by a contributor ([issue 89](https://github.com/huggingface/nanoVLM/issues/89)).

# %%
PUBLISHED = {
    "LLaVA-1.5-7B": 0.303,
    "nanoVLM-222M (its own script)": 0.353,
    "nanoVLM-450M (VLMEvalKit)": 0.316,
    "SmolVLM2-500M": 0.382,
    "LFM2.5-VL-450M": 0.430,
}
rows = [Share(name, p, *interval(round(p * 1500), 1500)) for name, p in PUBLISHED.items()]
share_rows("MMStar, as published, with 95 % intervals", rows, chance=0.25, highest=0.5)

# %% [markdown]
# The two intervals of the opening question do not overlap, so five points are more than the luck of the questions.
# If they mislead, it is for another reason, and to find one you need a model whose answers you can see: the pocket model.
#
# ## The pocket model answers every test question
#
# The test split of the Thimble holds pictures that training did not show. Each has six questions about it.

# %%
pocket = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
shapes = Thimble("shapes", "test")
samples = [shapes[i] for i in range(budget().pick(ci=10, laptop=40))]
questions = questions_of(samples)
expected = [question.answer for question in questions]


def right_of(answers: list[str], expected: list[str]) -> Tensor:
    """1.0 where an answer is exactly the expected one. [questions]"""
    return torch.tensor([float(a == e) for a, e in zip(answers, expected, strict=True)])


upright = right_of(answer_all(pocket, questions), expected)
print(f"{int(upright.sum())} of {len(upright)} right")

# %%
quiz("ch10.saturated")

# %% [markdown]
# A test at 100 % cannot compare anything, so we need questions that the model can fail. The same pictures, turned by
# ten degrees, are enough: a person can still answer all of them, and no training picture looked like this. These
# **turned questions** are the test of this chapter.

# %%
from nanovlm.evaluation.robustness import changed

turned = changed(questions, "turned by 10°")
turned_answers = answer_all(pocket, turned)
tilted = right_of(turned_answers, expected)
print(f"{int(tilted.sum())} of {len(tilted)} right")
sample_card(turned[0].images[0], alt="A picture of shapes, turned by ten degrees.")

# %% [markdown]
# Where does it fail? A number tells you how many failures there are, and only the pictures tell you what they have in
# common.

# %%
from nanovlm.viz.contact_sheet import AnsweredImage, sheet_figure

failed = [(q, a) for q, a in zip(turned, turned_answers, strict=True) if a != q.answer]
cards = [AnsweredImage(q.images[0], q.text, a, q.answer) for q, a in failed[:8]]
print(dict(Counter(q.kind for q, _ in failed)))

# %%
note = f"{len(failed)} failures; the first {len(cards)} of them."
sheet_figure("Turned by ten degrees", note, cards)

# %% [markdown]
# ## Exact match counts spelling as an error
#
# The pocket model was trained on one spelling of each answer, so exact match suits it. Other models say “Two.”
# where “2” is expected. Suppose a talkative model answers eight questions like this:

# %%
SAID = ["Two.", "the red one", "A heart", "yes, there is", "top-left", "1,000", "Blue", "three"]
WANTED = ["2", "red", "heart", "yes", "top left", "1000", "blue", "4"]


def without_marks(text: str) -> str:
    return " ".join(re.sub("[-.]", " ", text.lower()).replace(",", "").split())


# %%
RULES = {
    "as it is": lambda t: t,
    "lower case": lambda t: t.lower(),
    "+ marks to spaces": without_marks,
}
for name, rule in RULES.items():
    equal = [rule(a) == rule(b) for a, b in zip(SAID, WANTED, strict=True)]
    print(f"{name:20}{sum(equal)} of {len(SAID)}")

# %% [markdown]
# Every rule moves the score, so a score belongs to its rules. VQA's script also removes articles, and turns number
# words into digits ([Antol et al. 2015](https://arxiv.org/abs/1505.00468)). You write the full version in [exercise
# 10.1](../exercises/10_evaluation.ipynb); here it is at work, yours if it passes.

# %% tags=["nbval-check-output"]
from nanovlm.evaluation.answers import normalise_answer as packaged

assert all(normalise_answer(text) == packaged(text) for text in SAID + WANTED)
found = [normalise_answer(a) == normalise_answer(b) for a, b in zip(SAID, WANTED, strict=True)]
still = [a for a, f in zip(SAID, found, strict=True) if not f]
print(f"all rules: {sum(found)} of {len(found)}; still wrong: {still}")

# %% [markdown]
# Two of the three that remain are right answers in other words, and “three” is wrong. No list of rules will
# separate them: “the red one” contains “red”, and so does “not red”. Either the model is taught or asked to answer
# in one word, or something that understands language has to judge, with its own errors.

# %% [markdown]
# ### Several people, one answer
#
# VQA asked ten people about each picture. Each of the ten is left out once, the answer scores min(matches / 3, 1)
# against the other nine, and the ten scores are averaged. In this way a model is compared with nine people, just as
# one of the ten would be. Leaving one out lowers the score wherever one to three people agree ([exercise
# 10.2](../exercises/10_evaluation.ipynb)):

# %% tags=["nbval-check-output"]
for agreeing in range(6):
    people = ["red"] * agreeing + ["orange"] * (10 - agreeing)
    simple = min(agreeing / 3, 1)
    score = vqa_accuracy("Red", people)
    print(f"{agreeing} of 10 say red: {score:.2f}, without leaving out {simple:.2f}")

# %% [markdown]
# ## Every share needs an interval that holds at the edge
#
# The textbook interval, share ± 1.96 standard errors, is Wald's. It assumes that the share is far from 0 and 1.

# %%
quiz("ch10.all_right")

# %% [markdown]
# Wilson's interval asks a better question: for which true accuracies would a result like this one be no surprise?
# The formula is [exercise 10.3](../exercises/10_evaluation.ipynb). Move both levers, and look at the edges, where
# small tests live.

# %%
from nanovlm.course.chapter_10 import wald
from nanovlm.viz.evaluation import two_intervals


def both_intervals(wrong, questions):
    correct = max(questions - wrong, 0)
    return two_intervals(correct, questions, wald(correct, questions), wilson(correct, questions))


lever(both_intervals, wrong=(0, 20), questions=[20, 60, 240, 500])

# %% [markdown]
# How many questions does a claim need? The half width falls with the root of their number, so half the width costs
# four times the questions.

# %% tags=["nbval-check-output"]
from nanovlm.evaluation.statistics import questions_needed

for points in (5, 2, 1, 0.5):
    print(f"± {points:3} points at 35 %: {questions_needed(0.35, points / 100):6,} questions")
low, high = wilson(530, 1500)
print(f"530 of 1,500, MMStar's size: {530 / 1500:.1%}, from {low:.1%} to {high:.1%}")

# %% [markdown]
# ## Two models on the same questions are compared question by question
#
# Does rounding the weights harm the model? We make copies with fewer bits for each weight (chapter 16 does this
# well; here it is done badly on purpose) and ask all of them the turned questions.

# %%
from copy import deepcopy


def rounded(model: VisionLanguageModel, bits: int) -> VisionLanguageModel:
    """Each row of each weight matrix on 2 ** bits - 1 levels."""
    copy, levels = deepcopy(model), 2 ** (bits - 1) - 1
    with torch.no_grad():
        for weight in copy.parameters():
            if weight.ndim == 2:
                step = weight.abs().amax(dim=1, keepdim=True) / levels
                weight.copy_((weight / step).round() * step)
    return copy


few = {bits: right_of(answer_all(rounded(pocket, bits), turned), expected) for bits in (5, 4, 3)}

# %%
scores = {"32 bits": tilted} | {f"{bits} bits": right for bits, right in few.items()}
rows = [Share(name, s.mean().item(), *interval(int(s.sum()), len(s))) for name, s in scores.items()]
share_rows("The turned questions, each model with its own interval", rows)

# %%
quiz("ch10.paired")

# %% [markdown]
# The rows above leave out the most useful fact: all models answered *the same* questions. A hard question is hard
# for all of them, and that difficulty cancels in the difference. The **paired bootstrap** draws questions with
# replacement, many times, takes both models' answers to the drawn ones, and reports where the difference lies in 95
# % of the draws ([exercise 10.8](../exercises/10_evaluation.ipynb)). **McNemar's test** looks only at the questions
# on which one model is right and the other wrong. Its **p** is the probability of a split at least as uneven as this
# one if both models were equally good.

# %%
from nanovlm.evaluation.statistics import mcnemar

drawn = torch.randint(len(tilted), (1000, len(tilted)), generator=torch.Generator().manual_seed(0))
for bits, right in few.items():
    gain, low, high = paired_bootstrap(tilted, right, drawn)
    differ = int((right != tilted).sum())
    p = mcnemar(tilted.bool().tolist(), right.bool().tolist())
    ends = f"{100 * low:+.1f} to {100 * high:+.1f}"
    print(f"{bits} bits: {100 * gain:+5.1f} points ({ends}), {differ} differ, p = {p:.3f}")

# %% [markdown]
# Where the interval contains 0, this test does not show a loss. That is not the same as *no loss*: the interval
# also says how large a loss could still be. Report it, rather than “no significant difference”.

# %% [markdown]
# ## A score means something only beside a blind baseline
#
# How much of a score needs the picture? Four baselines answer that, from the cheapest to the most expensive:
#
# 1. **guessing** among the possible answers;
# 2. **the most frequent answer** to each question text in the training data;
# 3. **the model with exchanged pictures**: it reads the question and looks at the wrong thing;
# 4. **a model trained without pictures**, which can learn whatever the questions give away, and costs a training run
#    of its own.

# %%
from nanovlm.data.thimble import chance

train = Thimble("shapes", "train")
frequent: dict[str, Counter] = {}
for i in range(budget().pick(ci=500, laptop=2000)):
    for turn in train[i]["texts"]:
        frequent.setdefault(turn["user"], Counter())[turn["assistant"]] += 1
prior = [frequent.get(q.text, Counter(["?"])).most_common(1)[0][0] for q in questions]
print(f"guessing          {sum(chance('shapes')[q.kind] for q in questions) / len(questions):.1%}")
print(f"most frequent     {right_of(prior, expected).mean():.1%}")

# %% [markdown]
# For the third, each sample gets another sample's picture. A random permutation would leave some pictures where
# they are, so the samples form a ring instead ([exercise 10.4](../exercises/10_evaluation.ipynb) mends a version
# that does not).

# %%
order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
other = blind_pairing(["shapes"] * len(samples), order)
exchanged = [replace(q, images=samples[other[q.sample]]["images"]) for q in questions]
blind = right_of(answer_all(pocket, exchanged), expected)
low, high = interval(int(blind.sum()), len(blind))
print(f"own pictures       {upright.mean():.1%}")
print(f"exchanged pictures {blind.mean():.1%}, from {low:.1%} to {high:.1%}")

# %% [markdown]
# For the fourth, the small model of chapter 08 was trained for 300 steps with a black picture in every sample, by
# `python -m nanovlm.bench.training_runs --only text_only`. It answered the questions about 40 validation pictures:

# %%
from nanovlm.course.runs import stored_runs
from nanovlm.training.probe import mean

text_only = stored_runs("08_gallery")["text_only"]
share = mean(text_only["evaluations"][-1]["accuracy"])
low, high = interval(round(share * text_only["questions"]), text_only["questions"])
print(f"trained without pictures {share:.1%}, from {low:.1%} to {high:.1%}")

# %% [markdown]
# The Thimble is drawn so that these four agree within a few points. Real benchmarks are not: the authors of
# MMStar found that GeminiPro answers 42.9 % of MMMU's questions *without any picture*, and made MMStar because of it
# ([Chen et al. 2024](https://arxiv.org/abs/2403.20330)). On such a test 45 % may mean two points of seeing.

# %% [markdown]
# ## Multiple choice by letter measures whether it knows letters
#
# MMStar's questions come with options A to D, and so does the Thimble's multiple choice, in the same schema. Here
# is one, and what the pocket model says when it is asked for the letter.

# %%
from nanovlm.evaluation.multiple_choice import evaluate_choice, lenient_letter, strict_letter

choice = [multiple_choice_sample(i) for i in range(budget().pick(ci=24, laptop=90))]
print(choice[0]["question"], "\n  right:", choice[0]["answer"], "\n")
by_letter = evaluate_choice(pocket, choice, "letter")
correct = sum(score.correct for score in by_letter.scores.values())
print(f"strict letter: {correct} of {len(choice)} right")
for question, answer in by_letter.answers[:5]:
    accepted = strict_letter(answer, question.answer)
    print(f"{answer!r:45} expected {question.answer}, strict: {accepted}")

# %% [markdown]
# The letter protocol finds next to no right answer, although the same model answered every question above. It was
# never trained on letters, and so what this protocol measured is the format, not the sight. A model trained on such
# questions may show the opposite: letters in perfect form, and guessed.

# %% [markdown]
# ### A regex that is too kind
#
# Answers are seldom a bare letter, so scorers search for one. nanoVLM v0.1 took an answer as right if the letter
# occurred as a word of its own, or anywhere between parentheses ([`models/utils.py` at
# v0.1](https://github.com/huggingface/nanoVLM/blob/v0.1/models/utils.py)). The package keeps that behaviour as
# `lenient_letter`, for comparison only.

# %%
quiz("ch10.alphabet")

# %% tags=["nbval-check-output"]
for answer in ("B", "b", "(B)", "A cat", "A, B, C, D", "Not B", "I see (a Big dog)"):
    strict, lenient = strict_letter(answer, "B"), lenient_letter(answer, "B")
    print(f"{answer:20} for B: strict {strict!s:6} lenient {lenient}")

# %% [markdown]
# The regex errs both ways: it takes sentences, and it refuses “b”. A short test would have shown it, and [exercise
# 10.5](../exercises/10_evaluation.ipynb) is to write that test. Now let the pocket model do something that has
# nothing to do with the question: it *describes* each picture, and the regex scores the descriptions as answers.
# Descriptions of signs begin with an article, as in “A red sign with 3 characters”.

# %%
described = pocket.generate(
    prompt=["Describe the picture."] * len(choice),
    image=[c["image"] for c in choice],
    max_new_tokens=40,
)
by_accident = [lenient_letter(text, c["answer"]) for text, c in zip(described, choice, strict=True)]
hit = next((i for i, accident in enumerate(by_accident) if accident), 2)
print(f"{described[hit]!r} counts as the answer {choice[hit]['answer']}: {by_accident[hit]}")
signs = [hit for hit, c in zip(by_accident, choice, strict=True) if c["category"] == "glyphs"]
for name, taken in (("descriptions", by_accident), ("those of signs", signs)):
    print(f"{name:14} scored as answers: {sum(taken)} of {len(taken)}")

# %% [markdown]
# ## Multiple choice by likelihood asks what the model knows
#
# A decoder gives every text a probability. So take the question without its options, put each option behind it, and
# add up the log-probabilities of the option's tokens, *the end token included*: without it, “1” would always be at
# least as probable as “14”, which begins with it.

# %%
from nanovlm.evaluation.likelihood import answer_log_probs
from nanovlm.evaluation.multiple_choice import split_options

stem, options = split_options(choice[0]["question"])
texts = list(options.values())
sums, counts = answer_log_probs(pocket, [stem] * 4, [[choice[0]["image"]]] * 4, texts)
print(stem, "right:", choice[0]["answer"])
for letter, text, total, tokens in zip(options, texts, sums.tolist(), counts.tolist(), strict=True):
    print(f"{letter}  {text:14} sum {total:8.2f}   {tokens} tokens   mean {total / tokens:7.2f}")

# %%
quiz("ch10.length")

# %% [markdown]
# Three ways to make options comparable are in use: the **sum**, the **mean** over tokens, and the sum minus the
# option's log-probability **without the picture**, which removes what is frequent anyway (after [Holtzman et al.
# 2021](https://arxiv.org/abs/2104.08315), who did this for texts; here a grey picture takes the picture's place). On
# the upright pictures the pocket model picks the right option in all 90 questions by each of the three, so we ask
# about turned ones. [Exercise 10.9](../exercises/10_evaluation.ipynb) computes such scores from raw logits.

# %%
from nanovlm.evaluation.robustness import turned as turn_image

tilted_choice = [{**c, "image": turn_image(c["image"], 10)} for c in choice]
protocols = {
    "strict letter": evaluate_choice(pocket, tilted_choice, "letter"),
    "lenient regex": evaluate_choice(pocket, tilted_choice, "lenient"),
}
for name in ("sum", "mean", "unconditional"):
    protocols[f"likelihood, {name}"] = evaluate_choice(pocket, tilted_choice, "likelihood", name)


# %%
def share_of(name, correct, total):
    return Share(name, correct / total, *interval(correct, total))


rows = [share_of("descriptions (upright), regex", sum(by_accident), len(by_accident))]
for name, result in protocols.items():
    rows.append(share_of(name, sum(s.correct for s in result.scores.values()), len(choice)))
share_rows("One model, one set of questions, six protocols", rows, chance=0.25)

# %% [markdown]
# The same weights give anything from nearly nothing to most of the questions. None of these numbers is *the*
# accuracy. Two models may be compared within a row, and never across rows.

# %% [markdown]
# One check belongs to every letter protocol. A model that always says A gets 25 %. **Circular evaluation** asks
# each question once for every rotation of its options and counts it only if all answers are right ([Liu et al.
# 2023](https://arxiv.org/abs/2307.06281)), so that such a model gets 0. What is left of the descriptions that the regex
# took for answers?

# %%
from nanovlm.evaluation.multiple_choice import rotated

letters = [[rotated(c, by)["answer"] for by in range(4)] for c in choice]
said = {"always A": ["A"] * len(choice), "descriptions": described}
for name, texts in said.items():
    found = [[lenient_letter(t, a) for a in row] for t, row in zip(texts, letters, strict=True)]
    plain, circular = sum(row[0] for row in found), sum(map(all, found))
    print(f"{name:13} plain {plain:2} of {len(found)}, circular {circular}")

# %% [markdown]
# A likelihood of option texts needs no such check, because it never sees the letters or their order.

# %% [markdown]
# ## The story of 35.3 %
#
# Now the opening number can be read. Everything here is in nanoVLM's repository at v0.1, commit
# [`6ba9082`](https://github.com/huggingface/nanoVLM/tree/6ba9082e16f1fc8c21a1f8d0c54b26c9233c8771):
#
# - **The scorer** is the regex above
#   ([`utils.py`](https://github.com/huggingface/nanoVLM/blob/v0.1/models/utils.py)).
# - **The answer is sampled** from the full distribution, up to five tokens
#   ([`generate`](https://github.com/huggingface/nanoVLM/blob/v0.1/models/vision_language_model.py)).
# - **The checkpoint is chosen on MMStar**: every 250 steps it is evaluated there, and the best one is saved
#   ([`train.py`](https://github.com/huggingface/nanoVLM/blob/v0.1/train.py)).
# - **The training data** contain ai2d and scienceqa
#   ([`config.py`](https://github.com/huggingface/nanoVLM/blob/v0.1/models/config.py)), two of the sources that
#   MMStar draws its questions from, by its paper.

# %% [markdown]
# What does sampling cost? The pocket model is sure of most answers, so a draw seldom differs from the likeliest
# answer. A model that hesitates between letters pays more, and gets another score every time.

# %%
asked = turned[:60]
prompts = {"prompt": [q.text for q in asked], "image": [q.images for q in asked]}
greedy = tilted[: len(asked)].mean()
for seed in range(3):
    given = pocket.generate(**prompts, temperature=1.0, seed=seed)
    sampled = right_of(given, expected[: len(asked)]).mean()
    print(f"sampled, seed {seed}: {sampled:.1%}; greedy: {greedy:.1%}")

# %% [markdown]
# What does choosing buy? The [published
# curve](https://github.com/huggingface/nanoVLM/blob/v0.1/assets/nanoVLM-222M-loss.png) ends at about 32,700 steps,
# so there were about 131 looks. Suppose that nothing changed between them: one model, a true accuracy of 33
# %, fresh luck at each look. [Exercise 10.6](../exercises/10_evaluation.ipynb) measures the same.

# %%
quiz("ch10.selection")

# %%
from nanovlm.evaluation.statistics import best_of
from nanovlm.viz.evaluation import selection_figure


def choosing(looks, true_share):
    single, best = (best_of(true_share, 1500, n, trials=1000) for n in (1, looks))
    return selection_figure(true_share, single.tolist(), best.tolist(), looks)


lever(
    choosing,
    start={"looks": 131, "true_share": 0.33},
    looks=[1, 5, 40, 131],
    true_share=[0.25, 0.33, 0.5],
)

# %%
best_of_131 = best_of(0.33, 1500, 131)
print(
    f"true 33.0 %, reported {best_of_131.mean():.1%}; from {best_of_131.quantile(0.025):.1%} to "
    f"{best_of_131.quantile(0.975):.1%} in 95 % of the stories"
)

# %% [markdown]
# This simulation is a bound and not a reconstruction. Looks at neighbouring checkpoints share their questions and
# most of their weights, so they are less independent than assumed, and real training does improve the model.
# Sampled answers, on the other hand, add fresh luck at every look. What the simulation shows is the size: choosing
# alone can be worth about three of the five points that separate nanoVLM's number from LLaVA's.

# %% [markdown]
# An independent look exists: a contributor ran the *larger* nanoVLM-450M with another tool, VLMEvalKit, and got
# **31.6 %** ([issue 89](https://github.com/huggingface/nanoVLM/issues/89)). None of this says that the model is
# bad. It says that 35.3 % and 30.3 % are answers to different questions. nanoVLM's later versions evaluate with
# [lmms-eval](https://github.com/huggingface/nanoVLM/blob/37fd9f1abb010acc01b97d691201767337ce0eb3/eval/lmms_eval_wrapper.py),
# a tool that many models share.

# %% [markdown]
# ## Caption scores count words, not facts
#
# **BLEU** asks which share of a caption's runs of one to four words occurs in a reference. Each run counts at most
# as often as in the reference, the four shares are averaged geometrically, and short captions are punished
# ([Papineni et al. 2002](https://aclanthology.org/P02-1040/)). The whole is [exercise
# 10.10](../exercises/10_evaluation.ipynb); by hand, for single words and pairs:

# %% tags=["nbval-check-output"]
from nanovlm.evaluation.captions import cider, fact_f1, ngrams

texts = "a red circle above a blue square", "a blue square above a red square"
reference, candidate = (text.split() for text in texts)
for n in (1, 2):
    own, theirs = ngrams(candidate, n), ngrams(reference, n)
    print(
        f"{n}: found {(own & theirs).total()} of {own.total()}; not found or too often:",
        ", ".join(" ".join(gram) for gram in own - theirs),
    )

# %%
quiz("ch10.swap")

# %% [markdown]
# **CIDEr** weighs each run by how rare it is over all pictures, so that “red circle” counts more than “top left”
# ([Vedantam et al. 2015](https://arxiv.org/abs/1411.5726)). And because the Thimble's captions are lists of facts, we
# can simply check the facts: place, colour and shape of each object. **F1** is the harmonic mean of two shares: of the
# stated facts those that are true, and of the true facts those that are stated. Two versions of every caption compete:
# one is true and in another order, one has two shapes exchanged (where the picture has two).

# %% tags=["nbval-check-output"]
from nanovlm.course.chapter_10 import exchanged_shapes, reworded

captions = [shapes[i]["texts"][-1]["assistant"] for i in range(40)]
print(captions[0], "\n", reworded(captions[0]), "\n", exchanged_shapes(captions[0]))
references = [[caption] for caption in captions]
for name, make in (("true, reworded", reworded), ("two shapes exchanged", exchanged_shapes)):
    made = [make(caption) for caption in captions]
    print(
        f"{name:22} BLEU {bleu(made, references):.2f}   "
        f"CIDEr {cider(made, references).mean():5.2f}   F1 of facts {fact_f1(made, captions):.2f}"
    )

# %% [markdown]
# BLEU and CIDEr both prefer the false caption, because it keeps more runs of words in their order. Wherever the
# facts can be read off, count facts. Where they cannot, people let a large language model judge, and inherit its
# biases: judges prefer longer answers and the one that is shown first ([Zheng et al.
# 2023](https://arxiv.org/abs/2306.05685)).

# %%
made = [reworded(caption) for caption in captions]
try:
    from sacrebleu import BLEU

    theirs = BLEU(tokenize="none", smooth_method="none").corpus_score(made, [captions]).score / 100
    print(f"sacrebleu {theirs:.4f}, ours {bleu(made, references):.4f}")
except ImportError:
    print("sacrebleu is not installed here (pip install sacrebleu).")

# %% [markdown]
# ## Retrieval compares, and ties must cost
#
# Does a picture find its own caption among others? Score each caption for each picture by likelihood, look along
# the rows for *picture to text* and down the columns for *text to picture*. Recall@k is how often the right one is
# among the best k. By chance it is k / N. ([Exercise 10.7](../exercises/10_evaluation.ipynb) is to write it.)

# %%
from nanovlm.evaluation.retrieval import caption_scores

many = budget().pick(ci=8, laptop=14)
small = [q.images[0] for q in changed(questions, "three quarters of the size")][::6][:many]
grid = caption_scores(pocket, small, captions[:many])  # [pictures, texts]
for k in (1, 3):
    forth, back = recall_at_k(grid, k)
    chances = f"by chance {k / many:.0%}"
    print(f"recall@{k}: picture to text {forth:.0%}, text to picture {back:.0%}, {chances}")
print("a model that scores everything equally:", tuple(recall_at_k(torch.zeros(many, many), 1)))

# %% [markdown]
# The two directions need not agree. A caption that suits every picture wins many rows, and spoils *picture to
# text*, but in its own column it may still find its picture.
#
# And recall depends on the company. Add a **hard negative** for each picture to the captions: its own caption, in which
# two shapes are exchanged as above. Predict the recall among twice as many candidates.

# %%
hard = caption_scores(pocket, small, [exchanged_shapes(caption) for caption in captions[:many]])
own = grid.diagonal()  # [pictures]
candidates = {"the captions": grid, "hard negatives, too": torch.cat([grid, hard], dim=1)}
for name, others in candidates.items():
    first = (own >= others.amax(dim=1)).float().mean()
    print(f"{name:20} picture to text, recall@1 of {others.shape[1]}: {first:.0%}")
print(f"its own caption before its own hard negative: {(own > hard.diagonal()).float().mean():.0%}")

# %% [markdown]
# The model tells one picture's caption from another's. But asked which of two shapes is where, it does little better
# than a guess, as far as so few pictures can show. So report with every recall how many
# candidates there were, and how they were chosen.

# %% [markdown]
# ## Reading needs a score for nearly right
#
# A sign “MXJ” that is read as “MXI” is wrong by exact match and right in two characters of three. The **character
# error rate** counts edits per expected character. **ANLS** turns edits into a similarity for each answer, and sets
# it to 0 below one half, so that guessing earns nothing ([Biten et al. 2019](https://arxiv.org/abs/1905.13648)).

# %%
from nanovlm.evaluation.answers import anls, character_error_rate

glyphs = Thimble("glyphs", "test")
signs = [q for q in questions_of([glyphs[i] for i in range(len(samples))]) if q.kind == "read"]
for name in ("as drawn", "turned by 5°", "turned by 10°"):
    read, true = answer_all(pocket, changed(signs, name)), [q.answer for q in signs]
    similar = sum(anls(a, [e]) for a, e in zip(read, true, strict=True)) / len(read)
    print(
        f"{name:14} exact {right_of(read, true).mean():4.0%}   ANLS {similar:.2f}   "
        f"characters wrong {character_error_rate(read, true):4.0%}   e.g. {read[0]} for {true[0]}"
    )

# %% [markdown]
# A count deserves the same. “3” for “4” is a smaller error than “1” for “4”, and the **mean absolute error** says
# so where exact match does not.

# %%
answered = zip(turned, turned_answers, strict=True)
errors = [abs(int(a) - int(q.answer)) for q, a in answered if q.kind == "count"]
exact, absolute = errors.count(0) / len(errors), sum(errors) / len(errors)
print(f"counts: exact {exact:.0%}, mean absolute error {absolute:.2f}")

# %% [markdown]
# ## Yes/no probes show bias before they show sight
#
# Does a model see things that are not there? **POPE** asks “Is there a …?” about one object that is there and one
# that is not ([Li et al. 2023](https://arxiv.org/abs/2305.10355)). The absent one is drawn at random, or is a
# *popular* object, or an *adversarial* one that goes with the others. Accuracy alone hides the usual failure, so
# look at how often it says yes.

# %%
from nanovlm.evaluation.probes import NEGATIVES, probes, yes_no

for name in ("as drawn", "turned by 15°"):
    for negatives in NEGATIVES:
        asked = probes(negatives, budget().pick(ci=8, laptop=25))
        result = yes_no(answer_all(pocket, changed(asked, name)), [q.answer for q in asked])
        print(f"{name:14} {negatives:12} accuracy {result.accuracy:4.0%}", end="   ")
        print(f"says yes {result.yes_share:4.0%}   finds {result.recall:4.0%} of what is there")

# %% [markdown]
# On turned pictures the pocket model falls back on *no*: it denies most of what is there, and its accuracy still
# stays around one half or above, because half of the right answers are *no*. Several of the large models in POPE's
# paper lean the other way. A model that always says yes has an accuracy of 50 %, finds everything, and sees nothing.

# %% [markdown]
# ## A model at 100 % can fail after small changes
#
# One change is an anecdote, so here are nine: pictures turned (by three angles), shrunk, darkened, blurred or grey, and
# questions spelled in two other ways. Each row asks the same questions.

# %%
from nanovlm.evaluation.robustness import CHANGES

some = questions[: 6 * budget().pick(ci=5, laptop=15)]
truth = [q.answer for q in some]
answers = {name: answer_all(pocket, changed(some, name)) for name in CHANGES}
kinds = ["all kinds", *dict.fromkeys(q.kind for q in some)]


def after_changes(kind):
    rows = []
    for name, given in answers.items():
        pairs = zip(given, some, strict=True)
        kept = [a == q.answer for a, q in pairs if kind in ("all kinds", q.kind)]
        rows.append(share_of(name, sum(kept), len(kept)))
    return share_rows(f"The same questions after a change: {kind}", rows)


lever(after_changes, kind=kinds)

# %% [markdown]
# Blur and five degrees cost little. Ten degrees and a smaller size cost much, because the training pictures contain
# neither turned shapes nor such small ones. One missing letter, “colur”, breaks questions about colour, since the model
# knows the word as a sequence of tokens and not as a spelling. The American “color” does no harm, but only because an
# embedding was trained for it (chapter 05). None of this is visible at 100 %.

# %% [markdown]
# The grey row is no fault of the model: a grey picture does not contain the answer to a question about colour.

# %% [markdown]
# ## A model should know when it does not know
#
# The probability that a model gives its own answer is its **confidence**. If answers at 90 % confidence are right
# nine times in ten, it is **calibrated**. To measure that, answers of similar confidence are put into one bin; the mean
# gap between confidence and accuracy over the bins, weighted by their sizes, is the expected calibration error, ECE.

# %%
quiz("ch10.sure")

# %%
from nanovlm.evaluation.calibration import expected_calibration_error, reliability, risk_coverage
from nanovlm.viz.evaluation import calibration_figure


def confidence_of(name: str) -> tuple[Tensor, Tensor]:
    """The probability of each given answer, and whether it is right. [questions] each"""
    asked = changed(some, name)
    texts, images = [q.text for q in asked], [q.images for q in asked]
    log_probs, _ = answer_log_probs(pocket, texts, images, answers[name])
    return log_probs.exp(), right_of(answers[name], truth)


# %%
measured = {name: confidence_of(name) for name in ("as drawn", "turned by 10°", "turned by 15°")}
for name, (sure, right) in measured.items():
    gap = expected_calibration_error(sure, right)
    print(f"{name:14} sure {sure.mean():.0%}, right {right.mean():.0%}, ECE {gap:.2f}")


# %%
def calibration(change):
    sure, right = measured[change]
    coverage, risk = risk_coverage(sure, right)
    return calibration_figure(reliability(sure, right), coverage.tolist(), risk.tolist())


lever(calibration, start={"change": "turned by 15°"}, change=list(measured))

# %% [markdown]
# On the right is what confidence is good for even where it is too high: answer the surest questions first, and
# refuse the rest. If the share of wrong answers rises with the share of questions that are answered, the order of the
# confidences carries information, and a model that may say “I don't know” can use it. If the curve is flat, the
# confidence says nothing.

# %% [markdown]
# ## Copies of the test in the training data can be found
#
# Two cheap searches find exact and nearly exact copies. Texts: which test questions share a run of n words with a
# training text? (The package takes 8; for the short questions below we take 6.) Pictures: shrink to 8 × 8 grey cells,
# note for each whether it is brighter than the mean, and compare these 64 bits. We plant a leak, a test picture that
# was enlarged, shrunk and brightened.

# %%
from PIL import ImageEnhance

from nanovlm.evaluation.contamination import near_copies, shared_ngrams

# %%
training = [train[i]["images"][0] for i in range(budget().pick(ci=60, laptop=400))]
leaked = samples[3]["images"][0].resize((100, 100)).resize((64, 64))
training[17] = ImageEnhance.Brightness(leaked).enhance(1.1)
print("pictures:", near_copies([sample["images"][0] for sample in samples], training, most=2))
in_test = ["Which bar is the tallest of the four bars here?"]
in_training = ["Look: which bar is the tallest of the four bars?"]
print("texts:   ", shared_ngrams(in_test, in_training, n=6))

# %% [markdown]
# Other pairs may appear beside the planted one: at 64 bits, simple drawings collide, so look at what was found. What is
# a leak worth? A model that is right 35 % of the time and has memorised a share of the test
# gains at most:

# %% tags=["nbval-check-output"]
for leak in (0.01, 0.0305, 0.1):
    print(f"{leak:5.1%} of the test known by heart: 35.0 % becomes {0.35 + leak * 0.65:.1%}")

# %% [markdown]
# The middle row is the leakage that the authors of FineVision report for the_cauldron; for their own data they
# report 1.02 % ([Wiedmann et al. 2025](https://arxiv.org/abs/2510.17269)). Two points are less than the half width
# of MMStar's interval, so a leak of that size would be hard to notice from the score alone.

# %% [markdown]
# ## Save the answers, not only the score
#
# A score cannot be re-scored. Answers can: with a file of one line for each question you can change the rule, test
# a new scorer, or pair two models, months later and without a GPU. Here the turned questions are written, read
# back, and scored by another rule.

# %%
path = Path(mkdtemp()) / "turned.jsonl"
lines = [
    {"text": q.text, "kind": q.kind, "expected": q.answer, "answer": a}
    for q, a in zip(turned, turned_answers, strict=True)
]
path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
again = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
rules = {"exact": lambda a, e: a == e, "first word": lambda a, e: a.split()[:1] == e.split()[:1]}
for name, rule in rules.items():
    right = sum(rule(line["answer"], line["expected"]) for line in again)
    print(f"{name:11}{right} of {len(again)}")

# %% [markdown]
# From a shell, one command runs these protocols on any model directory (likelihood with the mean over tokens):
#
# ```
# nanovlm evaluate --model pocket --protocol likelihood --size 200 --json scores.json
# nanovlm evaluate --model pocket --protocol lenient --size 200
# ```
#
# It asks about the Thimble, and `--json` writes the counts of right answers: to keep the answers, write them yourself, as
# in the cell above.
#
# For comparison with published numbers, use the tool that made them. `nanovlm.evaluation.lmms` is an adapter with
# which [lmms-eval](https://pypi.org/project/lmms-eval/0.7.3/) runs our models, on MMStar among others; the beginning of
# that file shows the five lines that it takes. lmms-eval is optional and large, and best installed in an environment of
# its own.

# %% [markdown]
# ## Your model, judged by your metrics
#
# `yours()` builds the pocket model out of the parts that you have written so far: with your attention, your cache, your
# decode loop and whatever else has passed its check. Here it answers turned questions, your rules of exercise 10.1
# decide what is right, and your Wilson interval says how sure that is.

# %%
from nanovlm.course import yours

few_turned = turned[: budget().pick(ci=30, laptop=120)]
said = answer_all(yours(), few_turned)
pairs = [
    (normalise_answer(a), normalise_answer(q.answer)) for a, q in zip(said, few_turned, strict=True)
]
right = sum(a == b for a, b in pairs)
low, high = wilson(right, len(pairs))
print(f"{right} of {len(pairs)} right, from {low:.0%} to {high:.0%}")
package = sum(tilted[: len(pairs)].tolist())
print(f"the package's own model and scorer: {package:.0f} of {len(pairs)}")

# %% [markdown]
# The two numbers agree if your parts compute what they should. Where they do not, the first answer that differs leads you
# to the part.

# %% [markdown]
# ## Where this lives in the package
#
# All of it is in `nanovlm/evaluation/`: `scores.py` (exact match, blind baseline, intervals), `answers.py`,
# `statistics.py`, `likelihood.py`, `multiple_choice.py`, `captions.py`, `retrieval.py`, `probes.py`,
# `robustness.py`, `calibration.py`, `contamination.py` and `lmms.py`.
#
# **Ten lines before you believe a number**

# %% [markdown]
# 1. How many questions, and which interval?
# 2. What does the model score without the picture?
# 3. Which prompt, and does it list the options?
# 4. Greedy or sampled, and with how many tokens?
# 5. What counts as right? Read the scorer, and test it with “A cat”.
# 6. On which data was the checkpoint chosen?
# 7. Do training and test share sources or pictures?
# 8. Compared with what, by the same protocol, on the same questions?
# 9. What happens after a small change?
# 10. Are the answers themselves published?

# %% [markdown]
# ## The challenge: a benchmark that it fails and you pass
#
# Collect a hundred questions about pictures which you answer at once and the pocket model does not. The score is
# the share that it gets *wrong*, with its interval. A question on which people disagree does not count. Turning all
# pictures by 90 degrees is too easy, so use at least five kinds of difficulty, none of which fills more than a third.
# Here is a start of two, both of one kind.

# %%
items = [question for question, _ in failed[:2]]  # put your own here
mine = [question.answer for question in items]  # what you say: look, and write it down
its = answer_all(pocket, items)
wrong = sum(a != e for a, e in zip(its, mine, strict=True))
low, high = interval(wrong, len(items))
print(f"the pocket model fails {wrong} of {len(items)}: from {low:.0%} to {high:.0%}")

# %% [markdown]
# Further on the road: MMStar's paper ([Chen et al. 2024](https://arxiv.org/abs/2403.20330)) for what benchmarks
# leave unnoticed, and “Adding Error Bars to Evals” ([Miller 2024](https://arxiv.org/abs/2411.00640)) for the
# statistics. The next chapter prepares the training of a model of full size.

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/10_evaluation.ipynb) ([in Colab][exercises]): 10 of them, about 2.2 hours.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/10_evaluation.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 10.1 | Two answers that mean the same (`evaluation.normalise_answer`) | ●○○ | 10 |
# | 10.2 | Ten people, one answer (`evaluation.vqa_accuracy`) | ●○○ | 8 |
# | 10.3 | An interval that survives 500 of 500 (`evaluation.wilson`) | ●○○ | 10 |
# | 10.4 | Mend it: some pictures stay where they are (`evaluation.blind_pairing`) | ●●○ | 12 |
# | 10.5 | Write the test: which scorers are broken? (`evaluation.scorer_test`) | ●●○ | 12 |
# | 10.6 | Measure what choosing buys (`evaluation.selection_gain`) | ●●○ | 12 |
# | 10.7 | Is its own text among the first k? (`evaluation.recall_at_k`) | ●●○ | 12 |
# | 10.8 | Is the second model better? (`evaluation.paired_bootstrap`) | ●●○ | 15 |
# | 10.9 | Which option does it find most probable? (`evaluation.pick_option`) | ●●● | 20 |
# | 10.10 | BLEU by hand (`evaluation.bleu`) | ●●● | 25 |
#
# Next: [11 Full training](11_full_training.ipynb)
