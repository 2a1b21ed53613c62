"""Chapter 17: words that ask a picture, and a gate that has to start closed and still learn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nanovlm.course.exercises.common import expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights

# -- designs.cross_attention -------------------------------------------------------------------------------------------


def cross_attention(
    words: Tensor, image: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, real: Tensor, num_heads: int
) -> Tensor:
    """A loop over rows and heads, over the real image tokens alone."""
    dim = words.shape[-1] // num_heads
    rows = []
    for row in range(len(words)):
        tokens = image[row, real[row]]  # [real tokens, dim]
        heads = []
        for head in range(num_heads):
            own = slice(head * dim, (head + 1) * dim)
            q, k, v = (words[row] @ w_q)[:, own], (tokens @ w_k)[:, own], (tokens @ w_v)[:, own]
            heads.append((q @ k.T / dim**0.5).softmax(dim=-1) @ v if len(tokens) else torch.zeros_like(q))
        rows.append(torch.cat(heads, dim=-1))
    return torch.stack(rows)


def _inputs(batch: int, length: int, tokens: int, dim: int, seed: int) -> tuple[Tensor, ...]:
    words, image = noise(batch, length, dim, seed=seed), noise(batch, tokens, dim, seed=seed + 1)
    return words, image, *(noise(dim, dim, seed=seed + i) for i in (2, 3, 4))


def _real(*counts: int, tokens: int) -> Tensor:
    return torch.arange(tokens)[None] < torch.tensor(counts)[:, None]


CROSS = Exercise(
    id="designs.cross_attention",
    chapter="17",
    title="Words ask, image tokens answer",
    difficulty=2,
    minutes=18,
    why="Flamingo and Llama 3.2 Vision leave the picture out of the sequence and let words look at it from the side. The "
    "mask decides what happens in a batch in which pictures differ in size, or are missing.",
    hints=(
        "It is the attention of chapter 02 with two sources. Which one asks, and which one answers?",
        "Queries from the words; keys and values from the image tokens. Split each into heads, scale by the root of "
        "head_dim, hide the tokens that are not real, softmax over the image tokens. A row without any real token has "
        "nothing to collect: its result is zeros, where a softmax over nothing would give NaN.",
        "q, k, v = (…).unflatten(-1, (num_heads, -1)).transpose(1, 2)      # for words @ w_q, and two more\n"
        "scores = q @ k.mT / q.shape[-1] ** 0.5\n"
        "scores = scores.masked_fill(…, -torch.inf)\n"
        "out = torch.nan_to_num(scores.softmax(dim=-1)) @ v\n"
        "return out.transpose(1, 2).flatten(2)",
    ),
    reference=cross_attention,
    cases=lambda: [
        Case(*_inputs(1, 2, 3, 2, 0), _real(3, tokens=3), 1, note="two words, three image tokens, one head"),
        Case(*_inputs(2, 4, 3, 6, 5), _real(3, 2, tokens=3), 3, note="three heads; the second picture is padded"),
        Case(*_inputs(2, 3, 3, 4, 9), _real(3, 0, tokens=3), 2, note="the second row has no picture"),
        Case(*_inputs(2, 3, 3, 4, 13), _real(2, 1, tokens=3).flip(1), 2, note="padding in front of the image tokens"),
    ],
    axes="batch word dim",
)


@CROSS.property("words, image tokens and all three matrices get their gradients")
def _(fn) -> None:
    real = _real(3, 2, tokens=3)
    expect_same_gradients(
        lambda *given: fn(*given, real, 2), lambda *given: cross_attention(*given, real, 2), *_inputs(2, 2, 3, 4, 20)
    )


@CROSS.property("a row without a picture disturbs no gradient")
def _(fn) -> None:
    given = [part.requires_grad_() for part in _inputs(2, 2, 3, 4, 30)]
    fn(*given, _real(3, 0, tokens=3), 2).square().sum().backward()
    expect(
        all(part.grad is None or part.grad.isfinite().all() for part in given),
        "The row without a picture gives NaN in the backward pass: 0 x NaN is NaN, so replacing it afterwards comes too "
        "late. Let such a row see something, and set its result to zero.",
    )


class How(NamedTuple):
    """What a wrong version does differently."""

    asks: str = "words"
    keys: str = "image"
    values: str = "image"
    scale: str = "head"
    softmax: int = -1
    mask: str = "hidden"
    empty: str = "zeros"
    split: str = "heads"


def _attend(words, image, w_q, w_k, w_v, real, num_heads, how: How) -> Tensor:
    source = {"words": words, "image": image}

    def split(x: Tensor) -> Tensor:
        if how.split == "interleaved":
            return x.unflatten(-1, (-1, num_heads)).movedim(-1, 1)
        if how.split == "one":
            return x[:, None]
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)

    q, k, v = split(source[how.asks] @ w_q), split(source[how.keys] @ w_k), split(source[how.values] @ w_v)
    scores = q @ k.mT
    dim = words.shape[-1] // num_heads
    scores = scores / {"head": dim**0.5, "none": 1.0, "no root": float(dim), "dim": words.shape[-1] ** 0.5}[how.scale]
    seen = real[:, None, None, :]
    if how.mask == "hidden":
        scores = scores.masked_fill(~seen, -torch.inf)
    if how.mask == "upside down":
        scores = scores.masked_fill(seen, -torch.inf)
    if how.mask == "zero scores":
        scores = scores * seen
    weights = scores.softmax(how.softmax)
    if how.empty == "zeros":
        weights = torch.nan_to_num(weights)
    if how.mask == "afterwards":
        weights = weights * seen
    out = weights @ v
    if how.empty == "words":
        out = torch.where(real.any(1)[:, None, None, None], torch.nan_to_num(out), split(words))
    if how.split == "interleaved":
        return out.movedim(1, -1).flatten(2)
    if how.split == "unmerged":
        return out.flatten(1).view_as(words)
    return out.transpose(1, 2).flatten(2)


for _sentence, _how in {
    "The keys are made from the words. What is compared with a word's query is an image token.": How(
        keys="words", mask="none"
    ),
    "The values are made from the words, so that nothing of the picture arrives.": How(values="words", mask="none"),
    "Keys and values are made from the words: this is self-attention, and the picture is not used.": How(
        keys="words", values="words", mask="none"
    ),
    "The image tokens ask and the words answer. It is the other way round: the result has a vector for each word.": How(
        asks="image", keys="words", values="words", mask="none"
    ),
    "The mask is not used, so that padded image tokens are looked at.": How(mask="none"),
    "The mask is upside down: `real` is True where a token may be looked at.": How(mask="upside down"),
    "The hidden scores are set to 0, and a score of 0 still gets weight in a softmax. Set them to minus infinity.": How(
        mask="zero scores"
    ),
    "The mask comes after the softmax, so that the weights of a padded picture do not sum to 1.": How(
        mask="afterwards"
    ),
    "A row without a picture gives NaN: a softmax over nothing. Its result should be zeros.": How(empty="nan"),
    "A row without a picture gives its words back. This function returns what is added to them: zeros.": How(
        empty="words"
    ),
    "The scores are not scaled: divide by the root of head_dim.": How(scale="none"),
    "The scores are divided by head_dim. Its root is enough.": How(scale="no root"),
    "The scores are divided by the root of dim. Each head compares head_dim numbers.": How(scale="dim"),
    "The softmax runs over the words. Each word shares its weight out among the image tokens.": How(softmax=-2),
    "There is one head, whatever num_heads says.": How(split="one", scale="dim"),
    "The heads are cut wrongly: a head's numbers lie side by side, so unflatten(-1, (num_heads, -1)).": How(
        split="interleaved"
    ),
    "The heads are not brought back beside each other: transpose(1, 2) before they are joined.": How(split="unmerged"),
}.items():
    CROSS.mistake(_sentence)(lambda *given, how=_how: _attend(*given, how))


@CROSS.mistake("A row without a picture averages the padding. Its result should be zeros.")
def _(words, image, w_q, w_k, w_v, real, num_heads):
    real = real | ~real.any(dim=1, keepdim=True)
    return _attend(words, image, w_q, w_k, w_v, real, num_heads, How())


# -- designs.gate ------------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return x + torch.tanh(self.gate) * self.layer(x, image)


class Looks(nn.Module):
    """A layer that looks at a picture: what it returns is to be added to x."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.from_words, self.from_image = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        return self.from_words(x) + self.from_image(image.mean(dim=1, keepdim=True))


