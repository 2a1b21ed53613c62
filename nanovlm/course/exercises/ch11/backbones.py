"""Chapter 11: trained parts under other names, a test that they arrived, and rows for new tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.files import extend_rows
from nanovlm.models.vision_transformer import ViT
from nanovlm.weights.backbones import SIGLIP_UNUSED, siglip_tensors
from nanovlm.weights.tensor_names import siglip_slots, to_theirs

# -- full.map_names ----------------------------------------------------------------------------------------------------

SMALL = ViTConfig(hidden_dim=8, inter_dim=12, num_blocks=2, num_heads=2, image_size=8, patch_size=4)


def siglip_file(extra: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """What the file of a two-block SigLIP holds, in transformers' names; `extra` and `without` spoil it."""
    ours = {name: t.clone() for name, t in with_weights(ViT(SMALL)).state_dict().items()}
    file = to_theirs(siglip_slots(SMALL.num_blocks), ours)
    file = {name: tensor for name, tensor in file.items() if name not in without}
    return file | {name: noise(3) for name in extra}


def map_names(tensors: dict[str, Tensor], num_blocks: int) -> dict[str, Tensor]:
    theirs = {name: tensor for name, tensor in tensors.items() if not name.startswith(SIGLIP_UNUSED)}
    ours = siglip_tensors(theirs, num_blocks)
    if left := [name for name in ours if name in theirs]:
        raise ValueError(f"nothing here is called {', '.join(left)}")
    return ours


def run_map(mapping, extra: tuple[str, ...], without: tuple[str, ...]) -> dict[str, Any]:
    """Our names and tensors, or whether it was refused with the name that does not fit."""
    try:
        out = mapping(siglip_file(extra, without), SMALL.num_blocks)
    except ValueError as error:
        if not (extra or without):
            raise
        named = any(name in str(error) for name in extra)
        siblings = any(which in str(error) for which in ("q_proj", "k_proj", "v_proj"))
        return {"refused, and says which": named if extra and "unused" not in extra[0] else siblings}
    if not isinstance(out, dict):
        return out
    return dict(sorted(out.items()))


OTHERS = ("text_model.final_layer_norm.weight", "logit_scale", "vision_model.head.probe")
ODD = "vision_model.encoder.layers.0.self_attn.q_norm.weight"
LOST = "vision_model.encoder.layers.1.self_attn.v_proj.weight"

MAP = Exercise(
    id="full.map_names",
    chapter="11",
    title="The same tensors under other names",
    difficulty=2,
    minutes=18,
    why="A backbone that is loaded under the wrong names raises no error if one asks for strict=False: the model trains "
    "from random weights, and its loss stays high for a reason that nothing prints.",
    hints=(
        "Write the pairs for block 0 by hand on paper, all of them. Which three of theirs become one of ours?",
        "Drop what belongs to the text tower and to the pooling head, take each remaining tensor out of a copy of the "
        "dict as you map it, and raise ValueError with the names that are left at the end. q, k and v are stacked by "
        "rows, in this order; the position embedding gains a leading dimension of 1.",
        "left = {name: t for name, t in tensors.items() if not name.startswith(…)}\n"
        "for i in range(num_blocks):\n"
        "    theirs, block = f'vision_model.encoder.layers.{i}', f'blocks.{i}'\n"
        "    for part in ('weight', 'bias'):\n"
        "        three = [left.pop(f'{theirs}.self_attn.{w}_proj.{part}') for w in …]\n"
        "        ours[f'{block}.attn.qkv_proj.{part}'] = torch.cat(three)\n"
        "        …the other five modules of a block, popped one by one\n"
        "if left:\n"
        "    raise ValueError(…the names…)",
    ),
    reference=map_names,
    cases=lambda: [
        Case((), (), note="a vision tower alone, two blocks"),
        Case(OTHERS, (), note="a whole SigLIP, with a text tower and a pooling head"),
        Case((ODD,), (), note="a tensor that our model has no place for: ValueError with its name"),
        Case((), (LOST,), note="a file without one block's v: ValueError with the names of q and k, or of v"),
    ],
    call=run_map,
)


