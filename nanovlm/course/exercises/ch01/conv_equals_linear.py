"""Chapter 01: one linear layer for every patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.course.exercises.ch01.patches import cut, numbered
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights

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
    given = embedder(*conv)
    linear = learner(given)
    expect(
        isinstance(linear, nn.Linear),
        f"It should return an nn.Linear that holds the convolution's weights; it returned {type(linear).__name__}.",
    )
    wide = patches.shape[-1]
    turned = linear.in_features != wide and (linear.in_features, linear.out_features) == (given.out_channels, wide)
    expect(
        not turned,
        f"The layer's sizes are the other way round: it takes {linear.in_features} numbers and gives {wide}.",
    )
    expect(
        linear.in_features == wide,
        f"The layer takes vectors of {linear.in_features} numbers; a patch has 3 x {conv[1]} x {conv[1]} = {wide}.",
    )
    expect(
        linear.bias is None or given.bias is not None,
        "The convolution has no bias, so the layer should have none either, not even one of zeros: bias=False.",
    )
    return linear(patches)


CONV_EQUALS_LINEAR = Exercise(
    id="patches.conv_equals_linear",
    chapter="01",
    title="A convolution that is a linear layer",
    difficulty=2,
    minutes=8,
    why="Models store the patch embedding as a convolution, while papers draw it as a linear layer. Both have the same "
    "weights, so you can read both and load one into the other.",
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


@CONV_EQUALS_LINEAR.property("the layer's numbers are a copy")
def _(learner) -> None:
    for bias in (True, False):
        conv = embedder(4, 2, bias)
        linear = learner(conv)
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.zero_()
        expect(
            bool(conv.weight.any()) and (conv.bias is None or bool(conv.bias.any())),
            "The layer shares its memory with the convolution, so training one would change the other: flatten, reshape "
            "and detach return the same numbers in another shape. Copy them, with copy_(…) or .clone().",
        )


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


@CONV_EQUALS_LINEAR.mistake(
    "The bias came along, and the weight did not: it has the random numbers that it began with."
)
def _(conv):
    linear = nn.Linear(conv.weight[0].numel(), conv.out_channels, bias=conv.bias is not None)
    with torch.no_grad():
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    return linear


@CONV_EQUALS_LINEAR.mistake(
    "Rows and columns inside each patch are swapped: merge the axes in the order in which they are."
)
def _(conv):
    return _linear(conv.weight.transpose(2, 3).flatten(1), conv.bias)


@CONV_EQUALS_LINEAR.mistake(
    "The colours come in the opposite order, blue first. Leave the axis of the channels as it is."
)
def _(conv):
    return _linear(conv.weight.flip(1).flatten(1), conv.bias)


@CONV_EQUALS_LINEAR.mistake(
    "The convolution may come without a bias (conv.bias is None): then there is nothing to copy."
)
def _(conv):
    if conv.bias is None:
        raise TypeError
    return same_as_linear(conv)
