"""Any picture becomes the RGB that a person would see, and bad files get one clear sentence."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nanovlm.data.images import image_size, open_image, to_rgb
from nanovlm.data.processors import RESAMPLING, ImageProcessor, resized


def gradient(width=40, height=30):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def difference(a, b):
    """The largest difference of two RGB pictures, 0..255."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "LA", "I", "F"])
def test_modes_that_pil_can_make_from_rgb(mode):
    image = gradient()
    if mode == "LAB":
        from PIL import ImageCms

        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        converted = ImageCms.applyTransform(image, to_lab)
    else:
        converted = image.convert(mode)
    rgb = to_rgb(converted)
    assert rgb.mode == "RGB" and rgb.size == image.size
    expected = (
        image if mode not in ("1", "L", "LA", "I", "F") else image.convert("1" if mode == "1" else "L").convert("RGB")
    )
    # P has few colours; 8-bit LAB, HSV and YCbCr round
    assert difference(rgb, expected) <= {"P": 60, "YCbCr": 4, "HSV": 12, "LAB": 40}.get(mode, 1)
    mean = np.abs(np.asarray(rgb, dtype=float) - np.asarray(expected, dtype=float)).mean()
    assert mean <= {"P": 16}.get(mode, 3)


def test_transparency_is_laid_over_white():
    red, clear, half = (255, 0, 0, 255), (0, 0, 255, 0), (0, 0, 0, 128)
    rgba = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate((red, clear, half)):
        rgba.putpixel((x, 0), pixel)
    expected = Image.new("RGB", (3, 1))
    for x, pixel in enumerate(((255, 0, 0), (255, 255, 255), (127, 127, 127))):
        expected.putpixel((x, 0), pixel)
    assert difference(to_rgb(rgba), expected) == 0
    assert difference(to_rgb(rgba.convert("RGBa")), expected) <= 1  # premultiplied
    assert difference(open_image(saved(rgba)), expected) == 0
    assert difference(open_image(saved(rgba, "WEBP", lossless=True)), expected) == 0


