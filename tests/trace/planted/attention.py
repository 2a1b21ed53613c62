"""Attention models: torch's own transformer and multi-head attention, DETR, ViT, a Perceiver, written-out heads."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.trace.planted.cases import floats, planted


class Attends(nn.Module):
    def __init__(self, width=64, batch_first=True):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 4, batch_first=batch_first)


@planted(
    (floats(2, 10, 64), torch.zeros(2, 10, dtype=torch.bool)),
    ("x is [2, 10, 64]", "is_padding is [2, 10]"),
    ("batch_first=True",),
)
class PaddingBatchFirst(Attends):
    def __init__(self):
        super().__init__(batch_first=False)

    def forward(self, x, is_padding):
        return self.attn(x, x, x, key_padding_mask=is_padding)[0]  # here


@planted(
    (floats(2, 10, 64), floats(2, 10, 10)), ("mask is [2, 10, 10]", "[8, 10, 10]"), ("repeat_interleave(4, dim=0)",)
)
class MaskWithoutHeads(Attends):
    def forward(self, x, mask):
        return self.attn(x, x, x, attn_mask=mask)[0]  # here


@planted((floats(2, 10, 64), floats(9, 9)), ("mask is [9, 9]", "[10, 10]"), ("[10, 10]",))
class MaskOneShort(Attends):
    def forward(self, x, mask):
        return self.attn(x, x, x, attn_mask=mask)[0]  # here


@planted((floats(2, 10, 48),), ("x is [2, 10, 48]", "64"), ("nn.MultiheadAttention(48", "nn.Linear(48, 64)"))
class AttentionOfAnotherWidth(Attends):
    def forward(self, x):
        return self.attn(x, x, x)[0]  # here


@planted((floats(2, 7, 64), floats(2, 10, 64)), ("picture is [2, 10, 64]", "words is [2, 7, 64]"))
class ValuesOfTheQueries(Attends):
    def forward(self, words, image):
        return self.attn(words, key=image, value=words)[0]  # here


@planted((floats(2, 7, 64), floats(2, 10, 48)), ("picture is [2, 10, 48]", "64"), ("kdim=48", "nn.Linear(48, 64)"))
class KeysOfAnotherWidth(Attends):
    def forward(self, words, image):
        return self.attn(words, image, image)[0]  # here


class Translator(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        self.net = nn.Transformer(64, 4, 1, 1, 128, batch_first=batch_first)


@planted(
    (floats(2, 10, 32), floats(2, 7, 64)),
    ("source is [2, 10, 32]", "d_model = 64"),
    ("nn.Linear(32, 64)", "d_model=32"),
)
class SourceOfAnotherWidth(Translator):
    def forward(self, source, target):
        return self.net(source, target)  # here


@planted(
    (floats(2, 10, 64), floats(2, 7, 64)), ("source is [2, 10, 64]", "target is [2, 7, 64]"), ("batch_first=True",)
)
class TranslatorTimeFirst(Translator):
    def __init__(self):
        super().__init__(batch_first=False)

    def forward(self, source, target):
        return self.net(source, target)  # here


@planted((floats(2, 10, 64), floats(3, 7, 64)), ("source is [2, 10, 64]", "target is [3, 7, 64]"))
class TranslatorOfTwoBatches(Translator):
    def forward(self, source, target):
        return self.net(source, target)  # here


@planted(
    (floats(2, 10, 64), floats(2, 7, 64)), ("[10, 10]", "[7, 7]"), ("generate_square_subsequent_mask(7)", "[7, 7]")
)
class CausalMaskOfTheSource(Translator):
    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(source.shape[1])
        return self.net(source, target, tgt_mask=mask)  # here


@planted((floats(2, 7, 64), floats(2, 10, 48)), ("memory is [2, 10, 48]", "64"), ("nn.Linear(48, 64)",))
class MemoryOfAnotherWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(64, 4, 128, batch_first=True)

    def forward(self, x, memory):
        return self.layer(x, memory)  # here


@planted((floats(2, 10, 48),), ("x is [2, 10, 48]", "64"), ("nn.Linear(48, 64)", "d_model=48"))
class EncoderOfAnotherWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)

    def forward(self, x):
        return self.layer(x)  # here


@planted(
    (floats(100, 2, 32), floats(2, 100, 32)),
    ("queries is [100, 2, 32]", "positions is [2, 100, 32]"),
    ("positions.transpose(0, 1)", "queries.transpose(0, 1)"),
)
class QueriesAndPositionsSwapped(nn.Module):
    def forward(self, queries, positions):
        return queries + positions  # here


@planted((floats(2, 3, 32, 32),), ("[2, 16, 32]", "self.positions is [1, 17, 32]"), ("class token",))
class ClassTokenForgotten(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.positions = nn.Parameter(torch.zeros(1, 17, 32))

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        return x + self.positions  # here


@planted((floats(2, 60, 32),), ("x is [2, 60, 32]", "[1, 51, 32]"), ("cut", "longer table", "positions for 60"))
class TooLongForThePositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 51, 32))

    def forward(self, x):
        return x + self.positions[:, : x.shape[1]]  # here


@planted((floats(2, 4, 10, 10), floats(2, 10)), ("[2, 4, 10, 10]", "[2, 10]"), ("[:, None, None, :]",))
class MaskOfKeysOnScores(nn.Module):
    def forward(self, scores, mask):
        return scores + mask  # here


@planted(
    (floats(2, 4, 10, 8),) * 3, ("q is [2, 4, 10, 8]", "(k + v) is [2, 4, 10, 8]"), ("q @ (k + v).transpose(-2, -1)",)
)
class SumInParentheses(nn.Module):
    def forward(self, q, k, v):
        return q @ (k + v)  # here


@planted(
    (floats(2, 4, 10, 8), floats(2, 4, 20, 16)),
    ("[2, 4, 10, 8]", "[2, 4, 20, 16]", "head_dim"),
    ("one head_dim", "same head_dim"),
)
class HeadsOfAnotherWidth(nn.Module):
    def forward(self, latents, inputs):
        return F.scaled_dot_product_attention(latents, inputs, inputs)  # here


@planted((floats(2, 4, 10, 8),), ("x.transpose(1, 2) is [2, 10, 4, 8]", "[2, 10, 32]"), (".reshape(2, 10, 32)",))
class HeadsMergedByView(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2).view(2, 10, 32)  # here


@planted((floats(2, 10, 32), torch.ones(2, 12).bool()), ("[2, 1, 1, 12]", "[2, 4, 10, 10]"))
class MaskOfOtherTokens(nn.Module):
    def forward(self, x, is_real):
        heads = x.unflatten(-1, (4, 8)).transpose(1, 2)
        mask = is_real[:, None, None]
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)  # here


@planted(
    (floats(5, 3, 64), floats(7, 3, 64), torch.zeros(7, 3, dtype=torch.bool)),
    ("memory is [7, 3, 64]", "is_padding is [7, 3]", "[3, 7]"),
    ("is_padding.transpose(0, 1)",),
)
class PaddingTheOtherWay(Attends):
    def __init__(self):
        super().__init__(batch_first=False)

    def forward(self, x, memory, is_padding):
        return self.attn(x, memory, memory, key_padding_mask=is_padding)[0]  # here