@MAP.property("our encoder takes the result strictly, and computes what it computed before")
def _(mapping) -> None:
    model, right = ViT(SMALL), with_weights(ViT(SMALL))
    try:
        model.load_state_dict(mapping(siglip_file(), SMALL.num_blocks))
    except RuntimeError as error:
        expect(False, f"Strict loading refuses it: {' '.join(str(error).split())[:160]}")
    images = noise(2, 3, 8, 8)
    expect(torch.allclose(model(images), right(images), atol=1e-5), "It loads, but the features are other ones.")


def _mapped(
    order: str = "qkv",
    dim: int = 0,
    transpose: bool = False,
    loose: bool = False,
    swap: bool = False,
    flat_positions: bool = False,
    biases: bool = True,
    keep_all: bool = False,
):
    def mapping(tensors, num_blocks):
        left = {n: t for n, t in tensors.items() if keep_all or not n.startswith(SIGLIP_UNUSED)}
        ours: dict[str, Tensor] = {}
        positions = left.pop("vision_model.embeddings.position_embedding.weight")
        ours["patch_embedding.position_embedding"] = positions if flat_positions else positions[None]
        norms = ("layer_norm2", "layer_norm1") if swap else ("layer_norm1", "layer_norm2")
        same = {"embeddings.patch_embedding": "patch_embedding.conv", "post_layernorm": "layer_norm"}
        for i in range(num_blocks):
            theirs, block = f"encoder.layers.{i}", f"blocks.{i}"
            same |= {f"{theirs}.{norms[0]}": f"{block}.ln1", f"{theirs}.{norms[1]}": f"{block}.ln2"}
            same |= {f"{theirs}.mlp.fc{j}": f"{block}.mlp.fc{j}" for j in (1, 2)}
            same[f"{theirs}.self_attn.out_proj"] = f"{block}.attn.out_proj"
            for part in ("weight", "bias"):
                names = [f"vision_model.{theirs}.self_attn.{w}_proj.{part}" for w in order]
                if loose and any(name not in left for name in names):
                    continue
                if any(name not in left for name in names):
                    raise ValueError(f"{names} are not all there")
                three = [left.pop(name) for name in names]
                if transpose and part == "weight":
                    three = [t.T.contiguous() for t in three]
                ours[f"{block}.attn.qkv_proj.{part}"] = torch.cat(three, dim=dim if part == "weight" else 0)
        for name, target in same.items():
            for part in ("weight", "bias"):
                tensor = left.pop(f"vision_model.{name}.{part}")
                if biases or part == "weight" or name == "embeddings.patch_embedding":
                    ours[f"{target}.{part}"] = tensor.T if transpose and tensor.ndim == 2 else tensor
        if left and not loose:
            raise ValueError(f"nothing here is called {', '.join(left)}")
        return ours

    return mapping


MAP.mistake(
    "k is stacked before q. Our qkv_proj holds q, then k, then v: with q and k swapped, every query asks as a key."
)(_mapped(order="kqv"))
MAP.mistake("v is stacked in front. Our qkv_proj holds q, then k, then v.")(_mapped(order="vqk"))
MAP.mistake("q, k and v are joined side by side (dim=1). A Linear's rows are its outputs, so stack them: dim=0.")(
    _mapped(dim=1)
)
MAP.mistake(
    "The matrices are transposed. Both libraries keep a Linear's weight as [out, in]: leave the tensors as they are."
)(_mapped(transpose=True))
MAP.mistake(
    "What has no place is dropped in silence, which is what strict=False does. Raise ValueError with the names."
)(_mapped(loose=True))
MAP.mistake(
    "The two norms are exchanged: layer_norm1 comes before the attention (our ln1), layer_norm2 before the MLP."
)(_mapped(swap=True))
MAP.mistake("Our position embedding is [1, patches, dim]; theirs lacks the leading dimension: tensor[None].")(
    _mapped(flat_positions=True)
)
MAP.mistake("The biases of norms and layers are missing: every module has a weight and a bias.")(_mapped(biases=False))
MAP.mistake(
    "It refuses a whole SigLIP. The text tower, logit_scale, logit_bias and vision_model.head. are known and not needed: "
    "leave them out."
)(_mapped(keep_all=True))

