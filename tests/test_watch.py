"""`nanovlm watch`: the newest frame is answered, the others are dropped and counted, and nothing is left behind."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nanovlm.assets import asset_path
from nanovlm.cli import main
from nanovlm.commands.watch import read_seconds, table
from nanovlm.inference import frames
from nanovlm.inference.frames import Camera, Folder, Frame, Pause, Video, open_source
from nanovlm.inference.watching import Watched, latency_percentiles, watch

RED, GREEN = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "green")


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self, stop_after: float = float("inf")) -> None:
        self.now, self.stop_after = 0.0, stop_after

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> bool:
        self.now += seconds
        return self.now > self.stop_after


class Scripted:
    """A source of numbered frames: the first comes by itself, the others where `arrive` calls for them."""

    def __init__(self, total: int, error: Exception | None = None) -> None:
        self.total, self.error, self.closed, self.clock = total, error, False, Clock()
        self.no_images: dict[str, str] = {}
        self._called, self._came = threading.Semaphore(0), threading.Semaphore(0)

    def frames(self, pause: Pause) -> Iterator[Frame]:
        for i in range(self.total):
            while i > 0 and not self._called.acquire(timeout=0.01):
                if pause(0):
                    return
            yield Frame(str(i), RED)
            if i > 0:
                self._came.release()  # the thread is back for the next one: it has taken this one over
        if self.error is not None:
            raise self.error

    def arrive(self, count: int) -> None:
        """While the model is busy, a second passes and a frame comes, `count` times."""
        for _ in range(count):
            self.clock.now += 1
            self._called.release()
            assert self._came.acquire(timeout=30)

    def close(self) -> None:
        self.closed = True


def watch_scripted(source: Scripted, arrivals: list[int | None], **options: Any) -> tuple[Watched, list[str]]:
    """A slow model: during its n-th answer arrivals[n] frames come, one a second; at None, Ctrl-C is pressed."""
    shown, left = [], iter(arrivals)

    def answer(image: Image.Image) -> str:
        count = next(left)
        if count is None:
            raise KeyboardInterrupt
        source.arrive(count)
        return "yes"

    def show(frame: Frame, text: str, latency: float) -> None:
        shown.append(frame.name)

    return watch(source, answer, show, clock=source.clock, **options), shown


def no_thread_is_left() -> bool:
    return not any(thread.name == "frames" for thread in threading.enumerate())


# -- dropped, not queued ----------------------------------------------------------------------------------------------


def test_a_slow_model_answers_the_newest_frame_and_the_others_are_counted() -> None:
    source = Scripted(8)
    watched, shown = watch_scripted(source, [3, 1, 3, 0])
    assert shown == ["0", "3", "4", "7"]  # 1, 2, 5 and 6 came while the model was busy
    assert (watched.seen, len(watched.latencies), watched.dropped) == (8, 4, 4)
    assert watched.latencies == [3, 1, 3, 0]
    assert source.closed and no_thread_is_left()


def test_it_ends_after_count_answers() -> None:
    source = Scripted(100)
    watched, shown = watch_scripted(source, [2, 2], count=2)
    assert shown == ["0", "2"] and watched.seen == 5 and watched.dropped == 3
    assert source.closed and no_thread_is_left()


def test_ctrl_c_ends_with_what_was_counted_and_leaves_no_thread() -> None:
    source = Scripted(100)
    watched, shown = watch_scripted(source, [2, 1, None])
    assert shown == ["0", "2"]
    assert (watched.seen, watched.latencies, watched.dropped) == (4, [2, 1], 2)  # one of them was being answered
    assert source.closed and no_thread_is_left()


def test_an_error_of_the_source_or_of_the_model_is_told_and_the_source_closed() -> None:
    source = Scripted(1, OSError("The camera is gone."))
    with pytest.raises(OSError, match="The camera is gone"):
        watch(source, lambda image: "yes", lambda *_: None)
    assert source.closed and no_thread_is_left()

    def broken(image: Image.Image) -> str:
        raise ValueError("The prompt is too long.")

    source = Scripted(5)
    with pytest.raises(ValueError, match="too long"):
        watch(source, broken, lambda *_: None)
    assert source.closed and no_thread_is_left()


# -- percentiles ------------------------------------------------------------------------------------------------------


def test_percentiles_by_the_nearest_rank() -> None:
    assert latency_percentiles([15, 20, 35, 40, 50], (5, 30, 40, 50, 100)) == [15, 20, 20, 35, 50]
    assert latency_percentiles(range(100, 0, -1), (7, 50, 95, 99)) == [7, 50, 95, 99]
    assert latency_percentiles([3.0]) == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="no values"):
        latency_percentiles([])
    for wrong in (0, 101):
        with pytest.raises(ValueError, match="percentile lies above 0"):
            latency_percentiles([1.0], (50, wrong))


def test_the_table_names_what_was_no_picture_and_does_without_answers() -> None:
    lines = table(Watched(12, [0.5, 0.1], {"a.txt": "a.txt is not a picture."}), 2.5e8)
    rows = {line[:13].strip(): line[13:].strip() for line in lines}
    assert rows["frames seen"] == "12" and rows["answered"] == "2" and rows["dropped"] == "10"
    assert rows["latency p50"] == "0.10 s" and rows["latency p95"] == rows["latency max"] == "0.50 s"
    assert rows["peak memory"] == "250 MB" and lines[-1] == "a.txt is not a picture."
    assert not any("latency" in line for line in table(Watched(0, [], {}), float("nan")))


# -- a folder ---------------------------------------------------------------------------------------------------------


def put(folder: Path, name: str, changed: int, image: Image.Image = RED) -> Path:
    image.save(folder / name)
    os.utime(folder / name, (changed, changed))
    return folder / name


def test_a_folder_once_is_shown_in_the_order_of_change_and_names_what_is_no_picture(tmp_path: Path) -> None:
    put(tmp_path, "b.png", 1)
    put(tmp_path, "a.png", 2, GREEN)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    clock, folder = Clock(), Folder(tmp_path, 2.0, once=True)
    found = list(folder.frames(clock.pause))
    assert [frame.name for frame in found] == ["b.png", "a.png"]
    assert found[1].image.getpixel((0, 0)) == GREEN.getpixel((0, 0))
    assert set(folder.no_images) == {"broken.jpg", "notes.txt"}
    assert clock.now >= 2.0  # between two pictures


def test_each_look_at_a_folder_shows_the_newest_and_counts_the_others(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path, f"{i}.png", i)
    looks = Folder(tmp_path, 1.0).frames(Clock(stop_after=5).pause)
    first = next(looks)
    assert (first.name, first.passed_over) == ("3.png", 3)
    put(tmp_path, "late.png", 10)
    put(tmp_path, "1.png", 9, GREEN)  # overwritten, as cameras do
    second = next(looks)
    assert (second.name, second.passed_over) == ("late.png", 1)
    assert list(looks) == []


def test_a_half_written_file_is_tried_again_and_one_that_stays_so_is_named(tmp_path: Path) -> None:
    whole = put(tmp_path, "whole.png", 1).read_bytes()
    growing, cut = tmp_path / "growing.png", tmp_path / "cut.png"
    growing.write_bytes(whole[:40])
    cut.write_bytes(whole[:40])
    folder, steps = Folder(tmp_path, 1.0), []

    def pause(seconds: float) -> bool:
        steps.append(dict(folder.no_images))
        if len(steps) == 1:
            growing.write_bytes(whole)
        return len(steps) == 4

    assert [frame.name for frame in folder.frames(pause)] == ["whole.png", "growing.png"]
    assert steps[0] == {} and set(steps[-1]) == {"cut.png"}


# -- a video ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds at 10 frames a second: one of red, one of green."""
    pytest.importorskip("cv2", reason='videos need OpenCV: pip install "nanovlm[watch]"')
    cv2 = frames._opencv()
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no Motion JPEG")
    for i in range(20):
        writer.write(np.full((48, 64, 3), (0, 0, 200) if i < 10 else (0, 200, 0), np.uint8))  # blue, green, red
    writer.release()
    return path


