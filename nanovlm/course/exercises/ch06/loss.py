"""Chapter 06: the loss on the answer alone, and the forward pass of the whole model."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig
from nanovlm.course.exercises.ch06.embed import IMAGE
from nanovlm.course.exercises.ch06.merge import must_refuse
from nanovlm.course.exercises.common import as_wide_as, noise
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect, with_weights
from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel, VLMOutput

# -- fusion.answer_loss ------------------------------------------------------------------------------------------------


def answer_loss(head: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[B, S, dim] and targets [B, T] of the last T positions -> logits [supervised, vocab_size], mean loss."""
    supervised = targets != IGNORE
    logits = head(x[:, x.shape[1] - targets.shape[1] :][supervised])
    if logits.shape[0] == 0:
        raise ValueError("No token is supervised: every target is -100, so there is no mean loss.")
    return logits, F.cross_entropy(logits.float(), targets[supervised])


def small_head(vocab_size: int, dim: int) -> nn.Linear:
    return with_weights(nn.Linear(dim, vocab_size, bias=False))  # type: ignore[return-value]


def run_loss(loss: Any, head: nn.Module, x: Tensor, targets: Tensor, refuse: str = "") -> Any:
    def run() -> Any:
        out = loss(head, x, targets)
        if refuse and isinstance(out, (tuple, list)) and len(out) == 2 and isinstance(out[1], Tensor):
            expect(out[1].isnan(), NOT_NAN)
        return out

    return must_refuse(run, refuse) if refuse else as_wide_as(x, run())


NAN = (
    "Every target is -100 here, and the mean over no token is 0 / 0: the gradient is zero, but the loss is NaN, and so "
    "is every mean of losses that it enters, in the log and in any check on it. Raise ValueError."
)
NOT_NAN = (
    "Every target is -100 here, and a loss of 0 or another number came back, as if the model had nothing left to "
    "learn. Nothing was measured, so there is no loss: raise ValueError."
)
LOSS = Exercise(
    id="fusion.answer_loss",
    chapter="06",
    title="Learn from the answer alone",
    difficulty=2,
    minutes=10,
    why="The prompt is given and the picture has no words to predict, so only answers teach. And at 49,152 words the "
    "head costs as much as eight decoder blocks: run it where a target stands, and nowhere else.",
    hints=(
        "Pick first, multiply then: which positions have a target that is not -100?",
        "x may be longer than targets: then image tokens came in front, and the targets belong to the last T "
        "positions. A mask [B, T] as an index picks the supervised vectors of all rows in one go, [n, dim]. The mean "
        "over all n of them is what F.cross_entropy gives.",
        "supervised = targets != -100\n"
        "logits = head(…)                       # of the last T positions, the supervised ones\n"
        "raise ValueError if there is none\n"
        "return logits, F.cross_entropy(logits, targets at the same places)",
    ),
    reference=answer_loss,
    cases=lambda: [
        Case(
            small_head(3, 2),
            noise(1, 3, 2),
            torch.tensor([[IGNORE, 2, 1]]),
            note="three positions, of which two are supervised; three words",
        ),
        Case(
            small_head(5, 4),
            noise(2, 6, 4, seed=1),
            torch.tensor([[IGNORE, 0, 3, 1, 4, IGNORE], [IGNORE, IGNORE, IGNORE, IGNORE, 2, IGNORE]]),
            note="four supervised tokens in one row and one in the other",
        ),
        Case(
            small_head(5, 4),
            noise(2, 7, 4, seed=2),
            torch.tensor([[IGNORE, 1, 4], [0, 3, IGNORE]]),
            note="four image tokens in front: x has 7 positions, targets 3",
        ),
        Case(
            small_head(5, 4),
            noise(2, 3, 4, seed=3),
            torch.tensor([[IGNORE, 1, 4], [IGNORE, IGNORE, IGNORE]]),
            note="a row in which nothing is supervised, beside one with an answer: this is fine",
        ),
        Case(
            small_head(3, 2),
            noise(1, 2, 2),
            torch.tensor([[IGNORE, IGNORE]]),
            refuse=NAN,
            note="no supervised token: this must raise ValueError",
        ),
    ],
    axes={"logits": "supervised vocabulary", "loss": ""},
    call=run_loss,
)


