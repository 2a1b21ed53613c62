"""Where a model that watches gets its pictures from: a camera, a video file, or a folder that fills up.

A source has `frames(pause)`, an iterator that runs in a thread of its own, and `close()`. `pause(seconds)` waits, and
is true when the source shall stop. `no_images` are the files that it could not use, each with a sentence that says why.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from math import floor, isfinite
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from nanovlm.data.images import image_size, open_image

Pause = Callable[[float], bool]
Clock = Callable[[], float]
USUAL_RATE = 25.0  # frames a second, of a video that does not say


@dataclass
class Frame:
    """A picture (PIL, RGB) and what to call it. `passed_over`: frames that were there before it and not even opened."""

    name: str
    image: Image.Image
    passed_over: int = 0


class Source(Protocol):
    no_images: dict[str, str]

    def frames(self, pause: Pause) -> Iterator[Frame]: ...

    def close(self) -> None: ...


def open_source(source: str, every: float, once: bool = False) -> Source:
    """ "camera", "camera:1" (by number), a folder, or a video file. every: seconds between two frames.

    Raises: ValueError, OSError or ImportError (no OpenCV), with one sentence.
    """
    if not (isfinite(every) and every > 0):
        raise ValueError(f"The time between two frames must be above 0 seconds; it is {every:g}.")
    path = Path(source).expanduser()
    if once and not path.is_dir():
        raise ValueError(f"--once is for a folder of pictures, and {source} is none.")
    if path.is_dir():
        return Folder(path, every, once)
    if path.exists():
        return Video(path, every)
    kind, _, number = source.partition(":")
    if kind == "camera" and (not number or number.isdecimal()):
        return Camera(int(number or 0), every)
    raise FileNotFoundError(
        f"There is no file or folder {source}. A camera is called camera, and a second one camera:1."
    )


@dataclass
class Folder:
    """Files by the time of their last change. Every look shows the newest of those that are new or have changed since
    the look before; with `once`, each look shows one file, the oldest first, and the source ends with the last.

    A file that cannot be opened may be half written, so the next look tries it again. If it has not changed by then, it
    is no picture, until it changes.
    """

    path: Path
    every: float
    once: bool = False
    no_images: dict[str, str] = field(default_factory=dict)

    def frames(self, pause: Pause) -> Iterator[Frame]:
        done: dict[Path, tuple[int, int]] = {}  # the state in which a file was shown, passed over or given up
        tried: dict[Path, tuple[int, int]] = {}  # the state in which it could not be opened
        while True:
            states = self._look()
            self.no_images = {name: why for name, why in self.no_images.items() if self.path / name in states}
            new = [
                path for path in sorted(states, key=lambda path: (states[path], path)) if done.get(path) != states[path]
            ]
            while new:
                path = new.pop(0 if self.once else -1)
                image = self._open(path, states[path], done, tried)
                if image is not None:
                    passed_over = [] if self.once else [path for path in new if path not in tried]
                    done |= {path: states[path] for path in passed_over}
                    yield Frame(path.name, image, len(passed_over))
                    break
            if self.once and not new and all(done.get(path) == state for path, state in states.items()):
                return
            if pause(self.every):
                return

    def _look(self) -> dict[Path, tuple[int, int]]:
        """The files that are not hidden -> when they changed, in ns, and their size."""
        found = {}
        for entry in os.scandir(self.path):
            with suppress(FileNotFoundError):  # gone since
                status = entry.stat()
                if stat.S_ISREG(status.st_mode) and not entry.name.startswith("."):
                    found[self.path / entry.name] = status.st_mtime_ns, status.st_size
        return found

    def _open(self, path: Path, state: tuple[int, int], done: dict, tried: dict) -> Image.Image | None:
        if path.suffix and path.suffix.lower() not in Image.registered_extensions():
            done[path] = state
            self.no_images[path.name] = f"{path}: its name is no picture's."
            return None
        try:
            image = open_image(path)
        except (ValueError, OSError) as error:
            if tried.get(path) == state:
                done[path] = state
                self.no_images[path.name] = str(error)
            tried[path] = state
            return None
        done[path] = state
        tried.pop(path, None)
        self.no_images.pop(path.name, None)
        return image

    def close(self) -> None:
        """Nothing is held open."""


class Video:
    """A video file in its own time, however long the answers take: of every `every` seconds, one frame."""

    def __init__(self, path: Path, every: float, clock: Clock = time.monotonic) -> None:
        self.path, self.every, self.clock, self.no_images = path, every, clock, {}
        if not path.is_file():
            raise ValueError(f"{path} is a pipe, a socket or a device, not a video: pass a file.")
        if _is_image(path):
            raise ValueError(f"{path} is a picture, not a video: nanovlm generate --image {path} asks about it.")
        self.capture = _capture(str(path.resolve()))  # absolute: never a web address
        if not self.capture.isOpened():
            raise ValueError(f"{path} is not a video that OpenCV can read.")
        rate = self.capture.get(_opencv().CAP_PROP_FPS)
        self.rate = rate if isfinite(rate) and rate > 0 else USUAL_RATE

    def frames(self, pause: Pause) -> Iterator[Frame]:
        start, index, due = self.clock(), 0, 0.0
        while self.capture.grab():  # decodes, and converts nothing
            position = index / self.rate
            index += 1
            if position < due - 1e-9:
                continue
            due = self.every * (floor(position / self.every + 1e-9) + 1)
            if pause(max(0.0, start + position - self.clock())):
                return
            yield Frame(f"{self.path.name} {position:.2f} s", _retrieve(self.capture, self.path.name))
        if index == 0:
            raise ValueError(f"{self.path} holds no frame that OpenCV can read.")

    def close(self) -> None:
        self.capture.release()


class Camera:
    """A camera by its number. All its frames are fetched, or its driver would hand out old ones; one is shown every
    `every` seconds."""

    def __init__(self, number: int, every: float, clock: Clock = time.monotonic) -> None:
        self.name, self.every, self.clock, self.no_images = f"camera {number}", every, clock, {}
        self.capture = _capture(number)
        if not self.capture.isOpened():
            raise OSError(
                f"There is no {self.name}, or another program holds it, or this one may not use it: "
                "try camera:1, or give a video file or a folder."
            )

    def frames(self, pause: Pause) -> Iterator[Frame]:
        due = self.clock()
        while not pause(0):
            if not self.capture.grab():
                raise OSError(f"The {self.name} has stopped giving pictures: is it still plugged in?")
            if (now := self.clock()) >= due:
                due = now + self.every
                yield Frame(f"{self.name} {time.strftime('%H:%M:%S')}", _retrieve(self.capture, self.name))

    def close(self) -> None:
        self.capture.release()


def _is_image(path: Path) -> bool:
    """OpenCV would open a picture as a video of one frame, without the checks of data.images."""
    try:
        image_size(path)
    except (ValueError, OSError):
        return False
    return True


def _opencv() -> Any:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, and FFmpeg complains of every broken file
    try:
        import cv2
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
        raise ImportError(f'A video or a camera needs OpenCV, which {why}: pip install "nanovlm[watch]"') from error
    return cv2


def _capture(source: str | int) -> Any:
    """OpenCV writes to standard error what does not open; we say it in a sentence."""
    cv2 = _opencv()
    logging = cv2.utils.logging
    before = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(source)
    finally:
        logging.setLogLevel(before)


def _retrieve(capture: Any, name: str) -> Image.Image:
    """The frame that was grabbed; OpenCV's colours are blue, green, red."""
    decoded, pixels = capture.retrieve()
    if not decoded:
        raise ValueError(f"A frame of {name} is damaged: OpenCV cannot decode it.")
    return open_image(pixels[..., ::-1])