def test_a_video_plays_in_its_own_time_and_in_the_right_colours(video: Path) -> None:
    clock = Clock()
    source = Video(video, 0.5, clock)
    came = [(clock.now, frame.name, np.asarray(frame.image)[24, 32].argmax()) for frame in source.frames(clock.pause)]
    source.close()
    assert [name for _, name, _ in came] == [f"clip.avi {second:.2f} s" for second in (0, 0.5, 1, 1.5)]
    assert [round(now, 6) for now, _, _ in came] == [0, 0.5, 1, 1.5]
    assert [colour for _, _, colour in came] == [0, 0, 1, 1]


def test_frames_of_a_video_are_dropped_while_the_model_is_busy(video: Path) -> None:
    source = Video(video, 0.1, Clock())
    gate, ended, play = threading.Event(), threading.Event(), source.frames

    def played(pause: Pause) -> Iterator[Frame]:
        for i, frame in enumerate(play(lambda seconds: False)):
            if i == 1:
                assert gate.wait(30)  # the first frame is taken alone
            yield frame
        ended.set()

    source.frames = played

    def answer(image: Image.Image) -> str:
        gate.set()
        assert ended.wait(30)  # the rest of the video comes during the first answer
        return "yes"

    watched = watch(source, answer, lambda *_: None)
    assert (watched.seen, len(watched.latencies), watched.dropped) == (20, 2, 18)
    assert not source.capture.isOpened() and no_thread_is_left()


