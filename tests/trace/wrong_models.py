"""Twenty-odd models with one mistake each, their repaired twins, and what the explanation must say.

Each case is a class with `wrong` and `right` modules, the inputs, and `says`: parts of the message, among them both
shapes (or sizes) and the fix. The failing line carries the comment `# here`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

CASES: list[type] = []


def case(cls: type) -> type:
    CASES.append(cls)
    return cls


def image(*sizes: int) -> torch.Tensor:
    return torch.zeros(*sizes)


def ids(*sizes: int, high: int = 10) -> torch.Tensor:
    return torch.arange(torch.Size(sizes).numel()).reshape(sizes) % high


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
    says = ("picture is [2, 49, 8]", "text is [2, 79, 8]", "49 against 79", "dim=1 gives [2, 128, 8]")
    inputs = (image(2, 49, 8), image(2, 79, 8))

    class wrong(nn.Module):
        def forward(self, picture, text):
            return torch.cat([picture, text], dim=-1)  # here

    class right(nn.Module):
        def forward(self, picture, text):
            return torch.cat([picture, text], dim=1)


@case
class CatOfUnprojectedTokens:
    says = ("picture is [2, 49, 12]", "text is [2, 79, 8]", "12 against 8", "nn.Linear(12, 8) on picture")
    inputs = (image(2, 49, 12), image(2, 79, 8))

    class wrong(nn.Module):
        def forward(self, picture, text):
            return torch.cat([picture, text], dim=1)  # here

    class right(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(12, 8)

        def forward(self, picture, text):
            return torch.cat([self.proj(picture), text], dim=1)


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
class TokenIdsOutOfRange:
    says = ("input_ids [2, 6]", "ids from 0 to 11", "10 rows", "at least 12 rows")
    inputs = (ids(2, 6, high=12),)

    class wrong(nn.Module):
        rows = 10

        def __init__(self):
            super().__init__()
            self.token_embedding = nn.Embedding(self.rows, 4)

        def forward(self, input_ids):
            return self.token_embedding(input_ids)  # here

    class right(wrong):
        rows = 12


@case
class TooManyPositions:
    says = ("ids from 0 to 129", "128 rows", "cut the sequence to 128 tokens")
    inputs = (image(1, 130, 4),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.position_embedding = nn.Embedding(128, 4)

        def forward(self, x):
            positions = torch.arange(x.shape[1])
            return self.position_embedding(positions) + x  # here

    class right(wrong):
        def forward(self, x):
            return super().forward(x[:, :128])


@case
class LabelsAsInputIds:
    says = ("ids from -100 to 3", "10 rows", "pass the input ids")
    inputs = (torch.tensor([[-100, 2, 3]]),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.token_embedding = nn.Embedding(10, 4)

        def forward(self, labels):
            return self.token_embedding(labels)  # here

    class right(wrong):
        def forward(self, labels):
            return super().forward(labels.clamp(min=0))


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
class GreyPicture:
    says = ("images is [2, 1, 32, 32]", "in_channels = 3", "images.expand(-1, 3, -1, -1)")
    inputs = (image(2, 1, 32, 32),)
    wrong = ChannelsLast.wrong

    class right(ChannelsLast.wrong):
        def forward(self, images):
            return super().forward(images.expand(-1, 3, -1, -1))


@case
class MixedDtypes:
    says = ("x [2, 8] is float32", "proj.weight [4, 8] is bfloat16", "x.to(torch.bfloat16)")
    inputs = (image(2, 8),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 4).bfloat16()

        def forward(self, x):
            return self.proj(x)  # here

    class right(wrong):
        def forward(self, x):
            return super().forward(x.to(torch.bfloat16))


@case
class BytesIntoConv:
    says = ("[1, 3, 32, 32] is uint8", "conv.weight [8, 3, 16, 16] is float32", "images.to(torch.float32) / 255")
    inputs = (torch.zeros(1, 3, 32, 32, dtype=torch.uint8),)
    wrong = ChannelsLast.wrong

    class right(ChannelsLast.wrong):
        def forward(self, images):
            return super().forward(images.to(torch.float32) / 255)


@case
class FloatIds:
    says = ("input_ids [2, 3] is float32", "token_embedding.weight [10, 4]", "input_ids.long()")
    inputs = (torch.ones(2, 3),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.token_embedding = nn.Embedding(10, 4)

        def forward(self, input_ids):
            return self.token_embedding(input_ids)  # here

    class right(wrong):
        def forward(self, input_ids):
            return super().forward(input_ids.long())


@case
class TwoDevices:
    says = ("x [2, 8] is on meta", "proj.weight [4, 8] is on cpu", "device='cpu'")
    inputs = (torch.zeros(2, 8, device="meta"),)

    class wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(8, 4)

        def forward(self, x):
            return self.proj(x)  # here

    class right(wrong):
        def forward(self, x):
            return super().forward(torch.zeros_like(x, device="cpu"))


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
class NormOfAnotherWidth:
    says = ("x is [2, 10, 8]", "norm (LayerNorm)", "[16]", "build it with 8")
    inputs = (image(2, 10, 8),)

    class wrong(nn.Module):
        size = 16

        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(self.size)

        def forward(self, x):
            return self.norm(x)  # here

    class right(wrong):
        size = 8


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
class LossOverTheWrongDim:
    says = (
        "logits is [2, 5, 10]",
        "targets is [2, 5]",
        "logits.flatten(0, 1) is [10, 10]",
        "targets.flatten() is [10]",
    )
    inputs = (image(2, 5, 10), ids(2, 5))

    class wrong(nn.Module):
        def forward(self, logits, targets):
            return F.cross_entropy(logits, targets)  # here

    class right(nn.Module):
        def forward(self, logits, targets):
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


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


@case
class ImageTokensAndPlaceholders:
    says = ("embeddings is [1, 7, 4]", "is_image picks [5, 4]", "picture is [6, 4]", "count the placeholders")
    inputs = (image(1, 7, 4), torch.tensor([[1, 1, 1, 1, 1, 0, 0]], dtype=torch.bool), image(6, 4))

    class wrong(nn.Module):
        def forward(self, embeddings, is_image, picture):
            embeddings[is_image] = picture  # here
            return embeddings

    class right(nn.Module):
        def forward(self, embeddings, is_image, picture):
            embeddings[is_image] = picture[:5]
            return embeddings


@case
class PictureWithoutBatch:
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
