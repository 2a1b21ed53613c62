"""Wrong models whose mistake is a value, a dtype or a device, or a size that a layer was built for."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.trace.wrong_models.cases import case, ids, image


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
class ImageTokensAndPlaceholders:
    says = ("embeddings is [1, 7, 4]", "is_image picks [5, 4]", "image is [6, 4]", "count the placeholders")
    inputs = (image(1, 7, 4), torch.tensor([[1, 1, 1, 1, 1, 0, 0]], dtype=torch.bool), image(6, 4))

    class wrong(nn.Module):
        def forward(self, embeddings, is_image, image):
            embeddings[is_image] = image  # here
            return embeddings

    class right(nn.Module):
        def forward(self, embeddings, is_image, image):
            embeddings[is_image] = image[:5]
            return embeddings
