"""Chapter 12: reading a trace, and three bugs to find with one."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig
from nanovlm.course.exercises.common import learns, noise
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect, with_weights
from nanovlm.models.modality_projector import pixel_shuffle
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.trace import Trace, trace

# -- trace.read_trace --------------------------------------------------------------------------------------------------


def small(grid: int, factor: int, blocks: tuple[int, int], heads: tuple[int, int, int], dims: int) -> VLMConfig:
    """A tiny model. blocks: of encoder and decoder. heads: the encoder's, the decoder's, its key/value heads."""
    vision = ViTConfig(dims * heads[0], 3 * dims, blocks[0], heads[0], image_size=4 * grid, patch_size=4)
    language = LMConfig(dims * heads[1], 5 * dims, blocks[1], heads[1], heads[2], vocab_size=23, max_positions=256)
    projector = ProjectorConfig(vision.hidden_dim, language.hidden_dim, factor)
    return VLMConfig(vision, projector, language, image_token_id=None, eos_token_id=0)


SMALL = (
    small(4, 2, (2, 3), (2, 4, 2), dims=6),
    small(6, 3, (1, 4), (3, 6, 2), dims=4),
    small(6, 2, (3, 2), (2, 4, 1), dims=10),
)


@cache
def traced(i: int, num_text_tokens: int, batch_size: int = 1) -> Trace:
    """A trace of SMALL[i], with one picture in front of each text. Made once: it need not count as a check's time."""
    size = SMALL[i].vision.image_size
    ids, images = torch.zeros(batch_size, num_text_tokens, dtype=torch.long), torch.zeros(batch_size, 3, size, size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return trace(VisionLanguageModel(SMALL[i]), ids, images)


def on_meta(config: VLMConfig, num_text_tokens: int) -> Trace:
    """The same of a model of any size, without its weights."""
    with torch.device("meta"):
        model = VisionLanguageModel(config)
    size = config.vision.image_size
    ids, images = torch.zeros(1, num_text_tokens, dtype=torch.long), torch.zeros(1, 3, size, size)
    return trace(model, ids, images, device="meta")


def read(t: Trace) -> dict[str, int]:
    """The same numbers, from rows of another kind where there is one."""
    decoder = [row for row in t.rows if row.kind == "module" and row.path.startswith("decoder.blocks.")]
    query_key_value = t["decoder.blocks.0.attn"].children
    attention = next(row for row in query_key_value if row.name == "attend").inputs
    return {
        "patches": t["Conv2d"].shape[-1] ** 2,
        "image_tokens": t["projector.proj"].shape[1],
        "sequence": t["decoder"].inputs[0].shape[1],
        "decoder_blocks": len({row.path.split(".")[2] for row in decoder}),
        "kv_heads": attention[1].shape[1],
    }


def _cases() -> list[Case]:
    lengths = (5, 9, 7)
    for i, length in enumerate(lengths):
        traced(i, length)  # made before the learner's time begins
    notes = (
        "a tiny model: 4x4 patches, r = 2, a text of 5 tokens",
        "6x6 patches, r = 3, a text of 9 tokens",
        "6x6 patches, r = 2, a text of 7 tokens",
    )
    return [Case(i, length, note=note) for i, (length, note) in enumerate(zip(lengths, notes, strict=True))]


READ = Exercise(
    id="trace.read_trace",
    chapter="12",
    title="Ask a trace",
    difficulty=1,
    minutes=8,
    why="A trace is no picture but an object: what you can read off it with your eyes, a test can read off it every "
    "night.",
    hints=(
        "Each of the five is the size of one dim of one tensor, or a count of rows. Which step's tensor? Look at the "
        "printed tree.",
        'Module paths: t["vision_encoder"], t["projector"], t["decoder"]. What goes *into* a step is row.inputs. For '
        "the blocks, find them by their class; for the heads, take attention inside the decoder, not the encoder's.",
        't["vision_encoder"].shape[1], and the projector in the same way\n'
        't["decoder"].inputs[0].shape[1]\n'
        'len(t.find("DecoderBlock"))\n'
        'q, k, v = t.find("scaled_dot_product_attention")[-1].inputs      # [B, heads, length, head_dim]',
    ),
    reference=read,
    cases=_cases,
    call=lambda fn, i, length: fn(traced(i, length)),
)


def _right(t: Trace) -> dict[str, int]:
    attention = t.find("scaled_dot_product_attention")[-1].inputs
    return {
        "patches": t["vision_encoder"].shape[1],
        "image_tokens": t["projector"].shape[1],
        "sequence": t["decoder"].shape[1],
        "decoder_blocks": len(t.find("DecoderBlock")),
        "kv_heads": attention[1].shape[1],
    }


@READ.mistake(
    "image_tokens is the number of patches: that is the encoder's output. Pixel shuffle makes fewer tokens of them."
)
def _(t):
    return _right(t) | {"image_tokens": t["vision_encoder"].shape[1]}


@READ.mistake(
    "sequence counts the text alone. The image tokens stand in front of it: look at what goes into the decoder."
)
def _(t):
    return _right(t) | {"sequence": t["decoder.token_embedding"].shape[1]}


@READ.mistake(
    "decoder_blocks counts the encoder's blocks too: both lists are called blocks. Ask for the class, or for a path "
    "that begins with the decoder."
)
def _(t):
    return _right(t) | {"decoder_blocks": len(t.find("DecoderBlock")) + len(t.find("ViTBlock"))}


for sentence, key, number in (
    (
        "sequence has a position for every patch. Pixel shuffle came before the decoder: look at what goes into it.",
        "sequence",
        lambda t: t["vision_encoder"].shape[1] + t["decoder.token_embedding"].shape[1],
    ),
    (
        "sequence counts the picture alone. The text follows it: look at what goes into the decoder.",
        "sequence",
        lambda t: t["projector"].shape[1],
    ),
    ("decoder_blocks are the blocks of the encoder. Both lists are called blocks: ask for the class DecoderBlock.",
     "decoder_blocks", lambda t: len(t.find("ViTBlock"))),
    ("decoder_blocks is one too few: the last index, counted from 0, is no count.",
     "decoder_blocks", lambda t: len(t.find("DecoderBlock")) - 1),
    ("kv_heads is how wide a head is. Attention gets [B, heads, length, head_dim]: heads are dim 1.",
     "kv_heads", lambda t: t.find("scaled_dot_product_attention")[-1].inputs[1].shape[-1]),
    ("kv_heads is how wide all key/value heads together are. Look behind the split into heads, at attention's inputs.",
     "kv_heads", lambda t: t["decoder.blocks.0.attn.k_proj"].shape[-1]),
    ("kv_heads divides by a head_dim of 8, which holds for other models. Read it off attention's inputs.",
     "kv_heads", lambda t: t["decoder.blocks.0.attn.k_proj"].shape[-1] // 8),
    ("patches is one side of the grid. The encoder hands over rows times columns of them.",
     "patches", lambda t: t["Conv2d"].shape[-1]),
    ("patches is how wide a vector is. How many there are is dim 1 of [B, patches, dim].",
     "patches", lambda t: t["vision_encoder"].shape[2]),
):  # fmt: skip
    READ.mistake(sentence)(lambda t, key=key, number=number: _right(t) | {key: number(t)})


@READ.mistake("The numbers of the first trace are written down here. Read them off the trace that comes in.")
def _(t):
    return {"patches": 16, "image_tokens": 4, "sequence": 9, "decoder_blocks": 3, "kv_heads": 2}


@READ.mistake("kv_heads is the number of query heads. Attention gets q, k and v: look at the second of them.")
def _(t):
    return _right(t) | {"kv_heads": t.find("scaled_dot_product_attention")[-1].inputs[0].shape[1]}


@READ.mistake(
    "kv_heads is the vision encoder's: the first attention of the trace is there. You want one inside the decoder."
)
def _(t):
    return _right(t) | {"kv_heads": t.find("scaled_dot_product_attention")[0].inputs[1].shape[1]}


# -- trace.bug_projector -----------------------------------------------------------------------------------------------


def named_as(module: nn.Module, original: nn.Module) -> nn.Module:
    """The module with equal parameters under equal names, once it is sure that it has the names of the original."""
    if not isinstance(module, nn.Module):
        return with_weights(module)  # says what is wrong
    wanted, own = dict(original.named_children()), dict(module.named_children())
    for name, part in wanted.items():
        kind = type(part).__name__
        others = [other for other, like in own.items() if other not in wanted and isinstance(like, type(part))]
        instead = f"yours is called `{others[0]}`" if others else "your module has none"
        expect(name in own, f"Keep the name `{name}`: {instead}.")
        expect(isinstance(own[name], type(part)), f"`{name}` was a {kind}; yours is {type(own[name]).__name__}.")
    return with_weights(module)


class Projector(nn.Module):
    """The right one; `wide` and `tokens` are what wrong versions change."""

    def __init__(self, vision_dim: int, language_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(vision_dim)
        self.proj = nn.Linear(self.wide(vision_dim), language_dim)

    def wide(self, dim: int) -> int:
        return dim * self.factor**2

    def tokens(self, x: Tensor) -> Tensor:
        return pixel_shuffle(x, self.factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.tokens(self.norm(x)))


def _project(cls: Any, sizes: tuple[int, int, int], x: Tensor) -> Tensor:
    vision_dim, _language_dim, factor = sizes
    module = named_as(cls(*sizes), Projector(*sizes))
    expect(
        module.norm.eps == 1e-5,
        f"The norm's eps is {module.norm.eps:g}; it was torch's own. Change only what is wrong.",
    )
    expect(module.proj.bias is not None, "The bias of `proj` is gone. Change only what is wrong.")
    try:
        return module(x)
    except RuntimeError as error:
        tokens, layer = vision_dim * factor**2, module.proj.in_features
        if layer == tokens or "multiplied" not in str(error):
            raise
        raise Complaint(
            f"The layer still does not fit: after pixel_shuffle a token has {vision_dim} * {factor} * {factor} = "
            f"{tokens} numbers, and proj takes {layer}. A group of patches has factor rows of factor patches."
        ) from error


BUG_PROJECTOR = Exercise(
    id="trace.bug_projector",
    chapter="12",
    title="Bug 1: the projector",
    difficulty=1,
    minutes=6,
    why="torch names two flattened matrices that nobody wrote. With the input's real shape and the layer's sizes side "
    "by side, the bug is arithmetic.",
    hints=(
        "The explained message has two numbers in its first line. Where does each of them come from?",
        "How wide is a token after pixel shuffle, by vision_dim and factor? How wide does __init__ think it is?",
        "A tile has factor rows of factor patches.\nself.proj = nn.Linear(vision_dim * ???, language_dim)",
    ),
    reference=Projector,
    cases=lambda: [
        Case((3, 2, 2), noise(1, 4, 3), note="a 2x2 grid, vision_dim 3, language_dim 2, r = 2"),
        Case((4, 5, 3), noise(2, 36, 4, seed=1), note="two 6x6 grids, vision_dim 4, r = 3"),
        Case((4, 3, 2), noise(1, 36, 4, seed=2), note="a 6x6 grid, r = 2"),
    ],
    axes="batch tokens language_dim",
    call=_project,
)


@BUG_PROJECTOR.property("every patch of a tile reaches its token")
def _(cls) -> None:
    x = noise(1, 16, 3).requires_grad_()
    out = with_weights(cls(3, 5, 2))(x)
    learns(out)
    out[0, 0].square().sum().backward()
    reached = x.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    expect(reached == [0, 1, 4, 5], f"Token 0 of a 4x4 grid is made of patches {reached}; its tile is [0, 1, 4, 5].")


@BUG_PROJECTOR.mistake(
    "The layer is as wide as one patch now, and the tile's patches are averaged to fit. No error, but three quarters "
    "of the numbers are gone: what r = 2 should have laid side by side is one mean."
)
class _(Projector):
    def wide(self, dim: int) -> int:
        return dim

    def tokens(self, x: Tensor) -> Tensor:
        return super().tokens(x).unflatten(-1, (self.factor**2, -1)).mean(-2)


@BUG_PROJECTOR.mistake(
    "You made the tokens fit the layer: cut into shorter ones, there are r times too many. The layer is what is wrong."
)
class _(Projector):
    def wide(self, dim: int) -> int:
        return dim * self.factor

    def tokens(self, x: Tensor) -> Tensor:
        wide = super().tokens(x)
        return wide.reshape(wide.shape[0], -1, wide.shape[-1] // self.factor)


@BUG_PROJECTOR.mistake(
    "The shape is right and the tokens are wrong: a plain reshape joins strips of a row. Keep pixel_shuffle; the bug "
    "is not there."
)
class _(Projector):
    def tokens(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, self.proj.in_features)


@BUG_PROJECTOR.mistake(
    "The tokens are cut off where the layer ends: a part of each group of patches is thrown away. The layer is what is "
    "wrong."
)
class _(Projector):
    def wide(self, dim: int) -> int:
        return dim * self.factor

    def tokens(self, x: Tensor) -> Tensor:
        return super().tokens(x)[..., : self.proj.in_features]


@BUG_PROJECTOR.mistake(
    "The numbers of a token stand channel by channel, as F.pixel_unshuffle has them. Weights that were trained with "
    "pixel_shuffle want them patch by patch: keep that call."
)
class _(Projector):
    def tokens(self, x: Tensor) -> Tensor:
        side = round(x.shape[1] ** 0.5)
        image = x.transpose(1, 2).unflatten(2, (side, side))
        return nn.functional.pixel_unshuffle(image, self.factor).flatten(2).transpose(1, 2)


@BUG_PROJECTOR.mistake("The norm runs twice: the norm twice in a row is another function, because of its weights.")
class _(Projector):
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.tokens(self.norm(self.norm(x))))


@BUG_PROJECTOR.mistake("There is an activation behind the layer now. Change only what is wrong.")
class _(Projector):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@BUG_PROJECTOR.mistake("The norm is forgotten: self.norm(x) comes first, before pixel_shuffle.")
class _(Projector):
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.tokens(x))


@BUG_PROJECTOR.mistake(
    "The norm was right: it normalises each patch. Behind the shuffle it would normalise whole tiles."
)
class _(Projector):
    def __init__(self, vision_dim: int, language_dim: int, factor: int) -> None:
        super().__init__(vision_dim, language_dim, factor)
        self.norm = nn.LayerNorm(self.wide(vision_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(self.tokens(x)))
