"""Wrong models whose mistake shows where shapes are joined, compared or rearranged."""

import torch
from einops import rearrange
from torch import nn

from tests.trace.wrong_models.cases import case, image


@case
class OffByOnePositions:
    says = ("x is [2, 196, 8]", "self.positions", "[1, 197, 8]", "196 against 197", "[:, :196]")
    inputs = (image(2, 196, 8),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(1, 197, 8))

        def forward(self, x):
            return x + self.positions  # here

    class right(wrong):
        def forward(self, x):
            return x + self.positions[:, :196]


@case
class CatOnTheWrongDim:
    says = ("image is [2, 49, 8]", "text is [2, 79, 8]", "49 against 79", "dim=1 gives [2, 128, 8]")
    inputs = (image(2, 49, 8), image(2, 79, 8))

    class wrong(nn.Module):
        def forward(self, image, text):
            return torch.cat([image, text], dim=-1)  # here

    class right(nn.Module):
        def forward(self, image, text):
            return torch.cat([image, text], dim=1)


@case
class CatOfUnprojectedTokens:
    says = ("image is [2, 49, 12]", "text is [2, 79, 8]", "12 against 8", "nn.Linear(12, 8) on image")
    inputs = (image(2, 49, 12), image(2, 79, 8))

    class wrong(nn.Module):
        def forward(self, image, text):
            return torch.cat([image, text], dim=1)  # here

    class right(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(12, 8)

        def forward(self, image, text):
            return torch.cat([self.proj(image), text], dim=1)


@case
class CatOfDifferentRank:
    says = ("first is [2, 8]", "rest is [2, 5, 8]", "first.unsqueeze(1) is [2, 1, 8]")
    inputs = (image(2, 8), image(2, 5, 8))

    class wrong(nn.Module):
        def forward(self, first, rest):
            return torch.cat((first, rest), dim=1)  # here

    class right(nn.Module):
        def forward(self, first, rest):
            return torch.cat((first.unsqueeze(1), rest), dim=1)


@case
class ViewWithOtherElementCount:
    says = ("x is [2, 49, 16]", "1568 elements", "[2, 49, 64] needs 6272", "dim 2 must be 16")
    inputs = (image(2, 49, 16),)

    class wrong(nn.Module):
        def forward(self, x):
            return x.view(2, 49, 64)  # here

    class right(nn.Module):
        def forward(self, x):
            return x.view(2, 49, 16)


@case
class HeadsThatDoNotDivide:
    says = ("x is [2, 10, 576]", "[2, 10, 9, 60] needs", "576, is not 9 x 60", "dim 3 must be 64")
    inputs = (image(2, 10, 576),)

    class wrong(nn.Module):
        def forward(self, x):
            batch, length, _ = x.shape
            return x.view(batch, length, 9, 60).transpose(1, 2)  # here

    class right(nn.Module):
        def forward(self, x):
            batch, length, _ = x.shape
            return x.view(batch, length, 9, 64).transpose(1, 2)


@case
class ViewAfterTranspose:
    says = ("[2, 10, 4, 8]", "[2, 10, 32]", ".reshape(2, 10, 32)")
    inputs = (image(2, 4, 10, 8),)

    class wrong(nn.Module):
        def forward(self, x):
            return x.transpose(1, 2).view(2, 10, 32)  # here

    class right(nn.Module):
        def forward(self, x):
            return x.transpose(1, 2).reshape(2, 10, 32)


@case
class PaddingMaskTimesVectors:
    says = ("x is [3, 10, 8]", "mask is [3, 10]", "mask.unsqueeze(-1) is [3, 10, 1]")
    inputs = (image(3, 10, 8), torch.ones(3, 10))

    class wrong(nn.Module):
        def forward(self, x, mask):
            return x * mask  # here

    class right(nn.Module):
        def forward(self, x, mask):
            return x * mask.unsqueeze(-1)


@case
class ResidualOfAnotherWidth:
    says = ("x is [2, 10, 8]", "self.mlp(x) is [2, 10, 16]", "8 against 16", "nn.Linear(8, 16) on x")
    inputs = (image(2, 10, 8),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Linear(8, 16)
            self.skip = nn.Linear(8, 16)

        def forward(self, x):
            return x + self.mlp(x)  # here

    class right(wrong):
        def forward(self, x):
            return self.skip(x) + self.mlp(x)


@case
class ImageWithoutBatch:
    says = ("images is [3, 32, 32]", "3 dims", "images.unsqueeze(0) is [1, 3, 32, 32]")
    inputs = (image(3, 32, 32),)

    class wrong(nn.Module):
        def forward(self, images):
            batch, channels, height, width = images.shape  # here
            return images.reshape(batch, channels, height * width)

    class right(wrong):
        def forward(self, images):
            return super().forward(images.unsqueeze(0))


@case
class PatternThatDoesNotFit:
    says = ("[2, 197, 8]", "197 is 14 x 14 and 1 more", "x[:, 1:]")
    inputs = (image(2, 197, 8),)

    class wrong(nn.Module):
        def forward(self, x):
            return rearrange(x, "b (h w) c -> b h w c", h=14)  # here

    class right(wrong):
        def forward(self, x):
            return super().forward(x[:, 1:])


@case
class ExpandOfHeads:
    says = ("k is [2, 3, 10, 8]", "9", "3", "k.repeat_interleave(3, dim=1)")
    inputs = (image(2, 3, 10, 8),)

    class wrong(nn.Module):
        def forward(self, k):
            return k.expand(2, 9, 10, 8)  # here

    class right(nn.Module):
        def forward(self, k):
            return k.repeat_interleave(3, dim=1)


@case
class PermuteOfTooFewDims:
    says = ("x is [2, 10, 4, 8]", "4 dims", "given 3", "transpose")
    inputs = (image(2, 10, 4, 8),)

    class wrong(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 1)  # here

    class right(nn.Module):
        def forward(self, x):
            return x.transpose(1, 2)


@case
class SplitOfQKV:
    says = ("qkv is [2, 10, 24]", "24", "[8, 8, 4] add up to 20")
    inputs = (image(2, 10, 24),)

    class wrong(nn.Module):
        def forward(self, qkv):
            return qkv.split([8, 8, 4], dim=-1)  # here

    class right(nn.Module):
        def forward(self, qkv):
            return qkv.split([8, 8, 8], dim=-1)
