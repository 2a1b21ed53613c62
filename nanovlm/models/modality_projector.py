"""From patch vectors to image tokens: pixel shuffle (Shi et al. 2016, turned round), then one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from nanovlm.config import ProjectorConfig
from nanovlm.tensor_types import Float


def pixel_shuffle(
    x: Float[Tensor, "batch num_patches dim"], factor: int
) -> Float[Tensor, "batch num_patches//{factor}**2 dim*{factor}**2"]:
    """Trade length for width: every factor x factor tile of patches becomes one token.

    [B, grid * grid, dim] -> [B, (grid / factor) ** 2, dim * factor ** 2]. In the last dimension the tile is laid out
    row by row, as in nanoVLM and SmolVLM (F.pixel_unshuffle uses another channel order).
    """
    batch, num_patches, dim = x.shape
    grid = round(num_patches**0.5)
    if grid * grid != num_patches or grid % factor:
        raise ValueError(f"{num_patches} patches are not a square grid that divides into {factor}x{factor} tiles.")
    x = x.reshape(batch, grid // factor, factor, grid // factor, factor, dim)  # [B, row, r, column, r, dim]
    x = x.transpose(2, 3)  # [B, row, column, r, r, dim]: the tile's patches side by side
    return x.reshape(batch, (grid // factor) ** 2, factor * factor * dim)


class ModalityProjector(nn.Module):
    """[B, num_patches, vision_dim] -> [B, num_patches / factor ** 2, language_dim]"""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.factor = config.pixel_shuffle_factor
        self.proj = nn.Linear(config.vision_dim * self.factor**2, config.language_dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch num_patches vision_dim"]
    ) -> Float[Tensor, "batch num_image_tokens language_dim"]:
        return self.proj(pixel_shuffle(x, self.factor))
