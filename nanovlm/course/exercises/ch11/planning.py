"""Chapter 11: hours, memory, and what a forward pass keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- full.flops_to_hours -----------------------------------------------------------------------------------------------


def training_hours(
    vision_flops: float,
    token_flops: float,
    tokens: int,
    samples: int,
    tflops: float,
    sparse: bool,
    utilisation: float,
) -> float:
    forward = vision_flops + token_flops * tokens
    peak = tflops * 1e12 / (2 if sparse else 1)
    return 3 * forward * samples / (peak * utilisation) / 3600


HOURS = Exercise(
    id="full.flops_to_hours",
    chapter="11",
    title="From operations to hours",
    difficulty=1,
    minutes=10,
    why="Four lines of arithmetic decide whether a run is worth starting. Each of its usual errors is a factor of two "
    "or three, which is the difference between an afternoon and a lost weekend.",
    hints=(
        "Write down the units of every input. Which of them are per picture, which per token, which per second?",
        "Forward FLOPs of a sample, then three times as many for training it (the backward pass costs twice the forward "
        "pass), then all samples. Divide by what the GPU does in a second: its dense peak times the utilisation.",
        "forward = vision_flops + …\n"
        "peak = tflops * 1e12, halved where the sheet counts sparse products\n"
        "seconds = 3 * forward * samples / (peak * …)\n"
        "return seconds / 3600",
    ),
    reference=training_hours,
    cases=lambda: [
        Case(40e9, 0.3e9, 100, 1_000_000, 60.0, False, 0.25, note="70 GFLOP a sample, a million samples"),
        Case(34.9e9, 0.28e9, 128, 8_400_000, 1979.0, True, 0.08, note="a sheet that counts sparse products"),
        Case(5e9, 1e9, 7, 300, 0.1, False, 0.5, note="a laptop and three hundred samples"),
    ],
)


@HOURS.property("twice the utilisation is half the time")
def _(hours) -> None:
    one, two = (hours(1e10, 1e8, 50, 1000, 10.0, False, u) for u in (0.2, 0.4))
    expect(abs(one - 2 * two) < 1e-9, "Doubling the utilisation should halve the hours.")


def _hours(backward: float = 3, per_token: bool = False, halve: bool = True, unit: float = 3600, share: str = "divide"):
    def hours(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
        forward = (vision_flops + token_flops) * tokens if per_token else vision_flops + token_flops * tokens
        peak = tflops * 1e12 / (2 if sparse and halve else 1)
        factor = {"divide": 1 / utilisation, "multiply": utilisation, "ignore": 1.0}[share]
        return backward * forward * samples / peak * factor / unit

    return hours


HOURS.mistake("This is the forward pass alone. Training also needs the backward pass, twice as much again: times 3.")(
    _hours(backward=1)
)
HOURS.mistake("Only the backward pass is counted, or only half of it: forward is 1 part and backward 2, together 3.")(
    _hours(backward=2)
)
HOURS.mistake("The picture is paid for once for every token. vision_flops are per picture: add them once a sample.")(
    _hours(per_token=True)
)
HOURS.mistake("The sheet's number with sparsity is twice what a dense product reaches: halve it where sparse is True.")(
    _hours(halve=False)
)
HOURS.mistake("These are seconds. An hour has 3,600 of them.")(_hours(unit=1))
HOURS.mistake("These are minutes. Divide the seconds by 3,600.")(_hours(unit=60))
HOURS.mistake("The utilisation makes the run longer, not shorter: divide by peak * utilisation.")(
    _hours(share="multiply")
)
HOURS.mistake("The utilisation is missing: no run reaches the peak of the data sheet.")(_hours(share="ignore"))

# -- full.memory_plan --------------------------------------------------------------------------------------------------

GIB = 2**30


class TiedDecoder(nn.Module):
    """An embedding whose weight is the head's too, and a layer between them, on the meta device."""

    def __init__(self, rows: int, dim: int, dtype: torch.dtype = torch.float32, frozen: bool = False) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": "meta", "dtype": dtype}
        self.token_embedding = nn.Embedding(rows, dim, **options).requires_grad_(not frozen)
        self.layer = nn.Linear(dim, 4 * dim, **options)
        self.head = nn.Linear(dim, rows, bias=False, **options)
        self.head.weight = self.token_embedding.weight


def memory_plan(model: nn.Module, rows: int, row_bytes: int) -> tuple[float, float, float, float]:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(4 * p.numel() for p in trained)
    optimizer = sum((8 + 4 * (p.element_size() < 4)) * p.numel() for p in trained)
    return weights / GIB, gradients / GIB, optimizer / GIB, rows * row_bytes / GIB


