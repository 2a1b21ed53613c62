"""Models written with functions: adapters, a mixer, rotary positions, einops, lazy layers."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from tests.trace.planted.cases import floats, planted


@planted((floats(2, 3), floats(2, 4)), ("torch.cat([a, b], 1) is [2, 7]", "[2, 5] needs 10"), ("dim 1 must be 7",))
class JoinedAndViewed(nn.Module):
    def forward(self, a, b):
        return torch.cat([a, b], 1).view(2, 5)  # here


@planted((floats(2, 3), floats(2, 4), floats(5, 6)), ("torch.cat([a, b], 1) is [2, 7]", "w is [5, 6]"))
class JoinedAndMultiplied(nn.Module):
    def forward(self, a, b, w):
        return torch.cat([a, b], 1).matmul(w)  # here


@planted((floats(4, 8), floats(16, 8)), ("x is [4, 8]", "w.T is [8, 16]"), ("F.linear(x, w)",))
class LinearOfTheTransposed(nn.Module):
    def forward(self, x, w):
        return F.linear(x, w.T)  # here


@planted((floats(2, 8), floats(4, 8), floats(4, 16)), ("[2, 4]", "b.T is [16, 4]"), ("x @ a.T @ b", "(x @ a.T) @ b"))
class AdapterTransposedTwice(nn.Module):
    def forward(self, x, a, b):
        return x @ a.T @ b.T  # here


@planted((floats(2, 8), floats(4, 8), floats(16, 4)), ("[2, 4]", "b is [16, 4]"), ("b.transpose(-2, -1)", "b.T"))
class AdapterNotTransposed(nn.Module):
    def forward(self, x, a, b):
        return x @ a.T @ b  # here


@planted((floats(2, 48, 8),), ("x is [2, 48, 8]", "48", "15"))
class RearrangedUnevenly(nn.Module):
    def forward(self, x):
        return rearrange(x, "b (h p) d -> b h p d", p=15)  # here


@planted((floats(2, 17, 8),), ("x is [2, 17, 8]", "17", "4"), ("x[:, 1:]",))
class RearrangedWithTheClassToken(nn.Module):
    def forward(self, x):
        return rearrange(x, "b (h w) d -> b d h w", h=4)  # here


@planted((floats(3, 16, 16),), ("[3, 16, 16]", "4"), ("image.unsqueeze(0)", "image[None]"))
class RearrangedWithoutBatch(nn.Module):
    def forward(self, image):
        return rearrange(image, "b c h w -> b (h w) c")  # here


@planted((floats(2, 4, 10, 32), floats(10, 16)), ("[2, 4, 10, 32]", "[10, 16]"))
class RotaryHalf(nn.Module):
    def forward(self, q, cos):
        return q * cos  # here


@planted(
    (floats(2, 10, 4, 32), floats(10, 32)),
    ("q is [2, 10, 4, 32]", "cos is [10, 32]"),
    ("cos.unsqueeze(1)", "q.transpose(1, 2)"),
)
class RotaryBeforeTheHeadsMove(nn.Module):
    def forward(self, q, cos):
        return q * cos  # here


@planted((floats(2, 196, 32),), ("x is [2, 196, 32]", "in_features = 196"), ("x.transpose(1, -1)", "x.transpose(1, 2)"))
class MixerOfChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Linear(196, 64)

    def forward(self, x):
        return self.tokens(x)  # here


@planted((floats(2, 32), floats(2, 16)), ("b is [2, 16]", "in_features = 32"), ("nn.Linear(16", "nn.LazyLinear"))
class LazyTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(4)

    def forward(self, a, b):
        first = self.head(a)
        return first + self.head(b)  # here


@planted((floats(2, 10, 96),), ("[2, 10, 96]", "[2, 10, 4, 32]"), ("dim 3 must be 24",))
class HeadsThatDoNotFit(nn.Module):
    def forward(self, x):
        return x.view(2, 10, 4, 32)  # here


@planted((floats(5, 32), floats(7, 32)), ("a is [5, 32]", "b is [7, 32]"), ("pad", "dim=0"))
class StackOfTwoLengths(nn.Module):
    def forward(self, a, b):
        return torch.stack([a, b])  # here


@planted((floats(2, 10, 8), floats(2, 12, 16)), ("q is [2, 10, 8]", "k is [2, 12, 16]", "'d'"))
class EinsumOfTwoWidths(nn.Module):
    def forward(self, q, k):
        return torch.einsum("bqd,bkd->bqk", q, k)  # here


@planted((floats(3, 16, 16),), ("image is [3, 16, 16]", "4"), ("image.unsqueeze(0)",))
class UnpackedWithoutBatch(nn.Module):
    def forward(self, image):
        B, C, H, W = image.shape  # here
        return image.reshape(B, C * H * W)


@planted((floats(2, 32),), ("x is [2, 32]", "[16]"), ("32",))
class NormOfAnotherWidth(nn.Module):
    def forward(self, x):
        return F.layer_norm(x, (16,))  # here


@planted((floats(2, 8), floats(2, 6)), ("a is [2, 8]", "b is [2, 6]"), ("nn.Linear(6, 8)",))
class SumOfTwoStreams(nn.Module):
    def forward(self, a, b):
        return (a + b).relu()  # here


@planted(
    (floats(2, 8, 14, 14), floats(2, 8)), ("maps is [2, 8, 14, 14]", "gates is [2, 8]"), ("gates[:, :, None, None]",)
)
class GatesOfChannels(nn.Module):
    def forward(self, maps, gates):
        return maps * gates  # here


@planted((floats(1, 1, 8), floats(4, 7, 8)), ("token is [1, 1, 8]", "x is [4, 7, 8]"), ("token.expand(4, -1, -1)",))
class ClassTokenOfOneBatch(nn.Module):
    def forward(self, token, x):
        return torch.cat([token, x], dim=1)  # here


@planted((floats(2, 8, 14, 12),), ("maps is [2, 8, 14, 12]", "in_features = 8"), ("maps.permute(0, 2, 3, 1)",))
class LinearOverChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 4)

    def forward(self, maps):
        return self.proj(maps)  # here


@planted((floats(2, 8, 14, 12),), ("input is [2, 8, 14, 12]", "in_features = 5"), ("nn.Linear(12, 4)",))
class ArgumentsThatAreUnpacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(5, 4)

    def forward(self, *inputs):
        return self.proj(*inputs)  # here


@planted((floats(4, 7, 8), floats(4, 6, 8)), ("a is [4, 7, 8]", "b is [4, 6, 8]"))
class WidthsOfOtherTokens(nn.Module):
    def forward(self, a, b):
        return torch.cat([a, b], dim=-1)  # here


@planted((floats(2, 5), floats(2, 4)), ("a is [2, 5]", "b is [2, 4]"))
class ChosenFromTwoWidths(nn.Module):
    def forward(self, a, b):
        return torch.where(a > 0, a, b)  # here