# -- full.parity_test --------------------------------------------------------------------------------------------------

PARITY_SIZE = 8  # pixels; patches of 4


def encoder(change: Callable[[ViT], None] | None = None) -> nn.Module:
    model = with_weights(ViT(SMALL)).eval()
    if change is not None:
        with torch.no_grad():
            change(model)
    return model


def _swap_qk(model: ViT) -> None:
    for block in model.blocks:
        for p in (block.attn.qkv_proj.weight, block.attn.qkv_proj.bias):
            q, k, v = p.chunk(3)
            p.copy_(torch.cat([k, q, v]))


def _other_channels(model: ViT) -> None:
    model.patch_embedding.conv.weight.copy_(model.patch_embedding.conv.weight.flip(1))


def _no_positions(model: ViT) -> None:
    model.patch_embedding.position_embedding.zero_()


def _no_patches(model: ViT) -> None:
    model.patch_embedding.conv.weight.copy_(noise(*model.patch_embedding.conv.weight.shape))


def _not_loaded(model: ViT) -> None:
    for i, p in enumerate(model.parameters()):
        p.copy_(0.02 * noise(*p.shape, seed=i))


class Wrapped(nn.Module):
    """An encoder behind something: another precision on the way, or another order of its tokens."""

    def __init__(self, inner: nn.Module, double: bool = False, transposed: bool = False) -> None:
        super().__init__()
        self.inner, self.double_, self.transposed = inner.double() if double else inner, double, transposed

    def forward(self, images: Tensor) -> Tensor:
        out = self.inner(images.double() if self.double_ else images).float()
        if self.transposed:
            side = PARITY_SIZE // 4
            out = out.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
        return out


def is_loaded(ours: nn.Module, theirs: nn.Module) -> bool:
    images = torch.randn(2, 3, PARITY_SIZE, PARITY_SIZE)
    with torch.no_grad():
        a, b = ours(images), theirs(images)
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)


PARITY = Exercise(
    id="full.parity_test",
    chapter="11",
    title="Write the test: did the weights arrive?",
    difficulty=2,
    minutes=12,
    why="A backbone with one wrong tensor has the right shapes, trains, and gives a somewhat worse model. Comparing "
    "features with the library that the weights come from takes a second, before the first step.",
    hints=(
        "Two encoders with the same weights give the same numbers for the same pictures. For which pictures could two "
        "different encoders agree by luck?",
        "Random pictures [2, 3, 8, 8]: in a grey picture the channels are alike, in a constant one all patches are. "
        "Compare all features, not a mean over them, with a tolerance, under torch.no_grad().",
        "images = …\n"
        "with torch.no_grad():\n"
        "    a, b = ours(images), theirs(images)\n"
        "return torch.allclose(a, b, atol=1e-4)",
    ),
    reference=is_loaded,
    cases=lambda: [
        Case(encoder(), encoder(), note="a right encoder"),
        Case(Wrapped(encoder(), double=True), encoder(), note="a right encoder that computes in float64"),
        Case(encoder(_not_loaded), encoder(), note="an encoder into which nothing was loaded"),
        Case(encoder(_swap_qk), encoder(), note="an encoder with queries and keys exchanged"),
        Case(encoder(_other_channels), encoder(), note="an encoder that takes blue for red"),
        Case(encoder(_no_patches), encoder(), note="an encoder whose patch embedding stayed random"),
        Case(encoder(_no_positions), encoder(), note="an encoder without its positions"),
        Case(Wrapped(encoder(), transposed=True), encoder(), note="an encoder whose rows and columns are exchanged"),
    ],
)


def _compare(images: Callable[[], Tensor], what: Callable[[Tensor], Tensor] = lambda x: x, atol: float = 1e-4):
    def test(ours, theirs) -> bool:
        with torch.no_grad():
            a, b = what(ours(images())), what(theirs(images()))
        return torch.allclose(a, b, atol=atol, rtol=1e-5 if atol else 0)

    return test


