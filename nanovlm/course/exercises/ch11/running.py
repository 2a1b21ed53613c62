"""Chapter 11: several processes as one, low-rank adapters, and a run that comes back after a disconnect."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights

# -- full.ddp_loss_scale -----------------------------------------------------------------------------------------------

ROUNDS = 4  # a loss may send what depends on what it received: after some rounds all have received all


def rank_loss(means: Tensor, counts: Tensor, all_reduce: Callable[[Tensor], Tensor], world: int) -> Tensor:
    total = all_reduce(counts.sum())
    return (means * counts).sum() * world / total


def run_ranks(loss_of_rank, means: Sequence[Tensor], counts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Every rank's loss, with an all_reduce that adds up what the ranks send; and DDP's mean of them."""
    world, sums, losses = len(means), [], []
    for _ in range(ROUNDS):
        sent: list[list[Tensor]] = []
        losses = []
        for mine, own in zip(means, counts, strict=True):
            messages: list[Tensor] = []

            def all_reduce(x: Tensor, messages: list[Tensor] = messages) -> Tensor:
                messages.append(torch.as_tensor(x).detach().clone())
                received = sums[len(messages) - 1] if len(messages) <= len(sums) else messages[-1]
                return received.clone()

            losses.append(torch.as_tensor(loss_of_rank(mine.clone(), own.clone(), all_reduce, world)))
            sent.append(messages)
        expect(
            len({len(m) for m in sent}) == 1, "The ranks call all_reduce different numbers of times: they would hang."
        )
        for messages in zip(*sent, strict=True):
            same = len({m.shape for m in messages}) == 1
            expect(same, "The ranks send tensors of different shapes to all_reduce; they may have unequal batches.")
        sums = [torch.stack(messages).sum(dim=0) for messages in zip(*sent, strict=True)]
    for loss in losses:
        expect(loss.ndim == 0, f"A rank's loss is one number; it has the shape {list(loss.shape)}.")
    stacked = torch.stack([loss.float() for loss in losses])
    return stacked, stacked.mean()


def unequal(*rows: Sequence[float]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


DDP = Exercise(
    id="full.ddp_loss_scale",
    chapter="11",
    title="Mend it: a mean of means, in several processes",
    difficulty=2,
    minutes=12,
    why="Two GPUs with one sample each should train like one GPU with both. With a mean of means they do not, and the "
    "more the lengths of answers differ, the more the short ones count.",
    hints=(
        "Write the loss that one process with all rows would compute, as one fraction. Which parts of it does a rank "
        "know, and which does it have to ask for?",
        "Numerator: the sum of mean times count over this rank's micro-batches. Denominator: all supervised tokens of "
        "all ranks, which all_reduce(counts.sum()) returns. DDP will divide the sum of the gradients by world, so "
        "multiply by world first.",
        "total = all_reduce(counts.sum())\nreturn (means * counts).sum() * … / total",
    ),
    reference=rank_loss,
    cases=lambda: [
        Case(unequal([3.0], [1.0]), unequal([90.0], [10.0]), note="two ranks, of 90 and 10 supervised tokens"),
        Case(unequal([2.0, 4.0], [1.0, 5.0]), unequal([8.0, 2.0], [5.0, 25.0]), note="two micro-batches on each rank"),
        Case(unequal([2.5, 0.5, 1.0]), unequal([4.0, 7.0, 1.0]), note="one process alone, three micro-batches"),
        Case(
            unequal([1.0, 0.0], [2.0, 3.0], [4.0, 0.5]),
            unequal([5.0, 0.0], [2.0, 9.0], [1.0, 3.0]),
            note="three ranks, one micro-batch without a supervised token",
        ),
    ],
    axes={"each rank's loss": "ranks", "the mean that DDP makes": ""},
    call=run_ranks,
)


@DDP.property("the gradient reaches every micro-batch, in proportion to its tokens")
def _(loss) -> None:
    means, counts = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, 9.0])
    loss(means, counts, lambda x: x * 1, 1).backward()
    expect(means.grad is not None, "No gradient comes back: do not use item() or detach() on the losses.")
    expect(torch.allclose(means.grad, counts / 12), "The micro-batches do not count by their tokens.")


