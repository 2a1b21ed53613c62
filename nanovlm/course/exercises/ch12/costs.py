"""Chapter 12: shapes as formulas, and where the FLOPs go."""

from __future__ import annotations

from math import isclose, isfinite
from numbers import Real
from typing import Any

from nanovlm.config import VLMConfig
from nanovlm.course.exercises.ch12.reading import SMALL, on_meta, traced
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect
from nanovlm.trace.measure.formula import value_of

# -- trace.symbolic_shapes ---------------------------------------------------------------------------------------------

STEPS = ("vision_encoder", "pixel_shuffle", "projector.proj", "cat", "decoder.head")
_AT = ({"B": 2, "T": 5}, {"B": 3, "T": 11})


def claims_of(config: VLMConfig) -> dict[str, str]:
    """Run it at two sizes and see what changes."""
    small, large = (traced(SMALL.index(config), at["T"], at["B"]) for at in _AT)
    growth = {0: "{}", 1: "B", 6: "{}+T"}  # by how much a dim grew from one size to the other -> what it is
    found = {}
    for name in STEPS:
        sizes = zip(small[name].shape, large[name].shape, strict=True)
        found[name] = " ".join(growth[b - a].format(a - 5 * (b - a == 6)) for a, b in sizes)
    return found


def _claimed(fn: Any, config: VLMConfig) -> Any:
    """A claim may be written in many ways (T+4, 4+T): it is compared by the sizes that it gives."""
    claims = fn(config)
    if not isinstance(claims, dict):
        return claims
    return {name: _sizes(name, claim) for name, claim in claims.items()}


def _sizes(name: Any, claim: Any) -> Any:
    if not isinstance(claim, str):
        return claim
    right = 'Write "B 7+T 12": one word for each dim, spaces between, no brackets and no commas.'
    expect(not any(sign in claim for sign in "[],"), f"The claim for {name} is {claim!r}. {right}")
    shown = []
    for sizes in _AT:
        values = []
        for word in claim.split():
            try:
                value = value_of(word, dict(sizes))
            except ValueError as error:
                raise Complaint(f"The claim for {name}: {error} No spaces inside a formula: 4+T.") from error
            expect(value is not None, f"The claim for {name} uses a name other than B and T: {word}.")
            values.append(str(value))
        at = ", ".join(f"{key} = {size}" for key, size in sizes.items())
        shown.append(f"[{', '.join(values)}] at {at}")
    return "; ".join(shown)


def _symbolic_cases() -> list[Case]:
    for config in SMALL:
        claims_of(config)
    notes = ("4x4 patches, r = 2", "6x6 patches, r = 3", "6x6 patches, r = 2")
    return [Case(config, note=note) for config, note in zip(SMALL, notes, strict=True)]