def _random() -> Tensor:
    return noise(2, 3, PARITY_SIZE, PARITY_SIZE)


PARITY.mistake(
    "It accepts every encoder, as a look at the shapes or at the number of parameters does: compare numbers."
)(lambda ours, theirs: True)
PARITY.mistake("It refuses every encoder, the right ones too.")(lambda ours, theirs: False)
PARITY.mistake(
    "It compares bit by bit, or the weights themselves, and so refuses a right encoder that rounds elsewhere: use a "
    "tolerance."
)(_compare(_random, atol=0.0))
PARITY.mistake(
    "It looks at a grey picture, whose three channels are alike, so it cannot see that blue was taken for red."
)(_compare(lambda: _random()[:, :1].expand(-1, 3, -1, -1)))
PARITY.mistake(
    "It looks at a picture of one colour. There all patches and all channels are alike, and exchanged ones go unseen: "
    "take random numbers."
)(_compare(lambda: torch.zeros(2, 3, PARITY_SIZE, PARITY_SIZE)))
PARITY.mistake(
    "It compares a mean over the patches, which stays the same when they change places: compare every feature."
)(_compare(_random, lambda x: x.mean(dim=1)))
PARITY.mistake("Its tolerance is so wide that an encoder with one wrong part passes: 1e-4 is wide enough.")(
    _compare(_random, atol=1.0)
)

# -- full.extend_embeddings --------------------------------------------------------------------------------------------