def run_gate(cls, x: Tensor, image: Tensor, gate: float) -> tuple[Tensor, ...]:
    """(output at the start, output with the gate at a value, gradient of the gate at the start, of the layer later)."""
    module = cls(with_weights(Looks(x.shape[-1])))
    expect(isinstance(module, nn.Module), "Gated(layer) should be an nn.Module.")
    own = getattr(module, "gate", None)
    expect(
        isinstance(own, nn.Parameter) and own.requires_grad,
        "The gate has to be a parameter that is trained: self.gate = nn.Parameter(torch.zeros(1)).",
    )
    expect(own.numel() == 1, f"The gate is one number for the whole layer; yours has {own.numel()}.")
    first = module(x, image)
    expect(first.requires_grad, "The output is cut off from the gate, so the gate can never learn to open.")
    (at_start,) = torch.autograd.grad((first * noise(*first.shape, seed=5)).sum(), own)
    with torch.no_grad():
        own.fill_(gate)
    later = module(x, image)
    (layers,) = torch.autograd.grad((later * noise(*later.shape, seed=5)).sum(), module.layer.from_image.weight)
    return first.detach(), later.detach(), at_start.flatten(), layers


GATE = Exercise(
    id="designs.gate",
    chapter="17",
    title="Mend it: a door that disturbs, and a door that never opens",
    difficulty=2,
    minutes=12,
    why="New layers in a trained model have to leave it as it is at the first step, and yet be able to learn. Two zeros "
    "in a row do the first and prevent the second, without an error.",
    hints=(
        "A product of two factors: the derivative with respect to one is the other. What if both are zero?",
        "One zero is enough. Let the gate start at 0 and leave the layer its weights: the output is x exactly, and the "
        "gate's gradient is not zero. tanh keeps what is added between minus once and once the layer's output.",
        "self.layer = layer\nself.gate = nn.Parameter(…)\n...\nreturn x + torch.tanh(self.gate) * self.layer(x, image)",
    ),
    reference=Gated,
    cases=lambda: [
        Case(noise(1, 2, 2), noise(1, 3, 2, seed=1), 0.7, note="two words, three image tokens; the gate later at 0.7"),
        Case(noise(2, 3, 4, seed=2), noise(2, 5, 4, seed=3), -1.3, note="two rows; the gate later at -1.3"),
    ],
    axes={
        "at the start": "batch word dim",
        "opened": "batch word dim",
        "gradient of the gate": "number",
        "gradient of the layer": "out in",
    },
    call=run_gate,
)


