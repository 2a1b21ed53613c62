"""Convolutional models: a generator, a U-Net, a residual network, a VAE, a speech encoder, a video encoder."""

import torch
from torch import nn

from tests.trace.planted.cases import floats, planted


@planted(
    (floats(4, 100),),
    ("z is [4, 100]", "4 dims"),
    ("z[:, :, None, None]", "z.view(4, 100, 1, 1)", "z.unsqueeze(-1).unsqueeze(-1)"),
)
class NoiseWithoutPlaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(100, 64, 4)

    def forward(self, z):
        return self.up(z)  # here


@planted((floats(2, 64, 8, 8),), ("x is [2, 64, 8, 8]", "in_channels = 32"), ("in_channels = 64",))
class ChannelsOfTheTransposedSwapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(32, 64, 2, 2)

    def forward(self, x):
        return self.up(x)  # here


@planted((floats(2, 32, 7, 7), floats(2, 32, 15, 15)), ("[2, 32, 14, 14]", "[2, 32, 15, 15]"), ("interpolate", "crop"))
class SkipOfUnevenImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(32, 32, 2, 2)

    def forward(self, x, skip):
        up = self.up(x)
        return torch.cat([up, skip], dim=1)  # here


@planted(
    (floats(2, 32, 14, 16), floats(2, 32, 15, 16)), ("[2, 32, 14, 16]", "[2, 32, 15, 16]"), ("interpolate", "crop")
)
class SkipOfUnevenHeights(nn.Module):
    def forward(self, up, skip):
        return torch.cat((up, skip), 1)  # here


@planted((floats(4, 3, 16, 16),), ("[4, 64, 4, 4]", "in_features = 1024"), ("h.flatten(1)",))
class LatentWithoutFlatten(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.mean = nn.Conv2d(3, 64, 4, 4), nn.Linear(1024, 32)

    def forward(self, x):
        h = self.conv(x)
        return self.mean(h)  # here


@planted((floats(2, 32, 8, 8),), ("[2, 64, 4, 4]", "x is [2, 32, 8, 8]"), ("nn.Conv2d(32, 64, 1, stride=2)",))
class ShortcutWithoutStride(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 64, 3, 2, 1)

    def forward(self, x):
        return torch.relu(self.conv(x) + x)  # here


@planted((floats(2, 32, 8, 8),), ("[2, 32, 4, 4]", "x is [2, 32, 8, 8]"), ("nn.Conv2d(32, 32, 1, stride=2)",))
class ShortcutOfAnotherSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(32, 32, 3, 2, 1)

    def forward(self, x):
        out = self.conv(x)
        return out + x  # here


@planted((floats(2, 8, 8, 8),), ("x is [2, 8, 8, 8]", "in_channels = 16"), ("in_channels = 8",))
class DepthwiseOfAnotherWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)

    def forward(self, x):
        return self.depthwise(x)  # here


@planted(
    (floats(4, 200, 80),),
    ("mel is [4, 200, 80]", "in_channels = 80"),
    ("mel.transpose(1, 2)", "mel.permute(0, 2, 1)"),
)
class SpeechTimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(80, 32, 3)

    def forward(self, mel):
        return self.conv(mel)  # here


@planted((floats(4, 64),), ("x is [4, 64]", "4 dims"), ("nn.BatchNorm1d(64)",))
class NormOfImagesOverRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(64)

    def forward(self, x):
        return self.norm(x)  # here


@planted((floats(4, 10, 32),), ("x is [4, 10, 32]", "built for 32"), ("x.transpose(1, 2)", "x.transpose(1, -1)"))
class NormOverTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(32)

    def forward(self, x):
        return self.norm(x)  # here


@planted((floats(2, 4, 3, 16, 16),), ("frames is [2, 4, 3, 16, 16]", "4 dims"), ("frames.flatten(0, 1)",))
class VideoIntoConv2d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, frames):
        return self.conv(frames)  # here


@planted((floats(2, 16, 8, 8),), ("x is [2, 16, 8, 8]", "built for 32"), ("nn.GroupNorm(4, 16)", "build it with 16"))
class GroupsOfAnotherWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(4, 32)

    def forward(self, x):
        return self.norm(x)  # here


@planted((floats(2, 3, 8, 8),), ("[2, 8, 1, 1]", "kernel"), ("one pooling less", "larger picture"))
class PooledAway(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 8), nn.MaxPool2d(2)

    def forward(self, x):
        h = self.conv(x)
        return self.pool(h)  # here


@planted((floats(2, 3, 16, 16),), ("[2, 32, 8, 8]", "in_channels = 16"), ("in_channels = 32",))
class SecondStageOfAnotherWidth(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 32, 2, 2), nn.ReLU(), nn.Conv2d(16, 8, 2, 2))

    def forward(self, x):
        return self.stages(x)  # here


@planted((floats(3, 32),), ("x is [3, 32]", "[B, 3"))
class RowIntoConv2d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x)  # here
