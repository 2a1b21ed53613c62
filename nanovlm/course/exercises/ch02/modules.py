"""Chapter 02: the two halves of a block: attention, which moves information between patches, and the MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course.exercises.ch02.attention import WRONG_ATTENTION, WRONG_SPLIT, attend, split_heads
from nanovlm.course.exercises.common import expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.vision_transformer import ViTAttention, ViTMLP

# -- vit.attention_module ----------------------------------------------------------------------------------------------

SMALL = ViTConfig(hidden_dim=4, inter_dim=10, num_blocks=1, num_heads=2, image_size=8, patch_size=4)
WIDER = ViTConfig(hidden_dim=12, inter_dim=20, num_blocks=1, num_heads=3, image_size=12, patch_size=4)


def run_attention(cls, x: Tensor, config: ViTConfig) -> Tensor:
    return with_weights(cls(config), like=ViTAttention(config))(x)


MODULE = Exercise(
    id="vit.attention_module",
    chapter="02",
    title="Every patch attends to every patch",
    difficulty=2,
    minutes=10,
    why="This is a part of your own vision encoder, and it runs the shipped weights. The way back from heads to one "
    "vector is easy to get wrong without any sign of it, because the shape fits either way.",
    hints=(
        "Go there and back: one wide layer, cut into heads, attend, put the heads together, one more layer.",
        "qkv_proj makes 3 * dim numbers out of dim. After attention you hold [batch, num_heads, N, head_dim], and you "
        "want [batch, N, dim] with a patch's heads end to end. So patches must come before heads again before you "
        "merge.",
        "in __init__: self.num_heads, self.qkv_proj = nn.Linear(dim, 3 * dim), self.out_proj = nn.Linear(dim, dim)\n"
        "in forward:  q, k, v = split_heads(self.qkv_proj(x), self.num_heads)\n"
        "             mixed = attend(q, k, v)\n"
        "             return self.out_proj(mixed.….reshape(x.shape))",
    ),
    reference=ViTAttention,
    cases=lambda: [
        Case(noise(1, 3, 4), SMALL, note="three patches, hidden_dim 4, 2 heads"),
        Case(noise(2, 9, 12, seed=1), WIDER, note="two pictures of nine patches, hidden_dim 12, 3 heads"),
    ],
    axes="batch num_patches hidden_dim",
    call=run_attention,
)


@MODULE.property("patches in another order give the same answers in that order")
def _(cls) -> None:
    module, x, order = with_weights(cls(WIDER)), noise(1, 5, 12), torch.tensor([3, 0, 4, 1, 2])
    expect(
        torch.allclose(module(x)[:, order], module(x[:, order]), atol=1e-5),
        "Attention is permutation-equivariant, but here a patch's answer depends on its place in the sequence.",
    )


@MODULE.property("gradients reach the input and every parameter")
def _(cls) -> None:
    expect_same_gradients(with_weights(cls(WIDER)), with_weights(ViTAttention(WIDER)), noise(2, 5, 12))


class _Attention(nn.Module):
    """A ViTAttention to build wrong versions from."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    split = staticmethod(split_heads)
    attend = staticmethod(attend)

    def merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.merge(self.attend(*self.split(self.qkv_proj(x), self.num_heads))))


for _sentence, _version in WRONG_ATTENTION.items():
    if not _sentence.startswith("Keys and queries"):  # WRONG_SPLIT has it too
        MODULE.mistake(_sentence)(type("_", (_Attention,), {"attend": staticmethod(_version)}))
for _sentence, _version in WRONG_SPLIT.items():
    MODULE.mistake(_sentence)(type("_", (_Attention,), {"split": staticmethod(_version)}))


@MODULE.mistake(
    "The heads are merged without swapping the axes back: each output row holds one head of several patches, not all "
    "heads of one. Bring patches before heads, then reshape."
)
class _(_Attention):
    def merge(self, x: Tensor) -> Tensor:
        batch, num_heads, num_patches, head_dim = x.shape
        return x.reshape(batch, num_patches, num_heads * head_dim)


@MODULE.mistake("There is a single head as wide as the vector. Cut it into config.num_heads of them before attending.")
class _(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(*self.qkv_proj(x).chunk(3, dim=-1)))


@MODULE.mistake("num_heads and head_dim have changed places: head_dim is hidden_dim // num_heads.")
class _(_Attention):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.num_heads = config.hidden_dim // config.num_heads


@MODULE.mistake("The scores are divided by the root of hidden_dim. A head's dot product has head_dim products only.")
class _(_Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT / self.out_proj.in_features**0.5).softmax(-1) @ v