@GATE.property("the layer's own weights are left alone")
def _(cls) -> None:
    layer = with_weights(Looks(3))
    before = [p.detach().clone() for p in layer.parameters()]
    cls(layer)
    expect(
        all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True)),
        "The layer's weights were changed. The gate alone should close it.",
    )


def _gated(combine, start: float = 0.0, zero_layer: bool = False) -> type:
    class Version(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer, self.gate = layer, nn.Parameter(torch.full((1,), start))
            if zero_layer:
                with torch.no_grad():
                    for parameter in layer.parameters():
                        parameter.zero_()

        def forward(self, x: Tensor, image: Tensor) -> Tensor:
            return combine(x, self.layer(x, image), self.gate)

    return Version


def _usual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x + torch.tanh(gate) * y


for _sentence, _version in {
    "The layer's weights are still set to zero, and the gate is, too: the gradient of each is the other, so both stay "
    "zero for ever. Leave the layer its weights.": _gated(_usual, zero_layer=True),
    "The gate starts open, so that the first step already computes with a layer of random weights: start it at 0.": (
        _gated(_usual, start=1.0)
    ),
    "tanh is missing: nothing keeps the gate between -1 and 1.": _gated(lambda x, y, g: x + g * y),
    "sigmoid(0) is a half, so the gate starts half open. tanh(0) is 0.": (
        _gated(lambda x, y, g: x + torch.sigmoid(g) * y)
    ),
    "x itself is gated away: the residual connection, x + …, is missing.": _gated(lambda x, y, g: torch.tanh(g) * y),
    "The gate multiplies x as well. Only what is added is gated.": _gated(lambda x, y, g: torch.tanh(g) * (x + y)),
    "An open gate takes away from x what it gives to the layer: x + gate * layer, not a mixture of the two.": (
        _gated(lambda x, y, g: (1 - torch.tanh(g)) * x + torch.tanh(g) * y)
    ),
    "The gate is not used at all.": _gated(lambda x, y, g: x + y + 0 * g),
    "The layer's output is cut off by detach, so that the layer can never learn.": (
        _gated(lambda x, y, g: x + torch.tanh(g) * y.detach())
    ),
    "tanh is taken of the layer's output. Take it of the gate.": _gated(lambda x, y, g: x + g * torch.tanh(y)),
    "tanh is taken of the product. Take it of the gate alone.": _gated(lambda x, y, g: x + torch.tanh(g * y)),
    "relu has no gradient at 0, so a gate that starts there never opens. tanh has its largest one there.": (
        _gated(lambda x, y, g: x + torch.relu(g) * y)
    ),
    "The square of the gate has no gradient at 0, so a gate that starts there never opens.": (
        _gated(lambda x, y, g: x + g.square() * y)
    ),
    "A gate that starts near zero is not closed: at the first step the model is already another one.": (
        _gated(_usual, start=0.01)
    ),
}.items():
    GATE.mistake(_sentence)(_version)