DDP.mistake(
    "This is the mean of means that was there: a micro-batch of ten tokens counts as much as one of ninety. Weight each "
    "mean with its count."
)(lambda means, counts, all_reduce, world: means.mean())
DDP.mistake(
    "Each rank divides by its own tokens, so its mean counts as much as that of a rank with many more: divide by the "
    "tokens of all ranks, all_reduce(counts.sum())."
)(lambda means, counts, all_reduce, world: (means * counts).sum() / counts.sum())
DDP.mistake(
    "DDP divides the sum of the gradients by world once more, so this is world times too small: multiply by world."
)(lambda means, counts, all_reduce, world: (means * counts).sum() / all_reduce(counts.sum()))
DDP.mistake("It is multiplied by world twice: DDP divides once.")(
    lambda means, counts, all_reduce, world: (means * counts).sum() * world**2 / all_reduce(counts.sum())
)
DDP.mistake("It divides by world, as DDP does already: multiply by it, so that the two cancel.")(
    lambda means, counts, all_reduce, world: (means * counts).sum() / world / all_reduce(counts.sum())
)
DDP.mistake(
    "The losses are reduced, too. Each rank should keep its own share, or each gradient is computed from only one rank's "
    "part of a number that looks right."
)(lambda means, counts, all_reduce, world: all_reduce((means * counts).sum()) / all_reduce(counts.sum()))
DDP.mistake("It divides by the number of micro-batches as well: the tokens are the only denominator.")(
    lambda means, counts, all_reduce, world: (means * counts).mean() * world / all_reduce(counts.sum())
)
DDP.mistake("The means are added up without their counts: multiply each by its tokens before the sum.")(
    lambda means, counts, all_reduce, world: means.sum() * world / all_reduce(counts.sum())
)

# -- full.lora_linear --------------------------------------------------------------------------------------------------