@MODULE.mistake("out_proj is there, but forward does not use it. It mixes what the heads have found; it comes last.")
class _(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.merge(attend(*self.split(self.qkv_proj(x), self.num_heads)))


@MODULE.mistake(
    "Attention runs between the heads of one patch, because heads and patches were not swapped before it. Patches must "
    "be next to head_dim."
)
class _(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in split_heads(self.qkv_proj(x), self.num_heads))
        return self.out_proj(attend(q, k, v).flatten(2))


@MODULE.mistake("x comes back added to the result. That addition belongs to the block, around the whole module.")
class _(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@MODULE.part
def _(code, learner) -> None:
    code.vision_transformer.ViTAttention = learner


# -- vit.mlp -----------------------------------------------------------------------------------------------------------


def run_mlp(cls, x: Tensor, config: ViTConfig) -> Tensor:
    return with_weights(cls(config), like=ViTMLP(config))(x)


MLP = Exercise(
    id="vit.mlp",
    chapter="02",
    title="Each patch on its own",
    difficulty=1,
    minutes=6,
    why="Two thirds of a block's weights are in the MLP. Which of the GELUs it has cannot be seen in a shape, but "
    "weights are trained with one of them and give other numbers with another.",
    hints=(
        "Make the vector wider, apply the activation, make it narrow again: three calls.",
        "fc1 goes from hidden_dim to inter_dim, and fc2 goes back. Between them is the GELU that SigLIP was trained "
        "with, by the tanh formula. F.gelu has an argument for it.",
        "in __init__: self.fc1 = nn.Linear(hidden_dim, inter_dim); self.fc2 = the other way round\n"
        "in forward:  return self.fc2(F.gelu(…))",
    ),
    reference=ViTMLP,
    cases=lambda: [
        Case(2 * noise(1, 2, 4), SMALL, note="two patches, hidden_dim 4, inter_dim 10"),
        Case(2 * noise(2, 5, 12, seed=1), WIDER, note="two pictures of five patches, hidden_dim 12, inter_dim 20"),
    ],
    axes="batch num_patches hidden_dim",
    call=run_mlp,
)


@MLP.property("no information moves between patches here")
def _(cls) -> None:
    module, x = with_weights(cls(WIDER)), noise(1, 5, 12)
    changed = x.clone()
    changed[0, 2] += 1
    moved = ((module(x) - module(changed)).abs().amax(-1)[0] > 1e-6).nonzero().flatten().tolist()
    expect(moved == [2], f"A change of patch 2 moves the outputs of the patches {moved}.")


@MLP.property("gradients reach the input and every parameter")
def _(cls) -> None:
    expect_same_gradients(with_weights(cls(SMALL)), with_weights(ViTMLP(SMALL)), noise(1, 3, 4))


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class _MLP(nn.Module):
    """A ViTMLP to build wrong versions from."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    act = staticmethod(_gelu)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


for _sentence, _version in {
    "Nearly: this is the exact GELU. SigLIP was trained with the tanh formula, and the two differ in the fourth "
    "decimal. F.gelu has an argument for it.": F.gelu,
    "This is ReLU, which sets all that is negative to zero. SigLIP's activation is GELU by the tanh formula.": F.relu,
    "This is tanh alone. GELU's tanh formula is x times a weight between 0 and 1, and tanh only helps to compute that "
    "weight.": torch.tanh,
    "This is sigmoid alone. GELU is x times a weight between 0 and 1, not the weight.": torch.sigmoid,
    "This is SiLU, which the decoder of chapter 04 has. The encoder has GELU by the tanh formula.": F.silu,
    "This is the quick GELU, x * sigmoid(1.702 x), which CLIP has. SigLIP has the tanh formula.": (
        lambda x: x * torch.sigmoid(1.702 * x)
    ),
    "This is leaky ReLU, another activation: SigLIP's is GELU by the tanh formula.": F.leaky_relu,
    "This is ELU, another activation: SigLIP's is GELU by the tanh formula.": F.elu,
    "This is softplus, another activation: SigLIP's is GELU by the tanh formula.": F.softplus,
    "The activation is applied twice. Once is enough, between fc1 and fc2.": lambda x: _gelu(_gelu(x)),
    "There is no activation, and two linear layers in a row are no more than one. Put GELU between them.": lambda x: x,
}.items():
    MLP.mistake(_sentence)(type("_", (_MLP,), {"act": staticmethod(_version)}))


@MLP.mistake("There is an activation behind fc2 too. What is added to the residual stream must be free to be negative.")
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return _gelu(super().forward(x))


@MLP.mistake("The activation comes behind fc2. Its place is between the layers, or they are no more than one.")
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return _gelu(self.fc2(self.fc1(x)))


@MLP.mistake("The activation comes before fc1. Its place is between the two layers.")
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(_gelu(x)))


@MLP.mistake("x is normalised in here. The norm belongs to the block, in front of the whole module.")
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.layer_norm(x, x.shape[-1:]))


@MLP.mistake("x comes back added to the result. That addition belongs to the block, around the whole module.")
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@MLP.part
def _(code, learner) -> None:
    code.vision_transformer.ViTMLP = learner
