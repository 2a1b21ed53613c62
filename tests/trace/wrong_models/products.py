"""Wrong models whose mistake shows in a product: linear, matmul, convolution, attention."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.trace.wrong_models.cases import case, image


@case
class WrongInFeatures:
    says = ("[2, 49, 192]", "last dim is 192", "in_features = 144", "nn.Linear(192, 64)")
    inputs = (image(2, 49, 192),)

    class wrong(nn.Module):
        size = 144

        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(self.size, 64)

        def forward(self, x):
            return self.proj(x)  # here

    class right(wrong):
        size = 192


@case
class MissingTranspose:
    says = ("q is [2, 4, 10, 16]", "k is [2, 4, 10, 16]", "q @ k.transpose(-2, -1) is [2, 4, 10, 10]")
    inputs = (image(2, 4, 10, 16), image(2, 4, 10, 16))

    class wrong(nn.Module):
        def forward(self, q, k):
            return (q @ k).softmax(dim=-1)  # here

    class right(nn.Module):
        def forward(self, q, k):
            return (q @ k.transpose(-2, -1)).softmax(dim=-1)


@case
class UnexpandedHeads:
    says = ("[2, 9, 10, 16]", "[2, 3, 16, 10]", "9 against 3", "k.mT.repeat_interleave(3, dim=1)")
    inputs = (image(2, 9, 10, 16), image(2, 3, 10, 16))

    class wrong(nn.Module):
        def forward(self, q, k):
            return q @ k.mT  # here

    class right(nn.Module):
        def forward(self, q, k):
            return q @ k.mT.repeat_interleave(3, dim=1)


@case
class UnexpandedHeadsInSDPA:
    says = ("q is [2, 9, 10, 16]", "k is [2, 3, 10, 16]", "9 against 3", "enable_gqa=True")
    inputs = (image(2, 9, 10, 16), image(2, 3, 10, 16))

    class wrong(nn.Module):
        def forward(self, q, k):
            return F.scaled_dot_product_attention(q, k, k)  # here

    class right(nn.Module):
        def forward(self, q, k):
            return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)


@case
class ChannelsLast:
    says = ("images is [2, 32, 32, 3]", "in_channels = 3", "images.permute(0, 3, 1, 2) is [2, 3, 32, 32]")
    inputs = (image(2, 32, 32, 3),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 16, 16)

        def forward(self, images):
            return self.conv(images)  # here

    class right(wrong):
        def forward(self, images):
            return super().forward(images.permute(0, 3, 1, 2))


@case
class GreyImage:
    says = ("images is [2, 1, 32, 32]", "in_channels = 3", "images.expand(-1, 3, -1, -1)")
    inputs = (image(2, 1, 32, 32),)
    wrong = ChannelsLast.wrong

    class right(ChannelsLast.wrong):
        def forward(self, images):
            return super().forward(images.expand(-1, 3, -1, -1))


@case
class BytesIntoConv:
    says = ("[1, 3, 32, 32] is uint8", "conv.weight [8, 3, 16, 16] is float32", "images.to(torch.float32) / 255")
    inputs = (torch.zeros(1, 3, 32, 32, dtype=torch.uint8),)
    wrong = ChannelsLast.wrong

    class right(ChannelsLast.wrong):
        def forward(self, images):
            return super().forward(images.to(torch.float32) / 255)


@case
class MaskWithoutHeadDims:
    says = ("attention_mask is [3, 10]", "[3, 4, 10, 10]", "attention_mask[:, None, None, :]")
    inputs = (image(3, 4, 10, 8), torch.ones(3, 10, dtype=torch.bool))

    class wrong(nn.Module):
        def forward(self, q, attention_mask):
            return F.scaled_dot_product_attention(q, q, q, attn_mask=attention_mask)  # here

    class right(nn.Module):
        def forward(self, q, attention_mask):
            return F.scaled_dot_product_attention(q, q, q, attn_mask=attention_mask[:, None, None, :])


@case
class MaskAndIsCausal:
    says = ("attn_mask and is_causal=True", "tril", "[3, 4, 10, 8]", "[3, 1, 1, 10]")
    inputs = (image(3, 4, 10, 8), torch.ones(3, 1, 1, 10, dtype=torch.bool))

    class wrong(nn.Module):
        def forward(self, q, mask):
            with sdpa_kernel(SDPBackend.MATH):  # the CPU's flash kernel takes both in silence
                return F.scaled_dot_product_attention(q, q, q, attn_mask=mask, is_causal=True)  # here

    class right(nn.Module):
        def forward(self, q, mask):
            triangle = torch.ones(10, 10, dtype=torch.bool).tril()
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask & triangle)


@case
class LinearBehindConvWithoutFlatten:
    says = (
        "the output of net.1 (ReLU) is [2, 4, 8, 8]",
        "in_features = 256",
        "nn.Flatten(1) in front of it gives [2, 256]",
    )
    inputs = (image(2, 3, 8, 8),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(256, 10))

        def forward(self, x):
            return self.net(x)  # here

    class right(wrong):
        def __init__(self):
            super().__init__()
            self.net.insert(2, nn.Flatten(1))


@case
class BmmOfFourDims:
    says = ("a is [2, 4, 10, 8]", "b is [2, 4, 8, 10]", "three dims", "a @ b")
    inputs = (image(2, 4, 10, 8), image(2, 4, 8, 10))

    class wrong(nn.Module):
        def forward(self, a, b):
            return torch.bmm(a, b)  # here

    class right(nn.Module):
        def forward(self, a, b):
            return a @ b


@case
class EinsumLetters:
    says = ("q is [2, 10, 8]", "k is [2, 12, 6]", "'d'", "8 in q, but 6 in k")
    inputs = (image(2, 10, 8), image(2, 12, 6))

    class wrong(nn.Module):
        def forward(self, q, k):
            return torch.einsum("bqd,bkd->bqk", q, k)  # here

    class right(nn.Module):
        def forward(self, q, k):
            return torch.einsum("bqd,bke->bqk", q, k)