class LoRALinear(nn.Module):
    """A frozen Linear and a trained product of two thin matrices (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.A.T) @ self.B.T

    def merge(self) -> nn.Linear:
        merged = nn.Linear(self.base.in_features, self.base.out_features, bias=self.base.bias is not None)
        with torch.no_grad():
            merged.weight.copy_(self.base.weight + self.scale * self.B @ self.A)
            if self.base.bias is not None:
                merged.bias.copy_(self.base.bias)
        return merged


def run_lora(make, x: Tensor, out_features: int, rank: int, alpha: float, bias: bool) -> tuple[Any, ...]:
    """How the layer begins, what it computes with known A and B, and merged; and what of it is trained."""
    base = with_weights(nn.Linear(x.shape[-1], out_features, bias=bias))
    layer = make(base, rank, alpha)
    expect(isinstance(layer, nn.Module), "LoRALinear should be an nn.Module.")
    for name, shape in (("A", (rank, x.shape[-1])), ("B", (out_features, rank))):
        value = getattr(layer, name, None)
        expect(isinstance(value, nn.Parameter), f"The layer needs a Parameter {name}, {list(shape)}.")
        expect(tuple(value.shape) == shape, f"{name} has the shape {list(value.shape)}; it should be {list(shape)}.")
    unchanged = "as base" if torch.allclose(layer(x), base(x), atol=1e-6) else "unlike base"
    zeros = " and ".join(name for name in "AB" if not (getattr(layer, name) != 0).any()) or "neither"
    with torch.no_grad():
        layer.A.copy_(noise(*layer.A.shape, seed=1))
        layer.B.copy_(noise(*layer.B.shape, seed=2))
    trained = sorted(name for name, p in layer.named_parameters() if p.requires_grad)
    merged = layer.merge()
    expect(isinstance(merged, nn.Linear), "merge() should return an nn.Linear.")
    return unchanged, zeros, layer(x).detach(), merged(x).detach(), ", ".join(trained)


LORA = Exercise(
    id="full.lora_linear",
    chapter="11",
    title="LoRA in twenty lines",
    difficulty=2,
    minutes=18,
    why="With a rank of 8, a matrix of 576 x 1536 trains 17 thousand numbers instead of 885 thousand, and gradients and "
    "moments shrink with it. After merging nothing of it is left, and the model is as fast as before.",
    hints=(
        "At the first step the layer must compute exactly what base computes, and yet a gradient must flow. Which of the "
        "two matrices can be zero?",
        "Freeze base. A is [rank, in] and random, B is [out, rank] and zero. forward adds alpha / rank times x A^T B^T. "
        "merge builds a new Linear with weight W + alpha / rank B A, and copies the bias if there is one.",
        "self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)\n"
        "self.B = nn.Parameter(…)\n"
        "self.scale = alpha / rank\n"
        "forward: base(x) + self.scale * (x @ self.A.T) @ self.B.T\n"
        "merge:   merged.weight.copy_(self.base.weight + self.scale * …)",
    ),
    reference=LoRALinear,
    cases=lambda: [
        Case(noise(3, 4), 5, 2, 6.0, True, note="4 numbers to 5, rank 2, alpha 6"),
        Case(noise(2, 3, 6, seed=4), 3, 1, 0.5, False, note="no bias, rank 1, a batch of sequences"),
        Case(noise(4, 5, seed=5), 5, 3, 12.0, True, note="a square matrix, rank 3"),
    ],
    axes={
        "what it computes at the start": "",
        "which of A and B is zero at the start": "",
        "the output with other A and B": "… out",
        "the merged output": "… out",
        "the names of what is trained": "",
    },
    call=run_lora,
    tolerance=1e-4,
)


@LORA.property("a gradient reaches B at the first step, and never the base")
def _(make) -> None:
    base = with_weights(nn.Linear(4, 3))
    layer = make(base, 2, 4.0)
    layer(noise(5, 4)).square().sum().backward()
    expect(
        layer.B.grad is not None and bool((layer.B.grad != 0).any()), "B gets no gradient, so it stays zero for ever."
    )
    expect(base.weight.grad is None, "The base weight has a gradient: freeze it.")


@LORA.property("merging leaves the base as it was")
def _(make) -> None:
    base = with_weights(nn.Linear(4, 3))
    before = base.weight.detach().clone()
    layer = make(base, 2, 4.0)
    with torch.no_grad():
        layer.B.fill_(1.0)
    layer.merge()
    expect(torch.equal(base.weight, before), "merge() changed the base weight, so merging twice adds it twice.")


def _lora(
    b_random: bool = False,
    a_zero: bool = False,
    scale: Callable[[float, int], float] = lambda alpha, rank: alpha / rank,
    freeze: bool = True,
    merge_scale: bool = True,
    merge_bias: bool = True,
    replaces: bool = False,
) -> type[nn.Module]:
    class Wrong(LoRALinear):
        def __init__(self, base, rank, alpha):
            super().__init__(base, rank, alpha)
            self.base.requires_grad_(not freeze)
            self.scale = scale(alpha, rank)
            with torch.no_grad():
                if b_random:
                    self.B.normal_()
                if a_zero:
                    self.A.zero_()

        def forward(self, x):
            added = self.scale * (x @ self.A.T) @ self.B.T
            return added if replaces else self.base(x) + added

        def merge(self):
            merged = super().merge()
            with torch.no_grad():
                if not merge_scale:
                    merged.weight.copy_(self.base.weight + self.B @ self.A)
                if not merge_bias and merged.bias is not None:
                    merged.bias.zero_()
            return merged

    Wrong.__name__ = "LoRALinear"
    return Wrong


LORA.mistake(
    "B begins with random numbers, so the model is another one before the first step. B is zero at the start, A random."
)(_lora(b_random=True))
LORA.mistake("A and B are both zero. Then neither has a gradient, and nothing is ever learnt: A begins random.")(
    _lora(a_zero=True)
)
LORA.mistake("A is zero and B random: it starts right, but the convention, and what the check expects, is B = 0.")(
    _lora(a_zero=True, b_random=True)
)
LORA.mistake("The scale is missing: the product counts alpha / rank times.")(_lora(scale=lambda alpha, rank: 1.0))
LORA.mistake("The product is scaled by alpha, not by alpha / rank: with another rank the step would be another one.")(
    _lora(scale=lambda alpha, rank: alpha)
)
LORA.mistake("The scale is rank / alpha; it is alpha / rank.")(_lora(scale=lambda alpha, rank: rank / alpha))
LORA.mistake("The base is trained, too, which is what LoRA is there to avoid: base.requires_grad_(False).")(
    _lora(freeze=False)
)
LORA.mistake("The merged weight lacks the scale, so it computes something else than forward does.")(
    _lora(merge_scale=False)
)
LORA.mistake("The merged layer has lost the bias: copy it.")(_lora(merge_bias=False))
LORA.mistake("The product replaces the base's output instead of being added to it.")(_lora(replaces=True))

# -- full.resume_after_disconnect --------------------------------------------------------------------------------------

NAME = re.compile(r"step_(\d+)\.pt")


def newest_state(folder: Path) -> dict[str, Any] | None:
    found = {int(m[1]): path for path in folder.iterdir() if (m := NAME.fullmatch(path.name))}
    for step in sorted(found, reverse=True):
        try:
            return torch.load(found[step], map_location="cpu", weights_only=True)
        except Exception as error:  # cut off, empty or synchronised in part: torch raises many kinds
            print(f"{found[step].name} cannot be read ({type(error).__name__})")
    return None


def run_resume(find, files: Sequence[tuple[str, str]]) -> str:
    """At which step it goes on, in a folder with these files, written in this order. "cut" is half of a checkpoint."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for age, (file, content) in enumerate(files):
            path, number = folder / file, re.search(r"\d+", file)
            torch.save({"step": int(number[0]) if number else 0, "weights": noise(40)}, path)
            if content != "whole":
                whole = path.read_bytes()
                path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"synchronising"}[content])
            if "(1)" in file:
                torch.save({"step": -1, "weights": noise(40)}, path)  # an older copy
            os.utime(path, (1e9 + age, 1e9 + age))
        before = sorted(path.name for path in folder.iterdir())
        state = find(folder)
        expect(before == sorted(path.name for path in folder.iterdir()), "Files of the folder are gone: only read it.")
        if state is None:
            return "nothing to go on from"
        expect(isinstance(state, dict) and "step" in state, "Return the state that was saved, a dict, or None.")
        return f"step {state['step']}"


