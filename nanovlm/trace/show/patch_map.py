"""Which patches end up in which token? Pushes patch numbers through the learner's own function.

A shape cannot tell a true pixel shuffle from a plain reshape: both make [B, 49, 3072] of [B, 196, 768]. This can.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import torch
from torch import Tensor

from nanovlm.trace.show.html import preformatted

_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#edc948", "#76b7b2", "#9c755f")


def patch_map(fn: Callable[[Tensor], Tensor], grid: int = 14, channels: int | None = None) -> PatchMap:
    """Call fn on [1, grid * grid, channels] holding each patch's own number and read off [1, tokens, dim].

    fn only rearranges: pixel_shuffle, not the projector behind it. channels: the vision width, for a function that
    has it written in; by default the smallest width that the function takes.
    """
    numbers = torch.arange(grid * grid, dtype=torch.float32)[None, :, None]
    widths = [channels] if channels is not None else [1, 4, 64, 768, 1152]
    out: Tensor | None = None
    for i, width in enumerate(widths):
        try:
            with torch.no_grad():
                out = fn(numbers.expand(1, -1, width).contiguous())
            break
        except (RuntimeError, ValueError) as error:
            if i == len(widths) - 1:
                raise ValueError(
                    f"The function does not take [1, {grid * grid}, channels] (tried channels = "
                    f"{', '.join(map(str, widths))}): {str(error).strip()} Give grid= and channels= that fit it."
                ) from error
    if not isinstance(out, Tensor) or out.ndim != 3 or out.shape[0] != 1:
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"patch_map needs a function from [1, patches, channels] to [1, tokens, dim]; it gave {got}.")
    out = out[0]
    whole = out.round()
    if not torch.equal(out, whole) or whole.min() < 0 or whole.max() >= grid * grid:
        raise ValueError(
            "The function changes the numbers, so it does more than move patches. Pass the rearranging part alone, "
            "without the linear layer (or the norm) behind it."
        )
    return PatchMap([list(dict.fromkeys(row)) for row in whole.long().tolist()], grid)


class PatchMap:
    """`patches[t]`: the patches in token t, in the order in which its channels hold them."""

    def __init__(self, tokens: list[list[int]], grid: int):
        self.tokens = tokens
        self.grid = grid

    def __getitem__(self, token: int) -> list[int]:
        return self.tokens[token]

    def __len__(self) -> int:
        return len(self.tokens)

    def token_of(self, patch: int) -> list[int]:
        """The tokens that hold a patch: one, if each patch went to one place."""
        return [token for token, patches in enumerate(self.tokens) if patch in patches]

    @property
    def is_partition(self) -> bool:
        """Whether every patch is in exactly one token."""
        return sorted(patch for token in self.tokens for patch in token) == list(range(self.grid**2))

    def shape_of(self, token: int) -> str:
        """What the patches of a token look like in the picture: "a 2x2 tile", "a 1x4 strip", "scattered patches"."""
        cells = [divmod(patch, self.grid) for patch in self.tokens[token]]
        rows, columns = {row for row, _ in cells}, {column for _, column in cells}
        height, width = max(rows) - min(rows) + 1, max(columns) - min(columns) + 1
        if height * width != len(cells):
            return "scattered patches"
        if len(cells) == 1:
            return "one patch"
        return f"a {height}x{width} " + ("strip" if 1 in (height, width) else "tile")

    def spread(self, weights: Tensor) -> Tensor:
        """What the tokens have, on the patches that they hold: [..., tokens] -> [..., grid, grid].

        A token shares its weight evenly among its patches, so that the sum stays.
        """
        if weights.shape[-1] != len(self):
            raise ValueError(
                f"There are {len(self)} tokens, and weights is {list(weights.shape)}: its last dim differs."
            )
        patches = weights.new_zeros(*weights.shape[:-1], self.grid**2)
        for token, held in enumerate(self.tokens):
            patches[..., held] += weights[..., token, None] / len(held)
        return patches.unflatten(-1, (self.grid, self.grid))

    def __str__(self) -> str:
        kinds: dict[str, int] = {}
        for token in range(len(self)):
            kinds[self.shape_of(token)] = kinds.get(self.shape_of(token), 0) + 1
        seen = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
        lines = [f"{self.grid}x{self.grid} patches -> {len(self)} tokens: {seen}"]
        if not self.is_partition:
            lines.append("Some patches are in several tokens or in none.")
        lines += [f"token {token}: patches {self.tokens[token]}" for token in range(min(3, len(self)))]
        return "\n".join(lines)

    __repr__ = __str__

    def svg(self, cell: int = 16) -> str:
        """The picture's patches, each with the number and the colour of its token."""
        size = self.grid * cell
        owner = {patch: token for token, patches in reversed(list(enumerate(self.tokens))) for patch in patches}
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" role="img" '
            f'aria-label="{escape(str(self).splitlines()[0])}" font-family="sans-serif" font-size="{cell * 0.45:.0f}">'
        ]
        side = max(1, round(len(self.tokens) ** 0.5))
        for patch in range(self.grid**2):
            row, column = divmod(patch, self.grid)
            token = owner.get(patch)
            # Neighbours on the tokens' own grid get different colours, also where the grid is as wide as the palette.
            colour = _COLOURS[(token % side + 3 * (token // side)) % len(_COLOURS)] if token is not None else "#ddd"
            x, y = column * cell, row * cell
            parts.append(f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{colour}" stroke="#fff"/>')
            if token is not None:
                place = f'x="{x + cell / 2:g}" y="{y + cell * 0.66:g}"'
                parts.append(f'<text {place} text-anchor="middle" fill="#000">{token}</text>')
        return "".join([*parts, "</svg>"])

    def _repr_html_(self) -> str:
        return f"<div>{preformatted(str(self))}{self.svg()}</div>"
