"""Chapter 01: the patch embedding, with a vector for each place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course.exercises.ch01.patches import numbered
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.vision_transformer import PatchEmbedding

# -- patches.add_positions ---------------------------------------------------------------------------------------------


def small_vit(image_size: int, patch_size: int, dim: int) -> ViTConfig:
    return ViTConfig(dim, 4 * dim, num_blocks=1, num_heads=1, image_size=image_size, patch_size=patch_size)


def run_embedding(cls, images: Tensor, config: ViTConfig) -> Tensor:
    module = with_weights(cls(config), like=PatchEmbedding(config))
    out = module(images)
    expect(
        not isinstance(out, Tensor) or torch.equal(out, module(images)),
        "The same pictures give another result each time: forward draws new random numbers. Make them once, in __init__.",
    )
    return out


ADD_POSITIONS = Exercise(
    id="patches.add_positions",
    chapter="01",
    title="The whole patch embedding",
    difficulty=2,
    minutes=12,
    why="This is the first part of your own model. Everything that the encoder can know about the place of a patch comes "
    "from the vectors that you add here.",
    hints=(
        "Two things are learned: a convolution that turns each patch into a vector, and a further vector for each place of "
        "the grid.",
        "The convolution's stride is its kernel size. Its output is a grid, [batch, dim, rows, columns]; merge rows "
        "and columns, and bring dim to the end. Then add the positions, which are the same for every picture.",
        "in __init__: self.conv = nn.Conv2d(3, dim, p, stride=p)\n"
        "             self.position_embedding = nn.Parameter(small random numbers [1, num_patches, dim])\n"
        "in forward:  x = the convolution of the images\n"
        "             x = x.flatten(the two grid axes), then swap the axes 1 and 2\n"
        "             return x + the positions",
    ),
    reference=PatchEmbedding,
    cases=lambda: [
        Case(numbered(1, 3, 4, 4) / 50, small_vit(4, 2, 2), note="one 4x4 picture, patches of 2, dim 2: four patches"),
        Case(noise(2, 3, 8, 8), small_vit(8, 4, 4), note="two 8x8 pictures, patches of 4, dim 4"),
        Case(noise(1, 3, 3, 3), small_vit(3, 1, 2), note="patches of a single pixel"),
    ],
    axes="batch patches dim",
    call=run_embedding,
)


@ADD_POSITIONS.property("the same patch at two places gives two vectors")
def _(cls) -> None:
    out = with_weights(cls(small_vit(8, 4, 6)))(torch.ones(1, 3, 8, 8))[0]
    expect(not torch.allclose(out[0], out[3]), "In a picture of one colour, all patches come out equal.")


@ADD_POSITIONS.property("the same place of two pictures gets the same position")
def _(cls) -> None:
    module, one, two = with_weights(cls(small_vit(8, 4, 6))), noise(1, 3, 8, 8), noise(1, 3, 8, 8, seed=1)
    shift = module(one) - module(two)
    wanted = (module.conv(one) - module.conv(two)).flatten(2).transpose(1, 2)
    expect(torch.allclose(shift, wanted, atol=1e-5), "What is added to a patch should depend on its place alone.")


@ADD_POSITIONS.property("with SigLIP-B/16's sizes it makes 196 vectors of 768 and holds 741,120 weights")
def _(cls) -> None:
    module = cls(ViTConfig())
    shape, count = list(module(torch.zeros(1, 3, 224, 224)).shape), sum(p.numel() for p in module.parameters())
    expect(shape == [1, 196, 768], f"A picture of 224 pixels gives {shape}; expected [1, 196, 768].")
    expect(count == 741_120, f"It holds {count:,} weights; expected 741,120.")


@ADD_POSITIONS.property("positions start as small random numbers")
def _(cls) -> None:
    spread = cls(small_vit(32, 2, 16)).position_embedding.std().item()  # of 4,096 numbers
    expect(
        spread > 1e-6, "All positions start alike. Start them as random numbers, so that places differ: torch.randn."
    )
    expect(spread < 0.1, f"Your positions start at std {spread:.2g}: they drown the patches. Multiply them by 0.02.")
    expect(0.015 < spread < 0.025, f"Your positions start at std {spread:.2g}. Take torch.randn's numbers times 0.02.")


@ADD_POSITIONS.property("every weight and the picture get a gradient")
def _(cls) -> None:
    module, images = with_weights(cls(small_vit(4, 2, 2))), noise(1, 3, 4, 4).requires_grad_()
    out = module(images)
    expect(out.requires_grad, "No gradient reaches anything: the output is cut off by no_grad or detach.")
    out.sum().backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    expect(not idle, f"No gradient reaches {', '.join(idle)}.")
    expect(images.grad is not None, "No gradient reaches the picture: it was detached on the way in.")


class _Embedding(nn.Module):
    """A patch embedding to build wrong versions from."""

    bias = True

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim, p = config.hidden_dim, config.patch_size
        self.conv = nn.Conv2d(3, dim, p, stride=p, bias=self.bias)
        self.position_embedding = nn.Parameter(torch.zeros(1, config.num_patches, dim))

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2) + self.position_embedding


@ADD_POSITIONS.mistake(
    "The convolution's output was reshaped to [batch, patches, dim] in one go. That cuts it as it lies in memory, "
    "where dim comes before the grid: numbers of different patches end up in one vector. Merge the grid, then "
    "swap the axes."
)
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        return x.reshape(x.shape[0], -1, x.shape[1]) + self.position_embedding


@ADD_POSITIONS.mistake("The positions are there, but they are not added.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2)


@ADD_POSITIONS.mistake(
    "The model has no position_embedding that it could learn. A plain tensor is not a weight: it is not trained, not "
    "saved and not moved to the GPU. Wrap it in nn.Parameter."
)
class _(_Embedding):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        del self.position_embedding
        self.position_embedding = torch.zeros(1, config.num_patches, config.hidden_dim)


@ADD_POSITIONS.mistake("The patches come column by column. Flatten the grid along its rows, in reading order.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).transpose(2, 3).flatten(2).transpose(1, 2) + self.position_embedding


@ADD_POSITIONS.mistake(
    "The convolution slides pixel by pixel, so that its patches overlap and are far too many. Its stride should be the "
    "size of a patch."
)
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        x = F.conv2d(images, self.conv.weight, self.conv.bias)
        return x.flatten(2).transpose(1, 2) + self.position_embedding


@ADD_POSITIONS.mistake("After flattening the grid, dim still comes before the patches. Swap the two axes.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2) + self.position_embedding


@ADD_POSITIONS.mistake("The convolution has no bias; SigLIP's has one, and the shipped weights hold it.")
class _(_Embedding):
    bias = False


@ADD_POSITIONS.mistake(
    "The positions were added before the two axes were swapped, so their numbers met other patches and other dimensions. "
    "Swap first, then add."
)
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images).flatten(2)
        return (x + self.position_embedding.reshape(1, *x.shape[1:])).transpose(1, 2)


@ADD_POSITIONS.mistake("The positions are multiplied with the patches. They are added: what a patch shows stays beside it.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2) * self.position_embedding


@ADD_POSITIONS.mistake("The positions are subtracted. They are added.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2) - self.position_embedding


@ADD_POSITIONS.mistake("The positions run backwards: the last one is added to patch 0.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2) + self.position_embedding.flip(1)


@ADD_POSITIONS.mistake("The positions are added twice.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2) + 2 * self.position_embedding


@ADD_POSITIONS.mistake("Every patch gets the position of patch 0. Add the whole table, one vector for each place.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(2).transpose(1, 2) + self.position_embedding[:, :1]


@ADD_POSITIONS.mistake("There is a non-linear function behind the convolution. The patch embedding is linear: leave it out.")
class _(_Embedding):
    def forward(self, images: Tensor) -> Tensor:
        return F.gelu(self.conv(images)).flatten(2).transpose(1, 2) + self.position_embedding


@ADD_POSITIONS.part
def _(code, learner) -> None:
    code.vision_transformer.PatchEmbedding = learner