RESUME = Exercise(
    id="full.resume_after_disconnect",
    chapter="11",
    title="After a disconnect: the newest checkpoint that is whole",
    difficulty=3,
    minutes=15,
    why="A free notebook ends without asking. What is then in the mounted Drive is not what you wrote: half a file, a "
    "second copy, and dates of the synchronisation. The resume cell has to find its way alone.",
    hints=(
        "List everything that may be in the folder besides whole checkpoints. For each: what must not happen?",
        "Take only names that are exactly step_<number>.pt, order them by the number, the highest first, and return "
        "the first that torch.load can read, with weights_only=True. A file that cannot be read is not the end. If none "
        "is left, return None.",
        "found = {int(m[1]): path for path in folder.iterdir() if (m := re.fullmatch(…, path.name))}\n"
        "for step in sorted(found, reverse=True):\n"
        "    try:\n"
        "        return torch.load(found[step], map_location='cpu', weights_only=True)\n"
        "    except Exception:\n"
        "        …say which file, and go on\n"
        "return None",
    ),
    reference=newest_state,
    cases=lambda: [
        Case([("step_250.pt", "whole"), ("step_500.pt", "whole")], note="two whole checkpoints"),
        Case([("step_900.pt", "whole"), ("step_1000.pt", "whole")], note="steps 900 and 1000"),
        Case([("step_750.pt", "whole"), ("step_500.pt", "whole")], note="an older step that was synchronised later"),
        Case([("step_500.pt", "whole"), ("step_750.pt", "cut")], note="a newest file that was cut off"),
        Case(
            [("step_500.pt", "whole"), ("step_500 (1).pt", "whole"), ("step_750.pt.partial", "cut"), ("a.txt", "text")],
            note="a second copy, an unfinished file and a note",
        ),
        Case(
            [("step_250.pt", "whole"), ("step_500.pt", "empty"), ("step_750.pt", "text"), ("step_1000.pt", "cut")],
            note="three broken files in front of a whole one",
        ),
        Case([], note="an empty folder"),
        Case([("step_250.pt", "cut")], note="one broken file and nothing else"),
    ],
    call=run_resume,
)


def _find(
    key: Callable[[Path], Any] = lambda p: int(re.findall(r"\d+", p.name)[0]),
    pattern: str = r"step_\d+\.pt",
    tries: int | None = None,
    broken: str = "next",
    oldest: bool = False,
    empty: str = "None",
):
    def find(folder):
        paths = sorted((p for p in folder.iterdir() if re.match(pattern, p.name)), key=key, reverse=not oldest)
        if not paths and empty == "raise":
            raise IndexError("list index out of range")
        for path in paths[:tries]:
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except Exception:
                if broken == "raise":
                    raise
        return None

    return find


EXACT = r"step_\d+\.pt$"
RESUME.mistake("It sorts names, and as text step_900 comes behind step_1000: compare the numbers.")(
    _find(key=lambda p: p.name, pattern=EXACT)
)
RESUME.mistake(
    "It goes by the date of the file, which is that of the synchronisation. The step is in the name: compare the numbers."
)(_find(key=lambda p: p.stat().st_mtime, pattern=EXACT))
RESUME.mistake("It takes the lowest step. The highest is the newest.")(_find(pattern=EXACT, oldest=True))
RESUME.mistake(
    "The newest file is broken and it starts from nothing, although an older one is whole: try the next one."
)(_find(pattern=EXACT, tries=1))
RESUME.mistake("A broken file ends the search with an error: catch it, and try the next one.")(
    _find(pattern=EXACT, broken="raise")
)
RESUME.mistake("A folder without any checkpoint is an error. On the first start there is none: return None.")(
    _find(pattern=EXACT, empty="raise")
)
RESUME.mistake(
    "It opens what is not a checkpoint of this run, a second copy or an unfinished file: the whole name has to match, "
    "step_<number>.pt and nothing else."
)(_find(pattern=r"step_\d+.*", key=lambda p: (int(re.findall(r"\d+", p.name)[0]), "(" in p.name)))
RESUME.mistake(
    "It stumbles over other files: take only names that are exactly step_<number>.pt, and catch what cannot be read."
)(_find(pattern=r".*", broken="raise", empty="raise"))