@LOSS.property("the head runs on supervised positions alone")
def _(loss) -> None:
    seen = []
    head = small_head(5, 4)
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel() // 4))
    loss(head, noise(2, 3, 4), torch.tensor([[IGNORE, 1, IGNORE], [IGNORE, 3, IGNORE]]))
    expect(
        sum(seen) == 2,
        f"Of six positions two are supervised, and the head ran on {sum(seen)}. The numbers are right, at three times "
        "the work: pick the supervised positions first, then run the head."
        if sum(seen) == 6
        else f"Of six positions two are supervised, and the head ran on {sum(seen)} in all its calls.",
    )


@LOSS.property("the loss sends a gradient to the head and to the decoder's output")
def _(loss) -> None:
    head, x = small_head(5, 4), noise(1, 3, 4).requires_grad_()
    _, value = loss(head, x, torch.tensor([[IGNORE, 1, 3]]))
    expect(
        value.requires_grad,
        "The loss is cut off from what it was computed from (no_grad, detach or item), so no "
        "gradient can flow and nothing is learnt.",
    )
    value.backward()
    expect(head.weight.grad is not None, "No gradient reaches the head.")
    expect(x.grad is not None, "The head gets a gradient, but none reaches the decoder's output: is x detached?")


@LOSS.property("a token of a short answer teaches as much as one of a long answer")
def _(loss) -> None:
    x = noise(2, 5, 4).requires_grad_()
    targets = torch.tensor([[0, 1, 2, 3, 4], [IGNORE, IGNORE, 1, IGNORE, IGNORE]])
    loss(small_head(5, 4), x, targets)[1].backward()
    alone = noise(2, 5, 4).requires_grad_()
    answer_loss(small_head(5, 4), alone, targets)[1].backward()
    expect(torch.allclose(x.grad, alone.grad, atol=1e-6), "The gradient is shared out over the tokens in another way.")


def _loss(head, x, targets, wrong=""):
    """answer_loss, with one thing at a time to get wrong."""
    length = targets.shape[1]
    x = x[:, :length] if wrong == "front" else x[:, x.shape[1] - length :]
    if wrong == "shift":
        x, targets = x[:, :-1], targets[:, 1:]
    supervised = targets > 0 if wrong == "zero id" else targets != IGNORE
    if (targets == IGNORE).all() and wrong != "nan":
        raise ValueError
    if wrong == "empty row" and (targets == IGNORE).all(dim=1).any():
        raise ValueError
    logits = head(x if wrong == "everywhere" else x[supervised])
    if wrong == "rows":
        rows = [F.cross_entropy(head(x[i]), targets[i]) for i in range(len(x)) if supervised[i].any()]
        return logits, torch.stack(rows).mean()
    chosen = logits[supervised] if wrong == "everywhere" else logits
    loss = F.cross_entropy(chosen.softmax(-1) if wrong == "softmax" else chosen, targets[supervised])
    if wrong == "nll":
        loss = F.nll_loss(chosen, targets[supervised])
    back = {"probabilities": logits.softmax(-1), "log": logits.log_softmax(-1)}.get(wrong, logits)
    factor = {"all": supervised.float().mean(), "sum": supervised.sum(), "bits": 1 / math.log(2)}.get(wrong, 1)
    return back, loss * factor


for sentence, wrong in (
    ("You divide by all positions. Those without a target add nothing above, so they must not count below.", "all"),
    (
        "This is the mean of the rows' means: the one token of a short answer weighs as much as all of a long one. "
        "Take the mean over all supervised tokens at once.",
        "rows",
    ),
    ("You shift once more. The target at t is the token at t + 1 already: chapter 05 did that.", "shift"),
    ("You read the first T positions of x. Image tokens came in front: the targets belong to the last T.", "front"),
    ("The head runs on every position. Right in value, and much more work: pick first, then multiply.", "everywhere"),
    ("This is the sum of the losses: it grows with the length of the answers. Take the mean.", "sum"),
    ("Without a supervised token the loss is NaN, and goes on its way. Raise ValueError.", "nan"),
    (
        "Targets of 0 are left out, but id 0 is a token like any other. Only -100 means that nothing is asked.",
        "zero id",
    ),
    (
        "You refuse a row without a target, although the batch has others. Raise only if the whole batch has none.",
        "empty row",
    ),
    (
        "A softmax is taken of the logits, and F.cross_entropy takes another: softmax twice. Hand it the logits.",
        "softmax",
    ),
    ("F.nll_loss wants log-probabilities, and gets logits, without a softmax. Use F.cross_entropy.", "nll"),
    ("Probabilities come back in place of the logits. The loss is right; return what the head gave.", "probabilities"),
    ("Log-probabilities come back in place of the logits. The loss is right; return what the head gave.", "log"),
    ("The loss is in bits (logarithms to base 2). Cross-entropy is measured in natural logarithms here.", "bits"),
):
    LOSS.mistake(sentence)(lambda head, x, targets, wrong=wrong: _loss(head, x, targets, wrong))


