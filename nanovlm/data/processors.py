"""Pictures -> tensors: any file or PIL mode becomes RGB, is resized to a square and scaled to the model's range."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from nanovlm.pixels import scale_pixels

PROCESSOR_FILE = "processor_config.json"
PIXEL_RANGES = ("signed", "unit")
RESAMPLING = {name.lower(): Image.Resampling[name] for name in ("NEAREST", "BOX", "BILINEAR", "BICUBIC", "LANCZOS")}
# EXIF orientation -> the turn that sets the picture upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What `datasets` stores for a picture it has not decoded: {"bytes": …, "path": …}.
UNDECODED_KEYS = {"bytes", "path"}


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL picture of any mode to RGB, as a person would see it on a white page.

    EXIF orientation is applied, transparency is laid over white, and 16-bit, 32-bit and float greys are scaled to
    0..255 instead of clipped (PIL's own `convert` clips them). Of an animation, the current frame is used.

    Raises: ValueError if a float picture holds NaN or infinity.
    """
    image.load()  # some decoders (TIFF) turn the picture themselves while loading
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        turn = None
    rgb = _convert(image)
    if turn is None:
        return rgb
    upright = rgb.transpose(turn)
    upright.info = {}  # it still held the orientation: whoever opened the picture again would turn it again
    return upright


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_to_8_bit(image).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode == "La":  # PIL leaves premultiplied grey only through LA
            image = image.convert("LA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Scale a deep grey picture (mode I, I;16* or F) to 8 bits.

    The mode does not say what white is in a 32-bit or float picture, so the values do: up to 1 (float), 255 or 65535;
    anything else is stretched from its own minimum to its own maximum.
    """
    grey = np.asarray(image).astype(np.float64)
    if not np.isfinite(grey).all():
        raise ValueError("The picture holds NaN or infinite pixels; clean the array before making a picture of it.")
    low, high = 0.0, 65535.0
    # Pillow before 11 opens a 16-bit PNG in mode I.
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")):
        whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        fitting = [white for white in whites if grey.min() >= 0 and grey.max() <= white]
        low, high = (0.0, fitting[0]) if fitting else (grey.min(), max(grey.max(), grey.min() + 1))
    return Image.fromarray(np.rint((grey - low) * (255.0 / (high - low))).astype(np.uint8))


def open_image(source: Any, target_size: int | tuple[int, int] | None = None) -> Image.Image:
    """Open anything that holds a picture and return it as PIL RGB; of an animation, the first frame.

    Args:
        source: path, bytes, binary file object, PIL picture, array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (uint8, or
            float in 0..1), or the {"bytes", "path"} dict of an undecoded `datasets` picture.
        target_size: size (or (width, height)) that the picture will be resized to. A JPEG much larger than that is
            decoded at 1/2, 1/4 or 1/8 scale, several times faster. The decoded picture keeps at least twice the target
            in both directions, so the resize that follows still averages over real pixels.

    Raises: FileNotFoundError, ValueError or TypeError, with one sentence that names the picture.
    """
    if isinstance(source, dict) and set(source) <= UNDECODED_KEYS:
        source = source.get("bytes") or source.get("path")
    if isinstance(source, Image.Image):
        return _decode(source, "The picture")
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_bytes(bytes(source), f"The picture ({len(source):,} bytes)", target_size)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source, target_size)
    if hasattr(source, "read"):
        return _open_bytes(source.read(), f"The picture {getattr(source, 'name', '')}".strip(), target_size)
    raise TypeError(
        f"A picture is a path, bytes, a binary file, a PIL image or a NumPy array, not {type(source).__name__}."
    )


def _open_path(path: str | os.PathLike, target_size: int | tuple[int, int] | None) -> Image.Image:
    name = os.fspath(path)
    if name.startswith(("http://", "https://")):
        raise ValueError(f"{name} is a web address: download the picture first and pass the file.")
    if os.path.isdir(path):
        raise ValueError(f"{name} is a directory, not a picture: pass one of the files in it.")
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"No such picture: {name} (looked in {os.getcwd()}).") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ValueError(f"Cannot read {name!r}: {getattr(error, 'strerror', None) or error}.") from error
    return _open_bytes(content, name, target_size)


def _open_bytes(content: bytes, name: str, target_size: int | tuple[int, int] | None) -> Image.Image:
    file = io.BytesIO(_without_texts(content))
    try:
        with warnings.catch_warnings():
            # Between its limit and twice its limit PIL only warns; a picture that fills the memory is no less bad.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} claims more than {Image.MAX_IMAGE_PIXELS:,} pixels, which may be a decompression bomb: make it "
            "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture that Pillow can read.") from None
    except Exception as error:
        raise ValueError(f"{name} is cut short or damaged: {str(error).rstrip('.')}.") from error
    if target_size is not None and image.format == "JPEG":
        # EXIF may turn the picture later, so both sides are held to the larger target side.
        side = 2 * (target_size if isinstance(target_size, int) else max(target_size))
        image.draft(None, (side, side))
    return _decode(image, name)


def _without_texts(content: bytes) -> bytes:
    """A PNG file without its text chunks. They say nothing about the pixels, and Pillow refuses a whole picture for a
    comment of more than a megabyte (PngImagePlugin.MAX_TEXT_CHUNK). Anything else comes back as it is."""
    if not content.startswith(PNG_SIGNATURE):
        return content
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 12 <= len(content):  # a chunk: 4 bytes of length, 4 of type, the data, 4 of checksum
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(content[start:end])
        start = end
    return b"".join([*kept, content[start:]])


def _decode(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{name} has no pixels: its size is {image.width} x {image.height}.")
    try:
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError … on damaged files
        raise ValueError(f"{name} is cut short or damaged: {str(error).rstrip('.')}.") from error
    return to_rgb(image)


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"A picture array is [H, W], [H, W, 3] or [H, W, 4], not {list(shape)}.")
    if 0 in shape:
        raise ValueError(f"The picture has no pixels: its array is {list(shape)}.")
    if np.issubdtype(array.dtype, np.floating):
        # written so that NaN fails too
        if not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(f"A float picture array lies in 0..1; this one in {array.min():g}..{array.max():g}.")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"A picture array is uint8 (0..255) or float (0..1), not {array.dtype}.")
    return Image.fromarray(np.ascontiguousarray(array))


class ImageProcessor:
    """Pictures -> one float32 tensor [num_pictures, 3, image_size, image_size].

    The picture is squashed to a square, as SigLIP and nanoVLM do, and its pixels are scaled to

    - "signed": [-1, 1], that is (x / 255 - 0.5) / 0.5, what SigLIP was trained on;
    - "unit": [0, 1], what nanoVLM's published checkpoints were trained on.

    A model loaded with the wrong range still answers, only worse, so the range belongs to the model directory.
    """

    def __init__(self, image_size: int, pixel_range: str = "signed", resample: str = "bicubic") -> None:
        if not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size is a positive whole number of pixels, not {image_size!r}.")
        if pixel_range not in PIXEL_RANGES:
            raise ValueError(f"pixel_range is one of {', '.join(PIXEL_RANGES)}, not {pixel_range!r}.")
        if resample not in RESAMPLING:
            raise ValueError(f"resample is one of {', '.join(RESAMPLING)}, not {resample!r}.")
        self.image_size = image_size
        self.pixel_range = pixel_range
        self.resample = resample

    def __call__(self, images: Any) -> torch.Tensor:
        """One picture (or anything `open_image` takes) gives [1, 3, H, W]; a list of P pictures [P, 3, H, W]."""
        if not isinstance(images, (list, tuple)):
            images = [images]
        return self.to_tensor([self.open(image) for image in images])

    def prepare(
        self, images: Sequence[Any], image_token: str, num_image_tokens: int, raw: bool = False
    ) -> tuple[torch.Tensor, list[str] | None]:
        """Open each picture once -> the model's pixels (raw: as `to_raw` has them), and `image_texts` of them."""
        opened = [self.open(image) for image in images]
        pixels = self.to_raw(opened) if raw else self.to_tensor(opened)
        return pixels, self.image_texts(opened, image_token, num_image_tokens)

    def to_tensor(self, opened: Sequence[Image.Image]) -> torch.Tensor:
        """Pictures as `open` gives them -> [P, 3, H, W] in the model's range."""
        return scale_pixels(self.to_raw(opened), self.pixel_range)

    def to_raw(self, opened: Sequence[Image.Image]) -> torch.Tensor:
        """The same before `scale_pixels`, uint8: what workers send, since a model scales it anywhere in no time."""
        size = self.image_size
        pixels = torch.empty(len(opened), 3, size, size, dtype=torch.uint8)
        for row, image in zip(pixels, opened, strict=True):
            if image.size != (size, size):
                image = image.resize((size, size), RESAMPLING[self.resample])
            row.copy_(self.pixels(image))
        return pixels

    def open(self, image: Any) -> Image.Image:
        """Anything that `open_image` takes -> RGB, decoded no larger than needed."""
        return open_image(image, target_size=self.image_size)

    def image_texts(self, opened: Sequence[Image.Image], image_token: str, num_image_tokens: int) -> list[str] | None:
        """What stands for each picture in the text; None: num_image_tokens image tokens and nothing else."""
        return None

    @staticmethod
    def pixels(image: Image.Image) -> torch.Tensor:
        """A PIL RGB picture -> uint8 [3, H, W]"""
        # bytearray: torch wants memory that it may write to
        array = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return array.view(image.height, image.width, 3).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageProcessor) and self.to_dict() == other.to_dict()

    __hash__ = None

    def to_dict(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "pixel_range": self.pixel_range, "resample": self.resample}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> ImageProcessor:
        known = ("image_size", "pixel_range", "resample")
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(f"Unknown image processor setting {', '.join(unknown)}; known are {', '.join(known)}.")
        if "image_size" not in settings:
            raise ValueError("The image processor settings lack image_size.")
        return cls(**settings)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write processor_config.json into a model directory, which is created where needed."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        Path(directory, PROCESSOR_FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> ImageProcessor:
        """Read processor_config.json from a model directory. Raises FileNotFoundError or ValueError."""
        path = Path(directory, PROCESSOR_FILE)
        if not path.is_file():
            raise FileNotFoundError(f"No {PROCESSOR_FILE} in {directory}: it says how the model wants its pictures.")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}.") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{path} holds a {type(settings).__name__}, not an object of settings.")
        return cls.from_dict(settings)