def extend_embeddings(
    embedding: nn.Embedding, head: nn.Linear, new_tokens: int, multiple: int
) -> tuple[nn.Embedding, nn.Linear]:
    rows = -(-(embedding.num_embeddings + new_tokens) // multiple) * multiple
    larger = nn.Embedding.from_pretrained(extend_rows(embedding.weight.detach(), rows), freeze=False)
    out = nn.Linear(head.in_features, rows, bias=False)
    tied = head.weight is embedding.weight
    out.weight = larger.weight if tied else nn.Parameter(extend_rows(head.weight.detach(), rows))
    return larger, out


def run_extend(extend, rows: int, dim: int, tied: bool, new_tokens: int, multiple: int) -> tuple[Any, ...]:
    """What comes out for an embedding of known numbers: the two weights, whether they are one, and are trained."""
    embedding, head = nn.Embedding(rows, dim), nn.Linear(dim, rows, bias=False)
    with torch.no_grad():
        embedding.weight.copy_(noise(rows, dim, seed=rows) + 0.5)
        head.weight.copy_(noise(rows, dim, seed=rows + 1) - 0.25)
    if tied:
        head.weight = embedding.weight
    before = embedding.weight.detach().clone()
    out = extend(embedding, head, new_tokens, multiple)
    expect(
        isinstance(out, tuple) and len(out) == 2 and all(hasattr(part, "weight") for part in out),
        "Return the two modules, (embedding, head).",
    )
    expect(torch.equal(embedding.weight[:rows], before), "It writes into the old rows. Their tokens are trained.")
    e, h = out[0].weight, out[1].weight
    return e.detach(), h.detach(), "one tensor" if h is e else "two tensors", e.requires_grad and h.requires_grad


EXTEND = Exercise(
    id="full.extend_embeddings",
    chapter="11",
    title="Rows for new tokens",
    difficulty=2,
    minutes=12,
    why="The image placeholder and the tile tokens are not in SmolLM2's vocabulary. Their rows decide how the first steps "
    "go: a loud random row disturbs every prediction, and a head that is no longer tied is 28 million weights more.",
    hints=(
        "How many rows in all? They must hold the old tokens and the new ones, rounded up to a multiple once.",
        "New rows are the mean of the old ones. Build new modules, copy the old rows, and keep what was tied tied: the "
        "head's weight is then the embedding's own Parameter, not a copy. An untied head gets the mean of its own rows.",
        "rows = …round embedding.num_embeddings + new_tokens up to a multiple\n"
        "more = weight.mean(dim=…, keepdim=True).expand(rows - len(weight), -1)\n"
        "larger = nn.Embedding.from_pretrained(torch.cat([weight, more]), freeze=False)\n"
        "out = nn.Linear(dim, rows, bias=False)\n"
        "out.weight = larger.weight if … else nn.Parameter(the head's rows and their mean)\n"
        "return larger, out",
    ),
    reference=extend_embeddings,
    cases=lambda: [
        Case(6, 3, True, 1, 4, note="6 tokens and 1 new one, rows in fours, tied"),
        Case(5, 2, False, 2, 8, note="an untied head"),
        Case(6, 4, True, 2, 4, note="6 + 2 tokens fill 8 rows exactly"),
        Case(7, 3, True, 0, 1, note="nothing new"),
    ],
    axes={"embedding": "rows dim", "head": "rows dim", "tied": "", "trained": ""},
    call=run_extend,
)


@EXTEND.property("the probabilities of known tokens keep their order")
def _(extend) -> None:
    embedding, head = nn.Embedding(20, 6), nn.Linear(6, 20, bias=False)
    head.weight = embedding.weight
    x = noise(4, 6)
    _, larger = extend(embedding, head, 3, 8)
    expect(torch.allclose(larger(x)[:, :20], head(x), atol=1e-5), "The logits of the old tokens changed.")


def _extended(
    retie: str = "as before",
    new: Callable[[Tensor, int], Tensor] = lambda w, n: w.mean(0, keepdim=True).expand(n, -1),
    rows_of: Callable[[int, int, int], int] = lambda v, n, m: -(-(v + n) // m) * m,
    head_too: bool = True,
    frozen: bool = False,
):
    def extend(embedding, head, new_tokens, multiple):
        rows = rows_of(embedding.num_embeddings, new_tokens, multiple)

        def longer(weight):
            weight = weight.detach()
            return torch.cat([weight, new(weight, rows - len(weight))])

        larger = nn.Embedding.from_pretrained(longer(embedding.weight), freeze=frozen)
        out = nn.Linear(head.in_features, rows if head_too else head.out_features, bias=False)
        tied = head.weight is embedding.weight if retie == "as before" else retie == "always"
        if not head_too:
            out = head
        elif tied:
            out.weight = larger.weight
        else:
            out.weight = nn.Parameter(longer(head.weight), requires_grad=not frozen)
        return larger, out

    return extend


EXTEND.mistake(
    "The head was the embedding, and is now a copy: out.weight = larger.weight makes them one Parameter again."
)(_extended(retie="never"))
EXTEND.mistake("It ties a head that had weights of its own. Keep two tensors two.")(_extended(retie="always"))
EXTEND.mistake(
    "The new rows are random numbers of standard deviation 1. Trained rows are far smaller, so each new token would shout "
    "over all others: take the mean of the old rows."
)(_extended(new=lambda w, n: torch.nn.Embedding(n, w.shape[1]).weight.detach() if n else w[:0]))
EXTEND.mistake("The new rows are zero. Take the mean of the old rows, which is where an average token is.")(
    _extended(new=lambda w, n: torch.zeros(n, w.shape[1]))
)
EXTEND.mistake("The new rows are all one number, the mean of the whole table: take it over the rows, dim=0.")(
    _extended(new=lambda w, n: w.mean().expand(n, w.shape[1]))
)
EXTEND.mistake("The rows are not rounded up: they should be a multiple, and those behind the last token are spare.")(
    _extended(rows_of=lambda v, n, m: v + n)
)
EXTEND.mistake("Where the rows fit exactly it adds a whole multiple too many: round up, do not add one.")(
    _extended(rows_of=lambda v, n, m: ((v + n) // m + 1) * m)
)
EXTEND.mistake("It rounds the old rows up and then adds the new ones: round the sum.")(
    _extended(rows_of=lambda v, n, m: -(-v // m) * m + n)
)
EXTEND.mistake("The head has as few rows as before, so it can never say a new token: it needs the same rows.")(
    _extended(head_too=False)
)
EXTEND.mistake("The new tables are frozen: from_pretrained does that unless told freeze=False.")(_extended(frozen=True))