MEMORY = Exercise(
    id="full.memory_plan",
    chapter="11",
    title="Will it fit?",
    difficulty=2,
    minutes=15,
    why="Out of memory after forty minutes of download and loading is the usual way to learn this sum. It takes one "
    "second on paper, and it shows which of the four parts to make smaller.",
    hints=(
        "Go through model.parameters(). For each one ask: how many numbers, of how many bytes, and is it trained at all?",
        "Weights: numel times element_size. Gradients: 4 bytes for each number that is trained. Optimizer: two moments "
        "of 4 bytes, and 4 more for a float32 copy where the weight itself is narrower. Activations: rows times "
        "row_bytes. parameters() gives a shared tensor once, state_dict() does not.",
        "trained = [p for p in model.parameters() if …]\n"
        "weights = sum(p.numel() * p.element_size() for p in model.parameters())\n"
        "gradients = sum(4 * p.numel() for p in trained)\n"
        "optimizer = sum((8, or … where p.element_size() < 4) * p.numel() for p in trained)\n"
        "return each of them, and rows * row_bytes, in GiB",
    ),
    reference=memory_plan,
    cases=lambda: [
        Case(nn.Linear(4096, 16384, bias=False, device="meta"), 3, 2**28, note="one float32 matrix of 256 MiB"),
        Case(TiedDecoder(50_000, 640), 8, 3 * 2**25, note="a decoder whose head is its embedding"),
        Case(TiedDecoder(50_000, 640, torch.bfloat16), 5, 2**27, note="the same in bfloat16"),
        Case(TiedDecoder(60_000, 512, torch.float32, True), 2, 2**26, note="an embedding that is not trained"),
    ],
    axes={"weights": "", "gradients": "", "optimizer": "", "activations": ""},
    tolerance=1e-6,
)


@MEMORY.property("a frozen model needs no gradients and no optimizer")
def _(plan) -> None:
    _, gradients, optimizer, _ = plan(TiedDecoder(9_000, 256).requires_grad_(False), 1, 1)
    expect(gradients == 0 and optimizer == 0, "Nothing is trained here, and still gradients or optimizer take memory.")


def _plan(
    twice: bool = False,
    frozen_too: bool = False,
    own_size: bool = False,
    moments: int = 2,
    master: bool = True,
    per_row: bool = True,
    unit: float = GIB,
):
    def plan(model, rows, row_bytes):
        every = list(model.state_dict(keep_vars=True).values()) if twice else list(model.parameters())
        trained = [p for p in every if p.requires_grad or frozen_too]
        size = [p.element_size() if own_size else 4 for p in trained]
        gradients = sum(b * p.numel() for p, b in zip(trained, size, strict=True))
        optimizer = sum(moments * b * p.numel() for p, b in zip(trained, size, strict=True))
        if master and not own_size:
            optimizer += sum(4 * p.numel() for p in trained if p.element_size() < 4)
        weights = sum(p.numel() * p.element_size() for p in every)
        return weights / unit, gradients / unit, optimizer / unit, row_bytes * (rows if per_row else 1) / unit

    return plan


MEMORY.mistake("The tied head is counted twice: state_dict() names it twice, parameters() holds it once.")(
    _plan(twice=True)
)
MEMORY.mistake("Frozen weights have neither gradients nor moments: look at requires_grad.")(_plan(frozen_too=True))
MEMORY.mistake(
    "Gradients and moments are counted in the weights' own format. They are float32, 4 bytes each, whatever the weights "
    "are, and a narrower weight has a float32 copy besides."
)(_plan(own_size=True))
MEMORY.mistake("AdamW keeps two moments for each weight, of 4 bytes each; one is counted.")(_plan(moments=1))
MEMORY.mistake("The float32 copies are missing: a bfloat16 weight is too coarse for small steps (chapter 08).")(
    _plan(master=False)
)
MEMORY.mistake("These are the activations of one row: multiply by the rows of a batch.")(_plan(per_row=False))
MEMORY.mistake("These are GB of 10^9 bytes; GPU tools count in GiB of 2^30.")(_plan(unit=1e9))
MEMORY.mistake("These are MiB: divide by 2^30, not 2^20.")(_plan(unit=2**20))
MEMORY.mistake("These are bytes: divide by 2^30.")(_plan(unit=1))

# -- full.activation_bytes ---------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + second(GELU(first(x))): its input is kept for two uses, and is one tensor."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(nn.functional.gelu(self.first(x)))