def _write(config: VLMConfig, **wrong: Any) -> dict[str, str]:
    patches, r = config.vision.num_patches, config.projector.pixel_shuffle_factor
    width, dim = config.vision.hidden_dim, config.language.hidden_dim
    tokens, wide = wrong.get("tokens", patches // r**2), wrong.get("wide", width * r**2)
    line = wrong.get("line", f"{tokens}+T")
    return {
        "vision_encoder": f"B {patches} {width}",
        "pixel_shuffle": f"B {tokens} {wide}",
        "projector.proj": f"B {tokens} {dim}",
        "cat": f"B {line} {dim}",
        "decoder.head": f"B {line} {wrong.get('last', config.language.vocab_size)}",
    }


SYMBOLIC = Exercise(
    id="trace.symbolic_shapes",
    chapter="12",
    title="Shapes as formulas",
    difficulty=2,
    minutes=10,
    why="A claim with B and T in it holds for every batch and question, and t.expect checks it against any trace. "
    "Numbers that you copied from one run hold for that run.",
    hints=(
        "B comes in with the input and stays. T is the text's length: at which step does it first meet the picture?",
        "Patches: config.vision.num_patches. Tokens: r * r times fewer, r * r times wider. The joined sequence: image "
        "tokens and text. The head makes a number for each word of the vocabulary.",
        "tokens = config.vision.num_patches // r**2\n"
        '"pixel_shuffle": f"B {tokens} {… * r**2}"\n'
        '"cat": f"B {tokens}+T {config.language.hidden_dim}"',
    ),
    reference=claims_of,
    cases=_symbolic_cases,
    call=_claimed,
)


@SYMBOLIC.mistake(
    "The joined sequence is as long as the text: the image tokens that stand in front of it are not counted."
)
def _(config):
    return _write(config, line="T")


@SYMBOLIC.mistake("The joined sequence holds a position for each *patch*. Pixel shuffle came before: count tokens.")
def _(config):
    return _write(config, line=f"{config.vision.num_patches}+T")


@SYMBOLIC.mistake("The tokens are r times fewer and r times wider. A tile has two sides: r * r.")
def _(config):
    r = config.projector.pixel_shuffle_factor
    return _write(config, tokens=config.vision.num_patches // r, wide=config.vision.hidden_dim * r)


@SYMBOLIC.mistake("Pixel shuffle has made the tokens fewer, but not wider: then most of the numbers would be gone.")
def _(config):
    return _write(config, wide=config.vision.hidden_dim)


@SYMBOLIC.mistake(
    "The tokens are only r times wider here, and r * r times fewer: then most of the numbers would be gone. They are "
    "r * r times wider."
)
def _(config):
    return _write(config, wide=config.vision.hidden_dim * config.projector.pixel_shuffle_factor)


@SYMBOLIC.mistake("The sequence holds for one text only: its length is a number. Write T for the length of the text.")
def _(config):
    return _write(config, line=config.vision.num_patches // config.projector.pixel_shuffle_factor**2 + _AT[0]["T"])


@SYMBOLIC.mistake("The claims hold for one batch only: they begin with 1. Write B for the batch.")
def _(config):
    return {name: "1" + claim[1:] for name, claim in _write(config).items()}


@SYMBOLIC.mistake("The dim of the batch is missing: every shape begins with B.")
def _(config):
    return {name: claim[2:] for name, claim in _write(config).items()}


@SYMBOLIC.mistake("projector.proj is as wide as its input here. It is the layer that makes a token as wide as a word.")
def _(config):
    claims = _write(config)
    return claims | {"projector.proj": claims["pixel_shuffle"]}


@SYMBOLIC.mistake("The head's output has lost the dim of the sequence: it gives logits at every position.")
def _(config):
    return _write(config) | {"decoder.head": f"B {config.language.vocab_size}"}


@SYMBOLIC.mistake("The head's output is as wide as the decoder. It gives a score to every word of the vocabulary.")
def _(config):
    return _write(config, last=config.language.hidden_dim)


@SYMBOLIC.mistake("Image tokens times text: every pair of them? They stand one behind the other, so the lengths add.")
def _(config):
    return _write(config, line=f"{config.vision.num_patches // config.projector.pixel_shuffle_factor**2}*T")


# -- trace.flops -------------------------------------------------------------------------------------------------------

PARTS = ("vision_encoder", "projector", "decoder", "head")
_LENGTHS = (5, 9, 40)


def shares_of(config: VLMConfig, num_text_tokens: int) -> dict[str, float]:
    """Counted by the tracer, step by step."""
    t = traced(SMALL.index(config), num_text_tokens) if config in SMALL else on_meta(config, num_text_tokens)
    rows = (t["vision_encoder"], t["projector"], t["decoder"], t["decoder.head"])
    return {name: row.flops / t.flops for name, row in zip(PARTS, rows, strict=True)}


def _shares(config: VLMConfig, num_text_tokens: int, **wrong: Any) -> dict[str, float]:
    """By formula. `wrong` says what to get wrong."""
    vision, language, r = config.vision, config.language, config.projector.pixel_shuffle_factor
    n, d = vision.num_patches, vision.hidden_dim
    line = wrong.get("line", n // r**2 + num_text_tokens)
    pairs = wrong.get("pairs", 1)
    width, kv = language.hidden_dim, language.num_kv_heads * language.head_dim
    kv = wrong["kv"](language) if "kv" in wrong else kv
    conv = 0 if wrong.get("no_conv") else 2 * n * d * 3 * vision.patch_size**2
    block = 2 * n * (4 * d * d + 2 * d * vision.inter_dim) + pairs * 4 * n * n * d
    matrices = wrong.get("matrices", 3)
    weights = 2 * width * width + 2 * width * kv + matrices * width * language.inter_dim
    flops = (
        conv + wrong.get("vision_blocks", vision.num_blocks) * block,
        2 * n * d * width * wrong.get("projector", lambda r: 1)(r),
        wrong.get("blocks", language.num_blocks) * (2 * line * weights + pairs * 4 * line * line * width),
        2 * wrong.get("head_line", line) * width * language.vocab_size,
    )
    return {name: value / sum(flops) for name, value in zip(PARTS, flops, strict=True)}


def _fitting(fn: Any, config: VLMConfig, num_text_tokens: int) -> Any:
    """One wrong part moves all four shares. So ask which parts fit each other, and complain of the others."""
    shares = fn(config, num_text_tokens)
    if not isinstance(shares, dict) or set(shares) != set(PARTS):
        return shares
    if not all(isinstance(share, Real) and isfinite(share) for share in shares.values()):
        return shares
    right = shares_of(config, num_text_tokens)
    rounded = any(
        all(round(right[part], digits) == shares[part] for part in PARTS) and digits for digits in range(1, 5)
    )
    expect(not rounded, "These are the right shares, rounded. Return them as they are, and round where you print them.")
    total = float(sum(shares.values()))
    kind = "FLOPs" if total > 1000 else "percent" if 99 < total < 101 else ""
    asked = f"These are {kind}; return shares" if kind else "Return shares"
    given = f"{total:,.0f}" if kind else f"{total:.4g}"
    expect(abs(total - 1) < 1e-3, f"{asked} that sum to 1: yours sum to {given}.")
    times = {part: float(shares[part]) / right[part] for part in PARTS}

    def fit(part: str) -> list[str]:
        return [other for other in PARTS if isclose(times[other], times[part], rel_tol=1e-4)]

    fitting = max((fit(part) for part in PARTS if times[part] > 0), key=len)
    wrong = [f"{part} has {times[part] / times[fitting[0]]:.4g}" for part in PARTS if part not in fitting]
    means = "fit each other" if len(fitting) > 1 else "fits no other part"
    expect(
        not wrong,
        f"Your {_and(fitting)} {means}. Measured by {'them' if len(fitting) > 1 else 'it'}, {_and(wrong)} times the "
        "FLOPs that it should have.",
    )
    return shares


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""


def _flops_cases() -> list[Case]:
    for i, length in enumerate(_LENGTHS):
        traced(i, length)
    traced(2, 9)  # for the property
    notes = ("4x4 patches, r = 2, 5 words", "6x6 patches, r = 3, 9 words", "6x6 patches, r = 2, 40 words")
    return [Case(SMALL[i], length, note=notes[i]) for i, length in enumerate(_LENGTHS)]


FLOPS = Exercise(
    id="trace.flops",
    chapter="12",
    title="Measure it: where do the FLOPs go?",
    difficulty=3,
    minutes=15,
    why="Before you make a model faster you must know which part is slow. The share of each part follows from the "
    "config alone, before a single weight exists.",
    hints=(
        "Go through a trace's table and look for rows with FLOPs: only products have any. A linear layer from a to b, "
        "on n tokens, needs 2 * n * a * b.",
        "Encoder: one convolution (2 * patches * dim * 3 * patch_size²), and per block four dim x dim matrices, two of "
        "the MLP, and attention. Decoder: q and out; k and v, which are narrower; three of the MLP; attention. Every "
        "token of the sequence goes through the decoder and through the head. Attention of n tokens of width d: "
        "4 * n * n * d.",
        "sequence = n // r**2 + num_text_tokens\n"
        "vision = 2*n*d*3*patch_size**2 + num_blocks * (2*n*(4*d*d + 2*d*inter_dim) + 4*n*n*d)\n"
        "projector = 2 * tokens * (d * r**2) * width\n"
        "weights = …                       # of one decoder block: q, out, k, v, MLP\n"
        "decoder = num_blocks * (2*sequence*weights + 4*sequence*sequence*width)\n"
        "head = 2 * sequence * width * vocab_size",
    ),
    reference=shares_of,
    cases=_flops_cases,
    call=_fitting,
)


@FLOPS.property("the shares sum to 1, and a longer text leaves the encoder a smaller one")
def _(fn) -> None:
    short, long = fn(SMALL[2], 9), fn(SMALL[2], 40)
    expect(abs(sum(short.values()) - 1) < 1e-6, f"The shares sum to {sum(short.values()):.4f}.")
    expect(long["vision_encoder"] < short["vision_encoder"], "A longer text should leave the encoder a smaller share.")


@FLOPS.mistake("The attention itself is missing: scores and weighted sum are products too, 4 * n * n * d a block.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, pairs=0)


@FLOPS.mistake("One of attention's two products is missing: the scores q k, and then the weighted sum of v.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, pairs=0.5)


@FLOPS.mistake("Decoder and head read the text alone. The image tokens go through them as well.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, line=num_text_tokens)


@FLOPS.mistake("Decoder and head read a token for every patch. Pixel shuffle has made r * r times fewer of them.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, line=config.vision.num_patches + num_text_tokens)


@FLOPS.mistake("The decoder's MLP has three matrices (gate, up, down); you count two, as in the encoder.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, matrices=2)


@FLOPS.mistake("k and v are as wide as q in your count. Key/value heads are shared: num_kv_heads * head_dim.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, kv=lambda language: language.hidden_dim)


@FLOPS.mistake("k and v have one number a head in your count. Each key/value head is head_dim wide: multiply.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, kv=lambda language: language.num_kv_heads)


@FLOPS.mistake("k and v are one head wide in your count. There are num_kv_heads of them: num_kv_heads * head_dim.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, kv=lambda language: language.head_dim)


@FLOPS.mistake(
    "The projector's linear layer runs on every patch in your count. It runs on the tokens, r * r times fewer."
)
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, projector=lambda r: r**2)


@FLOPS.mistake(
    "The projector's tokens are as wide as one patch in your count. Pixel shuffle makes them r * r times wider."
)
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, projector=lambda r: 1 / r**2)


@FLOPS.mistake("The head runs on the text alone in your count. Every position of the sequence goes through it.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, head_line=num_text_tokens)


@FLOPS.mistake("The head runs on one position in your count. Here every position of the sequence goes through it.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, head_line=1)


@FLOPS.mistake("Encoder and decoder have one block each in your count: multiply by num_blocks.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, vision_blocks=1, blocks=1)


@FLOPS.mistake("The encoder has one block in your count: multiply by config.vision.num_blocks.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, vision_blocks=1)


@FLOPS.mistake("The decoder has one block in your count: multiply by config.language.num_blocks.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, blocks=1)


@FLOPS.mistake("The blocks of encoder and decoder are swapped in your count: each part has its own num_blocks.")
def _(config, num_text_tokens):
    blocks = {"vision_blocks": config.language.num_blocks, "blocks": config.vision.num_blocks}
    return _shares(config, num_text_tokens, **blocks)


@FLOPS.mistake("The patch convolution is missing: a linear layer on 3 * patch_size² pixels, for each patch.")
def _(config, num_text_tokens):
    return _shares(config, num_text_tokens, no_conv=True)


@FLOPS.mistake(
    "These are shares of the parameters. A weight costs two operations for each token that passes, and different parts "
    "see different numbers of tokens."
)
def _(config, num_text_tokens):
    t = traced(SMALL.index(config), num_text_tokens)
    rows = (t["vision_encoder"], t["projector"], t["decoder"], t["decoder.head"])
    total = sum(row.params for row in rows)
    return {name: row.params / total for name, row in zip(PARTS, rows, strict=True)}
