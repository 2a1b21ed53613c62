"""Pictures from anywhere -> PIL RGB: the one place where a stranger's picture file is opened, decoded and converted."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

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
# Drawings, which Pillow has another program draw (Ghostscript for PostScript, whatever the file is called), and files
# that it recognises and cannot decode.
NOT_OPENED = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
# Memory that decoding and converting take at most, per pixel. With 12 bytes Pillow's limit is 1 GiB.
BYTES_PER_PIXEL, BYTES_PER_DEEP_PIXEL = 12, 32
# What `datasets` stores for a picture it has not decoded: {"bytes": …, "path": …}.
UNDECODED_KEYS = {"bytes", "path"}


# What Pillow only warns of, `_identify` refuses. For the whole process: filters within a call are not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL picture of any mode to RGB, as a person would see it on a white page.

    EXIF orientation is applied, transparency is laid over white, and 16-bit, 32-bit and float greys are scaled to
    0..255 instead of clipped (PIL's own `convert` clips them). Of an animation, the current frame is used.

    Raises: ValueError if a float picture holds NaN or infinity.
    """
    _load(image)  # some decoders (TIFF) turn the picture themselves while loading
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


def _load(image: Image.Image) -> None:
    """Decode. Pillow halves colours of 16 bits to 8, but leaves the transparent colour among them as it was."""
    halved = any("RGB;16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and (halved or max(clear) > 255):
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _is_deep_grey(image):
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
    scaled = np.rint((grey - low) * (255.0 / (high - low))).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        scaled[grey == clear] = 255  # as on a white page
    return Image.fromarray(scaled)


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
        if source is None:
            raise ValueError("The picture is empty: it has neither bytes nor a path.")
    if isinstance(source, Image.Image):
        return _decode(source, "The picture")
    if isinstance(source, np.ndarray):
        return to_rgb(_from_array(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_file(
            io.BytesIO(_without_texts(bytes(source))), f"The picture ({len(source):,} bytes)", target_size
        )
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source, target_size)
    if hasattr(source, "read"):
        name = f"The picture {_name(str(getattr(source, 'name', '')))}".strip()
        return _open_file(io.BytesIO(_without_texts(source.read())), name, target_size)
    raise TypeError(
        f"A picture is a path, bytes, a binary file, a PIL image or a NumPy array, not {type(source).__name__}."
    )


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height from a picture file's header alone. Raises as `open_image` does."""
    _check_path(path)
    with open(path, "rb") as file:
        return _identify(file, _name(path)).size


def _check_path(path: str | os.PathLike) -> None:
    """A stranger's path may name a pipe or a device: reading those hangs, or never ends."""
    name = _name(path)
    if name.startswith(("http:/", "https:/")):  # a Path keeps one slash of the two
        raise ValueError(f"{name} is a web address: download the picture first and pass the file.")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"No such picture: {name} (looked in {os.getcwd()}).") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{name} is a directory, not a picture: pass one of the files in it.")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name} is a pipe, a socket or a device, not a picture: pass a file.")
    if (limit := _limit()) is not None and status.st_size > limit:
        raise ValueError(f"{name} has {status.st_size:,} bytes, and a picture file may have {limit:,}.")


def _name(path: str | os.PathLike) -> str:
    """For a sentence: a file's name may hold line breaks, and bytes that are no text."""
    name = os.fspath(path)
    return name if name.isprintable() else repr(name)


def _unreadable(path: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(f"Cannot read {os.fspath(path)!r}: {getattr(error, 'strerror', None) or error}.")


def _limit() -> int | None:
    """Bytes that a picture may take: Pillow's limit, which people raise or switch off (None) for pictures they trust"""
    return Image.MAX_IMAGE_PIXELS and Image.MAX_IMAGE_PIXELS * BYTES_PER_PIXEL


def _open_path(path: str | os.PathLike, target_size: int | tuple[int, int] | None) -> Image.Image:
    _check_path(path)
    name = _name(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _open_file(io.BytesIO(_without_texts(content)), name, target_size)


def _identify(file: Any, name: str) -> Image.Image:
    """The only place where a stranger's picture file is opened: its header is read, nothing is decoded yet."""
    Image.init()  # fills OPEN
    try:
        image = Image.open(file, formats=[kind for kind in Image.OPEN if kind not in NOT_OPENED])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except UnidentifiedImageError:
        raise ValueError(
            f"{name} is not a picture that Pillow can read (PostScript and Windows metafiles are not opened)."
        ) from None
    except MemoryError as error:
        raise ValueError(f"{name} does not fit into the memory.") from error
    except Exception as error:
        raise ValueError(f"{name} is cut short or damaged: {_reason(error)}.") from error
    limit, pixels = _limit(), image.width * image.height
    # Between its limit and twice its limit Pillow only warns; a picture that fills the memory is no less bad.
    if limit is not None and pixels * (BYTES_PER_DEEP_PIXEL if _is_deep_grey(image) else BYTES_PER_PIXEL) > limit:
        raise _too_large(name)
    return image


def _too_large(name: str) -> ValueError:
    return ValueError(
        f"{name} claims more than {Image.MAX_IMAGE_PIXELS:,} pixels (a third of that, if they are deep greys), which "
        "may be a decompression bomb: make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    )


def _reason(error: Exception) -> str:
    """What a decoder says, in one line; some say nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


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


def _open_file(file: Any, name: str, target_size: int | tuple[int, int] | None) -> Image.Image:
    image = _identify(file, name)
    if target_size is not None and image.format == "JPEG":
        # EXIF may turn the picture later, so both sides are held to the larger target side.
        side = 2 * (target_size if isinstance(target_size, int) else max(target_size))
        image.draft(None, (side, side))
    return _decode(image, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"{name} has no pixels: its size is {image.width} x {image.height}.")
    try:
        _load(image)
    except MemoryError as error:
        raise _no_memory(image, name) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError … on damaged files
        raise ValueError(f"{name} is cut short or damaged: {_reason(error)}.") from error
    try:
        return to_rgb(image)
    except MemoryError as error:
        raise _no_memory(image, name) from error


def _no_memory(image: Image.Image, name: str) -> ValueError:
    return ValueError(f"{name} does not fit into the memory: its size is {image.width} x {image.height}.")


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
