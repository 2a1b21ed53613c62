"""Chapter 01: one linear layer for every patch, and a vector for each place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.course.exercises.ch01.patches import cut, numbered
from nanovlm.course.exercises.common import noise
from nanovlm.models.vision_transformer import PatchEmbedding

# -- patches.conv_equals_linear ----------------------------------------------------------------------------------------


def same_as_linear(conv: nn.Conv2d) -> nn.Linear:
    """Ask the convolution itself: what does it make of a patch with a single 1 in it?"""
    channels, p = conv.in_channels, conv.kernel_size[0]
    wide = channels * p * p
    linear = nn.Linear(wide, conv.out_channels, bias=conv.bias is not None)
    with torch.no_grad():
        answers = F.conv2d(torch.eye(wide).reshape(wide, channels, p, p), conv.weight).flatten(1)  # [wide, dim]
        linear.weight.copy_(answers.T)
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    return linear


def embedder(dim: int, patch_size: int, bias: bool = True) -> nn.Conv2d:
    return with_weights(nn.Conv2d(3, dim, patch_size, stride=patch_size, bias=bias))  # type: ignore[return-value]


def run_linear(learner, patches: Tensor, conv: tuple[int, int, bool]) -> Tensor:
    linear = learner(embedder(*conv))
    expect(
        isinstance(linear, nn.Linear),
        f"It should return an nn.Linear that holds the convolution's weights; it returned {type(linear).__name__}.",
    )
    wide = patches.shape[-1]
    expect(
        linear.in_features == wide,
        f"The layer takes vectors of {linear.in_features} numbers; a patch has 3 x {conv[1]} x {conv[1]} = {wide}.",
    )
    return linear(patches)


CONV_EQUALS_LINEAR = Exercise(
    id="patches.conv_equals_linear",
    chapter="01",
    title="A convolution that is a linear layer",
    difficulty=2,
    minutes=8,
    why="Models store the patch embedding as a convolution, papers draw it as a linear layer. Who knows that both are "
    "the same numbers can read both, and can load the one into the other.",
    hints=(
        "The convolution's weight is [dim, 3, p, p]: for each output number one small colour picture. The linear "
        "layer's weight is [dim, 3 * p * p]: for each output number one row. What turns the one into the other?",
        "Make nn.Linear(3 * p * p, dim), then put the weight in, flattened but for its first axis, and the bias as it "
        "is. If there is no bias, make the layer without one. Write into parameters under torch.no_grad().",
        "linear = nn.Linear(channels * p * p, dim, bias=conv.bias is not None)\n"
        "with torch.no_grad():\n"
        "    linear.weight.copy_(conv.weight, with all axes but the first merged)\n"
        "    and the bias, if there is one",
    ),
    reference=same_as_linear,
    cases=lambda: [
        Case(numbered(1, 2, 12) / 10, (2, 2, True), note="two patches of 2x2 colour pixels, two output numbers"),
        Case(noise(2, 4, 27), (5, 3, True), note="patches of 3x3 pixels, five output numbers"),
        Case(noise(1, 3, 12), (12, 2, False), note="a convolution without bias"),
    ],
    axes="batch patches dim",
    call=run_linear,
)


@CONV_EQUALS_LINEAR.property("on a picture cut into patches it gives what the convolution gives")
def _(learner) -> None:
    conv, image = embedder(6, 4), noise(2, 3, 12, 12)
    wanted = conv(image).flatten(2).transpose(1, 2)
    got = learner(conv)(cut(image, 4))
    expect(torch.allclose(got, wanted, atol=1e-4), "On a 12x12 picture the layer and the convolution disagree.")


@CONV_EQUALS_LINEAR.property("the convolution stays as it was")
def _(learner) -> None:
    conv = embedder(4, 2)
    learner(conv)
    same = torch.equal(conv.weight, embedder(4, 2).weight) and conv.weight.shape == (4, 3, 2, 2)
    expect(same, "The convolution's own weight was changed; read from it, and write into the new layer only.")


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


@CONV_EQUALS_LINEAR.mistake(
    "The weight has the right shape and its numbers are in the wrong places: it was reshaped to [3 * p * p, dim] and "
    "then transposed. The outputs are its first axis already; leave that one alone and merge the others."
)
def _(conv):
    return _linear(conv.weight.reshape(-1, conv.out_channels).T, conv.bias)


@CONV_EQUALS_LINEAR.mistake("The bias did not come along: the outputs are all off by it.")
def _(conv):
    return _linear(conv.weight.flatten(1), None)


@CONV_EQUALS_LINEAR.mistake(
    "The layer has its own random bias. Carry the convolution's over, and where that has none, make the layer without."
)
def _(conv):
    linear = nn.Linear(conv.weight[0].numel(), conv.out_channels)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
    return linear


@CONV_EQUALS_LINEAR.mistake(
    "Your layer's bias is not conv's: it was made where it should be, and kept the random numbers that it began with."
)
def _(conv):
    linear = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1))
    return linear


@CONV_EQUALS_LINEAR.mistake(
    "Your layer has the random numbers that it began with: nothing of conv's was copied into its weight and bias."
)
def _(conv):
    return nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)


@CONV_EQUALS_LINEAR.mistake(
    "You merge the axes colour last (row, column, channel). Patches here are channel first, as the weight is: no "
    "permute is needed."
)
def _(conv):
    return _linear(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


@CONV_EQUALS_LINEAR.mistake(
    "You turned the kernel round, as a convolution in mathematics does. PyTorch's Conv2d does not: it lays the kernel "
    "on the picture as it is."
)
def _(conv):
    return _linear(conv.weight.flip(2, 3).flatten(1), conv.bias)


# -- patches.add_positions ---------------------------------------------------------------------------------------------


def small_vit(image_size: int, patch_size: int, dim: int) -> ViTConfig:
    return ViTConfig(dim, 4 * dim, num_blocks=1, num_heads=1, image_size=image_size, patch_size=patch_size)


def run_embedding(cls, images: Tensor, config: ViTConfig) -> Tensor:
    return with_weights(cls(config), like=PatchEmbedding(config))(images)


ADD_POSITIONS = Exercise(
    id="patches.add_positions",
    chapter="01",
    title="The whole patch embedding",
    difficulty=2,
    minutes=12,
    why="This is the first part of your own model: everything that the encoder will ever know about where a patch was "
    "comes from the vectors that are added here.",
    hints=(
        "Two things are learned: a convolution that makes a vector of each patch, and one more vector for each place "
        "of the grid.",
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


@ADD_POSITIONS.property("every weight gets a gradient")
def _(cls) -> None:
    module = with_weights(cls(small_vit(4, 2, 2)))
    module(noise(1, 3, 4, 4)).sum().backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    expect(not idle, f"No gradient reaches {', '.join(idle)}.")


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


@ADD_POSITIONS.part
def _(code, learner) -> None:
    code.vision_transformer.PatchEmbedding = learner