@pytest.mark.parametrize("mode", ["LA", "La", "PA"])
def test_grey_and_palette_with_alpha(mode):
    image = Image.new("LA", (2, 1), (0, 0))  # transparent black
    image.putpixel((1, 0), (0, 255))
    if mode == "PA":
        image = Image.new("PA", (2, 1), (0, 0))
        image.putpixel((1, 0), (0, 255))
    assert list(to_rgb(image.convert(mode)).tobytes()) == [255, 255, 255, 0, 0, 0]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_in_a_png(mode):
    image = Image.new("RGB", (2, 1), "black").convert(mode)
    image.putpixel((1, 0), {"P": 1, "L": 255, "RGB": (255, 0, 0), "1": 1}[mode])
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    black = (0, 0, 0) if mode == "RGB" else 0
    rgb = open_image(saved(image, transparency=black))
    assert rgb.getpixel((0, 0)) == (255, 255, 255), "the transparent colour shows the white page"
    assert rgb.getpixel((1, 0)) in ((255, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_16_bit_is_scaled_not_clipped(mode):
    values = [0, 255, 257 * 100, 257 * 200, 65535]
    kind = {"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")
    image = Image.frombytes(mode, (5, 1), np.array(values, dtype=kind).tobytes())
    grey = list(to_rgb(image).tobytes())[::3]
    assert grey == [0, 1, 100, 200, 255]


def test_16_bit_png_and_tiff_files():
    values = np.array([[0, 1000, 30000, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        rgb = open_image(saved(Image.fromarray(values), format))
        assert list(rgb.tobytes())[::3] == [0, 4, 117, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500000.0, 1000000.0], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([-2.0, -2.0, -2.0], [0, 0, 0]),
    ],
)
def test_float_images(values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert list(to_rgb(image).tobytes())[::3] == pytest.approx(expected, abs=1)


def test_nan_pixels_are_named():
    with pytest.raises(ValueError, match="NaN"):
        to_rgb(Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(orientation, format):
    """Each orientation says where the stored first row and column belong; undoing it must give the upright picture."""
    upright = gradient()
    store = {  # upright -> stored, written with NumPy so that PIL is not checked by PIL
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    stored = Image.fromarray(np.ascontiguousarray(store(np.asarray(upright))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if format == "JPEG" else {}
    rgb = open_image(saved(stored, format, exif=exif, **options))
    assert rgb.size == upright.size
    assert difference(rgb, upright) <= (12 if format == "JPEG" else 0)
    assert difference(open_image(rgb), rgb) == 0, "opened twice it is turned once"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_matter():
    content = saved(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert open_image(content).size == (40, 30)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)
    assert open_image(content).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    "form", ["path", "str", "bytes", "bytearray", "file", "pil", "array", "dict bytes", "dict path"]
)
def test_sources(form, tmp_path):
    image, path = gradient(), tmp_path / "picture.png"
    image.save(path)
    content = path.read_bytes()
    source = {
        "path": path,
        "str": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "file": io.BytesIO(content),
        "pil": image,
        "array": np.asarray(image),
        "dict bytes": {"bytes": content, "path": None},
        "dict path": {"bytes": None, "path": str(path)},
    }[form]
    assert difference(open_image(source), image) == 0


def test_arrays():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert list(open_image(grey).tobytes())[::3] == list(range(12))
    assert list(open_image(grey[:, :, None]).tobytes())[::3] == list(range(12))
    assert list(open_image(grey / 255).tobytes())[::3] == list(range(12))
    assert open_image(np.zeros((2, 2, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)
    for bad, sentence in [
        (np.zeros((3, 4, 5), np.uint8), r"not \[3, 4, 5\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((2, 2), np.int32), "not int32"),
        (np.full((2, 2), 255.0), r"255\.\.255"),
        (np.full((2, 2), np.nan), "0..1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            open_image(bad)


def png(width, height, rows, depth=8, colour=2, extra=()):
    """A PNG file by hand: `rows` are its bytes, `extra` further chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def png_claiming(width, height):
    """A PNG file of some hundred bytes whose header claims any size."""
    return png(width, height, bytes(100))


JPEG = saved(gradient(400, 300), "JPEG")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a picture"),
        (b"hello, I am text", "not a picture"),
        (JPEG[: len(JPEG) // 2], "cut short"),
        (JPEG[:30], "not a picture|cut short"),
        (saved(gradient(400, 300))[:900], "cut short"),
        (png_claiming(400, 300), "cut short"),
        (png_claiming(10_000, 10_000), "decompression bomb"),
        (png_claiming(100_000, 100_000), "decompression bomb"),
        (png_claiming(0, 10), "no pixels|not a picture"),
    ],
)
def test_bad_files_get_one_sentence(content, sentence, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    for source in (content, path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=sentence) as caught:
                open_image(source, target_size=32)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_other_program_is_started_for_a_image(tmp_path, monkeypatch):
    """PostScript is a program, which Pillow has Ghostscript run where that is installed."""
    path = tmp_path / "holiday.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **kwargs: started.append(args))
    for source in (path, path.read_bytes(), {"bytes": path.read_bytes(), "path": None}):
        with pytest.raises(ValueError, match="PostScript and Windows metafiles are not opened"):
            open_image(source)
    with pytest.raises(ValueError, match="not a picture"):
        image_size(path)
    assert not started


@pytest.mark.parametrize("wrap", [str, lambda path: {"bytes": None, "path": str(path)}], ids=["path", "data set"])
def test_pipes_and_devices_are_not_read(tmp_path, wrap):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    for path in ("/dev/zero", tmp_path / "pipe.png", tmp_path / "link.png"):
        with pytest.raises(ValueError, match="is a pipe, a socket or a device, not a picture"):
            open_image(wrap(path))
        with pytest.raises(ValueError, match="is a pipe"):
            image_size(path)


def test_a_file_of_any_size_is_not_read_whole(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="has 1,099,511,627,776 bytes, and a picture file may have"):
        open_image(tmp_path / "sparse.png")


def test_the_limit_is_one_of_memory():
    """A float pixel needs more of it than three bytes of colour do."""
    content = saved(Image.new("F", (9400, 9400)), "TIFF", compression="tiff_deflate")
    assert len(content) < 1_000_000
    with pytest.raises(ValueError, match="decompression bomb"):
        open_image(content)


def test_running_out_of_memory_is_a_sentence(monkeypatch):
    def no_memory(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("nanovlm.data.images._convert", no_memory)
    with pytest.raises(ValueError, match=r"does not fit into the memory: its size is 400 x 300\."):
        open_image(JPEG)


@pytest.mark.parametrize("clear", [(65535, 0, 0), (256 * 200 + 7, 256 * 3, 9)])
def test_a_transparent_colour_of_16_bits(clear):
    rows = b"\0" + struct.pack(">6H", *clear, 256 * 30, 256 * 40, 256 * 50)
    rgb = open_image(png(2, 1, rows, depth=16, extra=[(b"tRNS", struct.pack(">3H", *clear))]))
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (30, 40, 50)]


def test_a_transparent_grey_of_16_bits():
    rows = b"\0" + struct.pack(">2H", 1000, 256 * 30)
    rgb = open_image(png(2, 1, rows, depth=16, colour=0, extra=[(b"tRNS", struct.pack(">H", 1000))]))
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (30, 30, 30)]


def test_wrong_places_get_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such picture: .*nowhere\.png"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="is a directory"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="web address"):
        open_image("https://example.com/cat.png")
    with pytest.raises(ValueError, match="Cannot read"):
        open_image("a\0b")
    with pytest.raises(ValueError, match="no pixels"):
        open_image(Image.new("RGB", (0, 5)))
    with pytest.raises(TypeError, match="not int"):
        open_image(3)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2, 16, 90]), st.sampled_from(["bilinear", "bicubic"])
)
def test_resizing_is_that_of_pillow_to_one_level(width, height, size, resample):
    """Rows first; the contrast is the highest there is."""
    draw = np.random.default_rng(width + 1000 * height)
    image = Image.fromarray(255 * draw.integers(0, 2, (height, width, 3), dtype=np.uint8))
    theirs = image
    for step in ((size, height), (size, size)):
        theirs = theirs.resize(step, RESAMPLING[resample])
    apart = (resized(image, size, resample).int() - ImageProcessor.pixels(theirs).int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 200))
def test_reduced_jpeg_keeps_at_least_twice_the_target(width, height, target):
    content = saved(Image.new("RGB", (width, height), (200, 30, 60)), "JPEG")
    image = open_image(content, target_size=target)
    assert all(side >= min(full, 2 * target) for side, full in zip(image.size, (width, height), strict=True))
    assert abs(image.width / image.height - width / height) <= 8 * max(width / height, 1) / min(image.size)


def test_reduced_jpeg_is_really_reduced_and_looks_the_same():
    content = saved(gradient(1600, 1200), "JPEG", quality=95)
    assert open_image(content, target_size=64).size == (200, 150)
    full = ImageProcessor(64)(open_image(content))
    reduced = ImageProcessor(64)(content)
    assert (full - reduced).abs().max() < 0.03  # of a range of 2


@pytest.mark.parametrize(("pixel_range", "low", "high"), [("signed", -1.0, 1.0), ("unit", 0.0, 1.0)])
def test_pixel_range_is_exact_at_both_ends(pixel_range, low, high):
    processor = ImageProcessor(2, pixel_range)
    pixels = processor([Image.new("RGB", (2, 2), "black"), Image.new("RGB", (9, 4), "white")])
    assert pixels.shape == (2, 3, 2, 2) and pixels.dtype == torch.float32
    assert (pixels[0] == low).all() and (pixels[1] == high).all()


def test_signed_is_the_mean_and_deviation_of_siglip():
    image = gradient(16, 16)
    expected = (np.asarray(image, dtype=np.float32) / 255 - 0.5) / 0.5
    torch.testing.assert_close(ImageProcessor(16)(image)[0], torch.from_numpy(expected).permute(2, 0, 1))


def test_channels_rows_and_columns_are_where_they_belong():
    image = Image.new("RGB", (4, 4), "black")
    image.putpixel((3, 1), (255, 0, 0))  # column 3, row 1
    pixels = ImageProcessor(4, "unit")(image)[0]
    assert pixels.nonzero().tolist() == [[0, 1, 3]]


@pytest.mark.parametrize("size", [(1, 1), (20_000, 3), (2, 20_000), (20_000, 500)])
def test_extreme_sizes(size):
    image = Image.new("RGB", size, (10, 200, 100))
    pixels = ImageProcessor(32, "unit")(saved(image))
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[0, :, 5, 7], torch.tensor([10, 200, 100]) / 255)


def test_one_list_and_none():
    processor = ImageProcessor(8)
    assert processor(gradient()).shape == (1, 3, 8, 8)
    assert processor([gradient()] * 3).shape == (3, 3, 8, 8)
    assert processor([]).shape == (0, 3, 8, 8)


def test_the_given_image_is_left_as_it_was():
    image = gradient(8, 8)
    before = image.tobytes()
    ImageProcessor(8)(image).zero_()
    assert image.tobytes() == before


def test_settings_there_and_back(tmp_path):
    processor = ImageProcessor(64, "unit", "lanczos")
    processor.save_pretrained(tmp_path / "model")
    assert ImageProcessor.from_pretrained(tmp_path / "model") == processor != ImageProcessor(64)
    with pytest.raises(FileNotFoundError, match=r"No processor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)
    for content, sentence in [
        ("{", "not valid JSON"),
        ("[]", "an object of settings belongs"),
        ('{"size": 3}', "setting size"),
        ("{}", "lack"),
    ]:
        (tmp_path / "processor_config.json").write_text(content)
        with pytest.raises(ValueError, match=sentence):
            ImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("arguments", [(0,), (2.5,), (8, "percent"), (8, "unit", "sharp")])
def test_wrong_settings(arguments):
    with pytest.raises(ValueError, match=r"image_size|pixel_range|resample"):
        ImageProcessor(*arguments)


def test_a_file_name_of_two_lines_is_told_on_one():
    """Whatever reports a skipped picture writes one line a picture."""
    with pytest.raises(FileNotFoundError, match=r"^No such picture: 'a\\nb' \(looked in .*\)\.$"):
        open_image("a\nb")
