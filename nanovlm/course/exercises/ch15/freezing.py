"""Chapter 15: a test that tells whether freezing freezes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.course.exercises import common
from nanovlm.course.exercises.common import noise, optimizers_ready
from nanovlm.course.judge.exercise import Case, Exercise, with_weights

# -- adapt.freeze_parts ------------------------------------------------------------------------------------------------

Freeze = Callable[[nn.Module, Sequence[str]], None]


class SmallModel(nn.Module):
    """Three parts; the name of one begins with the name of another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.decoder_norm = nn.Linear(4, 3), nn.Linear(3, 3), nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder_norm(self.decoder(self.encoder(x).tanh()))


def small_model() -> nn.Module:
    return with_weights(SmallModel())


def step(model: nn.Module) -> None:
    """One step of AdamW, with weight decay, on all parameters that ask for a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained:
        optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
        (model(noise(8, 4)) - noise(8, 3, seed=1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def freeze_parts(model: nn.Module, frozen: Sequence[str]) -> None:
    for name, part in model.named_children():
        part.requires_grad_(name not in frozen)


def freezes_nothing(model, frozen):
    pass


def freezes_the_others(model, frozen):
    for name, part in model.named_children():
        part.requires_grad_(name in frozen)


def freezes_all(model, frozen):
    model.requires_grad_(False)


def all_but_biases(model, frozen):
    for name, p in model.named_parameters():
        p.requires_grad_(name.partition(".")[0] not in frozen or name.endswith("bias"))


def by_prefix(model, frozen):
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith(tuple(frozen)))


def never_opened_again(model, frozen):
    for name in frozen:
        getattr(model, name).requires_grad_(False)


def gradient_of_zero(model, frozen):
    """The gradient is gone; AdamW still takes the weight decay off."""
    model.requires_grad_(True)
    for name in frozen:
        for p in getattr(model, name).parameters():
            p.register_hook(torch.zeros_like)


def the_first_alone(model, frozen):
    freeze_parts(model, frozen[:1])


PLANTED: dict[str, Freeze] = {
    "nothing is frozen": freezes_nothing,
    "the other parts are frozen": freezes_the_others,
    "everything is frozen": freezes_all,
    "weights are frozen, biases are not": all_but_biases,
    "decoder_norm is frozen with decoder, whose name it begins with": by_prefix,
    "a part that a first call has frozen stays so after a second call that does not name it": never_opened_again,
    "the gradient is zero and weight decay moves the part all the same": gradient_of_zero,
    "of two parts only the first is frozen": the_first_alone,
}


def test_freeze(freeze: Freeze, model: nn.Module, step: Callable[[nn.Module], None]) -> None:
    """Two stages, and of every weight whether it moved."""
    for frozen in (["decoder"], ["encoder", "decoder_norm"]):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        freeze(model, frozen)
        step(model)
        for name, p in model.named_parameters():
            stayed = torch.equal(p, before[name])
            assert stayed == (name.partition(".")[0] in frozen), name


test_freeze.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


def caught(test: Callable[..., None]) -> int:
    optimizers_ready()
    return common.caught(lambda freeze: test(freeze, small_model(), step), freeze_parts, PLANTED, "freeze")


FREEZE = Exercise(
    id="adapt.freeze_parts",
    chapter="15",
    title="Write the test: did only these parts move?",
    difficulty=2,
    minutes=15,
    why="A part that was to stay and moves, or was to learn and stays, costs a run and raises no error. The only proof "
    "is to compare the weights themselves, before and after a step.",
    hints=(
        "What can you see of a weight before and after a step? And what should be true of the weights that are *not* "
        "frozen?",
        "Keep a clone of every parameter, freeze, make a step, and compare each with its clone: a frozen part is equal "
        "to the last bit, every other parameter is not. Then do the same again on the same model with other parts, two "
        "of them, as in a second stage of training.",
        'for frozen in (["decoder"], ["encoder", "decoder_norm"]):\n'
        "    before = {name: … for name, p in model.named_parameters()}\n"
        "    freeze(model, frozen)\n"
        "    step(model)\n"
        "    for name, p in model.named_parameters():\n"
        "        stayed = torch.equal(p, before[name])\n"
        '        assert stayed == (name.partition(".")[0] …), name',
    ),
    reference=test_freeze,
    cases=lambda: [Case(note=f"your test, on a right freeze and on {len(PLANTED)} wrong ones")],
    call=caught,
)


def _stage(model: Any, freeze: Freeze, step: Callable[[nn.Module], None], frozen: Sequence[str]) -> dict[str, bool]:
    """Parameter -> whether it stayed."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    freeze(model, frozen)
    step(model)
    return {name: torch.equal(p, before[name]) for name, p in model.named_parameters()}


@FREEZE.mistake(
    "You look at the frozen part alone. A version that freezes too much passes: the others have to move, and in a second "
    "stage with other parts, too."
)
def _(freeze, model, step):
    assert all(s for name, s in _stage(model, freeze, step, ["decoder"]).items() if name.startswith("decoder."))


@FREEZE.mistake(
    "You look at the parts that are trained alone. What about the one that is frozen? And in a second stage?"
)
def _(freeze, model, step):
    assert not any(s for name, s in _stage(model, freeze, step, ["decoder"]).items() if not name.startswith("decoder."))


@FREEZE.mistake(
    "One stage is tested, or flags are read after one call. Call freeze a second time on the same model, with two other parts: what was "
    "frozen before has to be opened again."
)
def _(freeze, model, step):
    for name, stayed in _stage(model, freeze, step, ["decoder"]).items():
        assert stayed == name.startswith("decoder.")


@FREEZE.mistake(
    "Two stages are tested with one frozen part each. Name two parts at once as well: a version may freeze the first only."
)
def _(freeze, model, step):
    for frozen in ("decoder", "encoder"):
        for name, stayed in _stage(model, freeze, step, [frozen]).items():
            assert stayed == name.startswith(f"{frozen}.")


@FREEZE.mistake(
    "Biases are left out of the comparison. They are trained as well: go through all of named_parameters()."
)
def _(freeze, model, step):
    for frozen in (["decoder"], ["encoder", "decoder_norm"]):
        for name, stayed in _stage(model, freeze, step, frozen).items():
            assert not name.endswith("weight") or stayed == (name.partition(".")[0] in frozen)