# -- fusion.forward ----------------------------------------------------------------------------------------------------


@cache
def tiny_model(image_token_id: int | None) -> VisionLanguageModel:
    """A real one: four image tokens a picture, two decoder blocks, 12 words."""
    config = VLMConfig(
        ViTConfig(hidden_dim=4, inter_dim=4, num_blocks=1, num_heads=1, image_size=4, patch_size=1),
        ProjectorConfig(vision_dim=4, language_dim=4, pixel_shuffle_factor=2),
        LMConfig(hidden_dim=4, inter_dim=4, num_blocks=2, num_heads=2, num_kv_heads=1, vocab_size=12, max_positions=32),
        image_token_id=image_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        return with_weights(VisionLanguageModel(config)).eval()  # type: ignore[return-value]


def run_forward(
    forward: Any,
    *args: Any,
    image_token_id: int | None = IMAGE,
    refuse: str = "",
    read_before: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """`read_before` [B, T]: ids that the model has read already, kept in a cache."""
    model = tiny_model(image_token_id)
    if read_before is not None:
        memory = KVCache(model.config.language, len(read_before), 32, like=model.decoder.token_embedding.weight)
        with torch.no_grad():
            model(read_before, cache=memory)
        kwargs["cache"] = memory
    if refuse:
        return must_refuse(lambda: forward(model, *args, **kwargs), refuse)
    out = forward(model, *args, **kwargs)
    if isinstance(out, VLMOutput) and kwargs.get("output_hidden_states"):
        expect(
            out.hidden_states,
            "hidden_states were asked for and none came back: hand the list to the decoder, which fills it.",
        )
    if isinstance(out, tuple) and len(out) == 3 and not hasattr(out, "loss"):
        raise Complaint("The three things are there, but without their names: return VLMOutput(…), not a plain tuple.")
    return out


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


ASKED = [2, *[IMAGE] * 4, 7, 8, 3]
ANSWERED = [*[IGNORE] * 7, 9]
FORWARD = Exercise(
    id="fusion.forward",
    chapter="06",
    title="From ids and pixels to a loss",
    difficulty=2,
    minutes=8,
    why="With it the whole model is in your hands: this method runs the shipped weights at the end of the chapter, "
    "and chapter 08 trains it.",
    hints=(
        "Three steps are left, and you have written the last one already: decoder, head, loss.",
        "embed has returned the vectors and the mask that goes with them; the mask that came in may be too short. "
        "Without targets the head runs at every position and the loss is None.",
        "x = self.decoder(x, the mask of the joint sequence, document_ids, cache, hidden_states)\n"
        "no targets: VLMOutput(self.decoder.head(x), None, hidden_states)\n"
        "else:       VLMOutput(…, hidden_states), with what answer_loss gives",
    ),
    reference=VisionLanguageModel.forward,
    cases=lambda: [
        Case(ids(ASKED), noise(1, 3, 4, 4), note="a picture and three words, no targets"),
        Case(
            ids([*ASKED, 9, 1], [2, 7, 7, 7, 7, 7, 8, 3, 10, 1]),
            noise(1, 3, 4, 4),
            targets=ids([*ANSWERED, 1, IGNORE], [*[IGNORE] * 7, 10, IGNORE, IGNORE]),
            note="a row with a picture and one without, with targets",
        ),
        Case(
            ids([2, 7, 8, 9], [0, 2, 8, 10]),
            noise(2, 3, 4, 4),
            ids([1, 1, 1, 1], [0, 1, 1, 1]),
            ids([IGNORE, 8, 9, IGNORE], [IGNORE, IGNORE, 10, 1]),
            image_token_id=None,
            note="pictures in front, padding, and targets",
        ),
        Case(
            ids([2, 7, 8, 9]),
            noise(1, 3, 4, 4),
            image_token_id=None,
            note="a picture in front, and no targets: logits at every position, also at those of the picture",
        ),
        Case(ids([0, 0, 2, 7, 8]), None, ids([0, 0, 1, 1, 1]), output_hidden_states=True, note="hidden states"),
        Case(
            ids([2, 7, 8, 2, 9, 10]),
            None,
            document_ids=ids([0, 0, 0, 1, 1, 1]),
            note="two documents packed into a row, no picture",
        ),
        Case(
            ids([*ASKED, 2, 9]),
            noise(1, 3, 4, 4),
            document_ids=ids([*[0] * 8, 1, 1]),
            note="two documents packed into a row, and a picture whose placeholders stand in the first: this is fine",
        ),
        Case(ids([8, 9]), read_before=ids([2, 7, 10]), note="two words more, after three that are in the cache"),
        Case(
            ids([2, 7, 2, 9]),
            noise(1, 3, 4, 4),
            document_ids=ids([0, 0, 1, 1]),
            image_token_id=None,
            refuse="A picture went in front of a row that holds two documents: which of them does it belong to? Raise "
            "ValueError.",
            note="packed documents with a picture in front: this must raise ValueError",
        ),
    ],
    axes={"logits": "batch sequence vocabulary", "loss": "", "hidden_states": "batch sequence dim"},
    call=run_forward,
)


@FORWARD.property("every weight gets a gradient from the loss")
def _(forward) -> None:
    import copy

    model = copy.deepcopy(tiny_model(IMAGE))
    out = forward(model, ids([*ASKED, 9]), noise(1, 3, 4, 4), None, ids([*ANSWERED, 1]))
    expect(
        out.loss.requires_grad, "The loss is cut off from the weights (detach, item or no_grad): no gradient can flow."
    )
    out.loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    expect(not idle, f"No gradient reaches {', '.join(idle[:4])}.")


def _forward(
    self,
    input_ids,
    images=None,
    attention_mask=None,
    targets=None,
    document_ids=None,
    output_hidden_states=False,
    cache=None,
    *,
    wrong="",
):
    """forward, with one thing at a time to get wrong."""
    x, mask, num_prefix = self.embed(input_ids, images, attention_mask)
    some_image = images is not None if wrong == "any picture" else num_prefix and wrong != "packed"
    if document_ids is not None and some_image:
        raise ValueError
    states: list[Tensor] | None = [] if output_hidden_states else None
    documents = None if wrong == "documents" else document_ids
    mask = {"mask": None, "incoming": attention_mask}.get(wrong, mask)
    if wrong != "decoder":
        x = self.decoder(x, mask, documents, None if wrong == "cache" else cache, states)
    if targets is None:
        logits = self.decoder.head({"text": x[:, num_prefix:], "last": x[:, -1:]}.get(wrong, x))
        return VLMOutput(logits.softmax(-1) if wrong == "probabilities" else logits, None, states)
    if wrong == "sum":
        logits, loss = answer_loss(self.decoder.head, x, targets)
        return VLMOutput(logits, loss * len(logits), states)
    if wrong == "everywhere":
        loss = F.cross_entropy(self.decoder.head(x[:, num_prefix:]).flatten(0, 1), targets.flatten())
        return VLMOutput(self.decoder.head(x), loss, states)
    if wrong == "shift":
        x, targets = x[:, :-1], targets[:, 1:]
    if wrong == "front":
        x = x[:, : targets.shape[1]]
    return VLMOutput(*answer_loss(self.decoder.head, x, targets), states)


for sentence, wrong in (
    ("The mask does not reach the decoder: words look at padding.", "mask"),
    ("The loss reads the first T positions, but image tokens stand there: go num_prefix places further.", "front"),
    ("You shift the targets. Chapter 05 did that, once: the target at t is the token at t + 1 already.", "shift"),
    ("With targets the head runs on every position. Run it on the supervised ones alone.", "everywhere"),
    ("document_ids does not reach the decoder: one document of a row reads the other.", "documents"),
    ("A picture in front of a packed row goes through. It would belong to every document: raise ValueError.", "packed"),
    (
        "You refuse every picture in a packed row. One that has placeholders stands in its own document: refuse only "
        "image tokens in front.",
        "any picture",
    ),
    (
        "The decoder gets the mask that came in. Where a picture stands in front it is too short: hand on the one that "
        "embed returned.",
        "incoming",
    ),
    ("The cache does not reach the decoder: it forgets all that it has read before.", "cache"),
    ("The vectors never pass through the decoder: the head reads the embeddings.", "decoder"),
    ("The image tokens' logits are missing: without targets the head runs at every position, also in front.", "text"),
    (
        "The head runs on the last position alone. Generation does so (chapter 09); here every position is wanted.",
        "last",
    ),
    ("Probabilities come back in place of logits: no softmax here.", "probabilities"),
    ("This is the sum of the losses: return what answer_loss gives, which is their mean.", "sum"),
):
    FORWARD.mistake(sentence)(lambda *args, wrong=wrong, **kwargs: _forward(*args, wrong=wrong, **kwargs))


@FORWARD.part
def _(code, learner) -> None:
    code.vision_language_model.VisionLanguageModel.forward = learner