class Gated(nn.Module):
    """A SwiGLU-like layer: the same input goes into two matrices."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.gate(x)) * self.up(x)


class Half(nn.Module):
    """Two layers, of which the second reads only half of what the first one computes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, 2 * dim), nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[:, : self.second.in_features])


def activation_bytes(model: nn.Module, x: Tensor) -> int:
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = model(x)  # as long as the output lives, so does what was kept, and no address is used twice
    del alive
    return sum(kept.values())


ACTIVATIONS = Exercise(
    id="full.activation_bytes",
    chapter="11",
    title="Measure it: what the forward pass keeps",
    difficulty=2,
    minutes=15,
    why="Activations are the one part of the memory that grows with the batch, and the one that no formula from a paper "
    "gets right for your code. Measured on one row, they say how many rows fit.",
    hints=(
        "torch.autograd.graph.saved_tensors_hooks(pack, unpack) calls pack with every tensor that is kept for the "
        "backward pass. Which of those would be there without a forward pass, too?",
        "In pack, look at the tensor's untyped_storage(): data_ptr() says which memory it is, nbytes() how much. Leave "
        "out the memory of the parameters, and note each address once, in a dict. Return the tensor from pack and keep "
        "the output in a variable until you are done.",
        "weights = {p.untyped_storage().data_ptr() for p in model.parameters()}\n"
        "kept = {}\n"
        "def keep(tensor):\n"
        "    storage = tensor.untyped_storage()\n"
        "    if …:\n"
        "        kept[storage.data_ptr()] = storage.nbytes()\n"
        "    return tensor\n"
        "with saved_tensors_hooks(keep, lambda tensor: tensor):\n"
        "    output = model(x)\n"
        "return sum(kept.values())",
    ),
    reference=activation_bytes,
    cases=lambda: [
        Case(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2)), noise(5, 6), note="two layers, five rows"),
        Case(Gated(10), noise(3, 10), note="one input that two matrices read"),
        Case(Residual(4), noise(7, 4), note="a residual connection"),
        Case(Gated(12).bfloat16(), noise(4, 12).bfloat16(), note="bfloat16, two bytes a number"),
        Case(Half(4), noise(6, 4), note="a layer that reads half of a larger tensor"),
    ],
)


@ACTIVATIONS.property("twice the rows keep twice the bytes")
def _(measure) -> None:
    model = Residual(8)
    expect(
        measure(model, noise(8, 8)) == 2 * measure(model, noise(4, 8)),
        "8 rows should keep exactly twice as many bytes as 4 rows.",
    )


def _kept(
    weights_too: bool = False, each_time: bool = False, elements: bool = False, view: bool = False
) -> Callable[[nn.Module, Tensor], int]:
    def measure(model, x):
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: list[tuple[int, int]] = []

        def keep(tensor):
            storage = tensor.untyped_storage()
            if weights_too or storage.data_ptr() not in weights:
                size = storage.nbytes()
                if elements:
                    size //= tensor.element_size()
                if view:
                    size = tensor.numel() * tensor.element_size()
                seen.append((storage.data_ptr(), size))
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            alive = model(x)
        del alive
        return sum(size for _, size in seen) if each_time else sum(dict(seen).values())

    return measure


def _outputs(model: nn.Module, x: Tensor) -> int:
    """The outputs of all leaf modules, as many tutorials count."""
    sizes: list[int] = []
    leaves = [m for m in model.modules() if not list(m.children())]
    handles = [m.register_forward_hook(lambda m, i, o: sizes.append(o.numel() * o.element_size())) for m in leaves]
    model(x)
    for handle in handles:
        handle.remove()
    return sum(sizes)


ACTIVATIONS.mistake(
    "The weights are counted, too. They are kept for the backward pass, but they are there anyway: leave out what shares "
    "its memory with a parameter."
)(_kept(weights_too=True))
ACTIVATIONS.mistake(
    "The weights are counted, and what two operations need is counted twice: leave out the parameters' memory, and count "
    "each address once."
)(_kept(weights_too=True, each_time=True))
ACTIVATIONS.mistake("A tensor that two operations need is counted twice. It is one piece of memory: go by data_ptr().")(
    _kept(each_time=True)
)
ACTIVATIONS.mistake("These are numbers, not bytes: a float32 has four bytes, a bfloat16 two.")(_kept(elements=True))
ACTIVATIONS.mistake(
    "It counts what the view shows. A view keeps the whole tensor behind it alive: take the storage's nbytes()."
)(_kept(view=True))
ACTIVATIONS.mistake(
    "It adds up the outputs of the modules. What is kept is something else: the inputs that the backward pass needs, "
    "and also what functions without a module compute. saved_tensors_hooks shows it."
)(_outputs)
