"""What ships with the package: the pocket model, its tokenizer, sample pictures."""

from __future__ import annotations

from pathlib import Path


def asset_path(name: str) -> Path:
    """Where `name` (for example "pocket" or "images/shapes.png") lies: inside an installed wheel, or in a checkout.

    Raises: FileNotFoundError if it is in neither.
    """
    package = Path(__file__).parent
    for root in (package / "_assets", package.parent / "assets"):  # the first is what the wheel makes of the second
        if (path := root / name).exists():
            return path
    raise FileNotFoundError(f"This installation of nanovlm lacks its asset {name!r}. Install the package again.")
