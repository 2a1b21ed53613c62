"""Chapter 02: the two halves of a block: attention, where patches look at each other, and the MLP, where none does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.course.exercises.ch02.attention import attend, split_heads
from nanovlm.course.exercises.common import noise
from nanovlm.models.vision_transformer import ViTAttention, ViTMLP

# -- vit.attention_module ----------------------------------------------------------------------------------------------

SMALL = ViTConfig(hidden_dim=4, inter_dim=8, num_blocks=1, num_heads=2, image_size=8, patch_size=4)
WIDER = ViTConfig(hidden_dim=12, inter_dim=20, num_blocks=1, num_heads=3, image_size=12, patch_size=4)


def run_attention(cls, x: Tensor, config: ViTConfig) -> Tensor:
    return with_weights(cls(config), like=ViTAttention(config))(x)


MODULE = Exercise(
    id="vit.attention_module",
    chapter="02",
    title="Every patch looks at every patch",
    difficulty=2,
    minutes=10,
    why="This is a part of your own vision encoder: it runs the shipped weights. The way back from heads to "
    "one vector is easy to get wrong in silence: the shape fits either way.",
    hints=(
        "There and back: one wide layer, cut into heads, attend, put the heads together, one more layer.",
        "qkv_proj makes 3 * dim numbers of dim. After attention you hold [batch, num_heads, N, head_dim], and want "
        "[batch, N, dim] with a patch's heads end to end. So patches must stand before heads again, before you merge.",
        "in __init__: self.num_heads, self.qkv_proj = nn.Linear(dim, 3 * dim), self.out_proj = nn.Linear(dim, dim)\n"
        "in forward:  q, k, v = split_heads(self.qkv_proj(x), self.num_heads)\n"
        "             mixed = attend(q, k, v)\n"
        "             swap heads and patches back, reshape to the shape of x, then out_proj",
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
        "Attention knows no places, only contents; but here a patch's answer depends on where it stands in the row.",
    )


@MODULE.property("every weight matrix gets a gradient")
def _(cls) -> None:
    module = with_weights(cls(SMALL))
    module(noise(1, 3, 4)).square().sum().backward()
    idle = [n for n, p in module.named_parameters() if p.ndim > 1 and (p.grad is None or not p.grad.any())]
    expect(not idle, f"No gradient reaches {', '.join(idle)}.")


class _Attention(nn.Module):
    """A ViTAttention to build wrong versions from."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return split_heads(qkv, self.num_heads)

    def merge(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.merge(attend(*self.split(self.qkv_proj(x)))))


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


@MODULE.mistake("out_proj is there, but forward does not use it. It lets the heads' findings mix; put it last.")
class _(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.merge(attend(*self.split(self.qkv_proj(x))))


@MODULE.mistake("Queries and keys have changed places. qkv_proj gives q first, then k, then v.")
class _(_Attention):
    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        q, k, v = super().split(qkv)
        return k, q, v


@MODULE.mistake(
    "Attention runs between the heads of one patch: heads and patches were not swapped before it. Patches must stand "
    "next to head_dim."
)
class _(_Attention):
    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.transpose(1, 2) for part in super().split(qkv))

    def merge(self, x: Tensor) -> Tensor:
        return x.flatten(2)


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
    why="Two thirds of a block's weights sit here. Which of the GELUs it is cannot be seen in a shape, but weights are "
    "trained with one of them.",
    hints=(
        "Wider, bend, narrow again. Three calls.",
        "fc1 goes from hidden_dim to inter_dim, fc2 back. Between them stands the GELU that SigLIP was trained with: "
        "the tanh formula. F.gelu has an argument for it.",
        "in __init__: self.fc1 = nn.Linear(hidden_dim, inter_dim); self.fc2 = the other way round\n"
        'in forward:  fc2( F.gelu( fc1(x), approximate="tanh" ) )',
    ),
    reference=ViTMLP,
    cases=lambda: [
        Case(2 * noise(1, 2, 4), SMALL, note="two patches, hidden_dim 4, inter_dim 8"),
        Case(2 * noise(2, 5, 12, seed=1), WIDER, note="two pictures of five patches, hidden_dim 12, inter_dim 20"),
    ],
    axes="batch num_patches hidden_dim",
    call=run_mlp,
)


@MLP.property("patches do not look at each other here")
def _(cls) -> None:
    module, x = with_weights(cls(WIDER)), noise(1, 5, 12)
    changed = x.clone()
    changed[0, 2] += 1
    moved = ((module(x) - module(changed)).abs().amax(-1)[0] > 1e-6).nonzero().flatten().tolist()
    expect(moved == [2], f"A change of patch 2 moves the outputs of the patches {moved}.")


@MLP.property("every parameter gets a gradient")
def _(cls) -> None:
    module = with_weights(cls(SMALL))
    module(noise(1, 3, 4)).square().sum().backward()
    idle = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    expect(not idle, f"No gradient reaches {', '.join(idle)}.")


class _MLP(nn.Module):
    """A ViTMLP to build wrong versions from."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    def bend(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.bend(self.fc1(x)))


@MLP.mistake(
    "Nearly: this is the exact GELU. SigLIP was trained with the tanh formula; the two differ in the fourth decimal. "
    "The activation has an argument for it."
)
class _(_MLP):
    def bend(self, x: Tensor) -> Tensor:
        return F.gelu(x)


@MLP.mistake("This is ReLU, which cuts off all that is negative. SigLIP's activation is GELU with the tanh formula.")
class _(_MLP):
    def bend(self, x: Tensor) -> Tensor:
        return F.relu(x)


@MLP.mistake("This is tanh alone. GELU's tanh formula is x times a weight between 0 and 1 that tanh helps to compute.")
class _(_MLP):
    def bend(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@MLP.mistake("This is SiLU. You meet it in the decoder, chapter 04; the encoder has GELU with the tanh formula.")
class _(_MLP):
    def bend(self, x: Tensor) -> Tensor:
        return F.silu(x)


@MLP.mistake("This is the quick GELU, x * sigmoid(1.702 x), which CLIP has. SigLIP has the tanh formula.")
class _(_MLP):
    def bend(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@MLP.mistake("There is no activation: two linear layers in a row are no more than one. Bend between them.")
class _(_MLP):
    def bend(self, x: Tensor) -> Tensor:
        return x


@MLP.mistake("There is an activation behind fc2 too. What is added to the row of vectors must be free to be negative.")
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.bend(super().forward(x))


@MLP.mistake("x comes back added to the result. That addition belongs to the block, around the whole module.")
class _(_MLP):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@MLP.part
def _(code, learner) -> None:
    code.vision_transformer.ViTMLP = learner