def test_what_is_no_video_gets_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason='videos need OpenCV: pip install "nanovlm[watch]"')
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    assert main(["watch", "--source", str(tmp_path / "clip.mp4")]) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"nanovlm: {tmp_path / 'clip.mp4'} is not a video that OpenCV can read."
    ]
    with pytest.raises(ValueError, match="is a picture, not a video"):
        Video(put(tmp_path, "a.png", 1), 1.0)


# -- a camera ---------------------------------------------------------------------------------------------------------


class Capture:
    """OpenCV's capture of a camera that gives 10 frames a second and is unplugged after `frames` of them."""

    def __init__(self, clock: Clock, frames: int) -> None:
        self.clock, self.left, self.open = clock, frames, frames > 0

    def isOpened(self) -> bool:
        return self.open

    def grab(self) -> bool:
        self.clock.now += 0.125
        self.left -= 1
        return self.left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((4, 4, 3), self.left, np.uint8)

    def release(self) -> None:
        self.open = False


def test_a_camera_shows_one_of_its_frames_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(), []
    capture = Capture(clock, 20)
    monkeypatch.setattr(frames, "_capture", lambda number: capture)
    with pytest.raises(OSError, match="still plugged in"):
        for frame in Camera(0, 1.0, clock).frames(clock.pause):
            seen.append((clock.now, frame.image.getpixel((0, 0))[0]))
    assert seen == [(0.125, 19), (1.125, 11), (2.125, 3)]  # the newest each time: all the others were fetched


def test_no_camera_gets_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(frames, "_capture", lambda number: Capture(Clock(), 0))
    assert main(["watch", "--source", "camera:3"]) == 2
    assert capsys.readouterr().err.startswith("nanovlm: There is no camera 3, or another program holds it")


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["watch", "--source", "camera"]) == 2
    assert capsys.readouterr().err.rstrip().endswith('which is not installed: pip install "nanovlm[watch]"')


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_answers_about_two_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, name in enumerate(("shapes.png", "glyphs.png")):
        put(tmp_path, name, i, Image.open(asset_path(f"images/{name}")))
    before = sorted(tmp_path.iterdir())
    words = ["--prompt", "How many shapes are there?", "--max-new-tokens", "4"]
    assert main(["watch", "--source", str(tmp_path), "--once", "--every", "10ms", *words]) == 0
    out = capsys.readouterr().out
    rows = {line[:13].strip(): line[13:].strip() for line in out.splitlines()}
    assert rows["frames seen"] == "2" and int(rows["answered"]) + int(rows["dropped"]) == 2
    assert "glyphs.png" in out  # the newest is never dropped
    assert sorted(tmp_path.iterdir()) == before and no_thread_is_left()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--source", "no-such-thing"], "no file or folder no-such-thing"),
        (["--source", ".", "--every", "soon"], "a time such as 1s"),
        (["--source", ".", "--every", "0"], "must be above 0"),
        (["--source", ".", "--every", "nan"], "must be above 0"),
        (["--source", ".", "--count", "0"], "--count must be at least 1"),
        (["--source", "camera", "--once"], "--once is for a folder"),
    ],
)
def test_wrong_options_get_a_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["watch", *words]) == 2
    except SystemExit as end:  # what the options see by themselves
        assert end.code == 2
    assert sentence in capsys.readouterr().err


def test_times() -> None:
    assert [read_seconds(text) for text in ("1s", "0.5", "250ms", " 2 s")] == [1.0, 0.5, 0.25, 2.0]


def test_a_source_by_its_name(tmp_path: Path) -> None:
    assert isinstance(open_source(str(tmp_path), 1.0, once=True), Folder)
