"""One question about many pictures: batches of equal work, answers in the pictures' order, nothing lost."""

from __future__ import annotations

import glob
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from PIL import Image
from torch import Tensor

from nanovlm.data.images import image_size
from nanovlm.device import find_device
from nanovlm.inference.generate import answer_batch
from nanovlm.inference.prompts import collate_prompts, prepare_prompt

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

WINDOW = 16  # batches that are sorted by work together: an answer waits for that many at most


def find_images(source: str | Path) -> list[Path]:
    """A folder (its files with a picture's suffix or none), a glob such as "photos/**/*.jpg" (all files that it
    matches) or one file -> paths, sorted. What a folder holds besides is counted in a warning.

    Raises: FileNotFoundError if there is none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        suffixes = {"", *Image.registered_extensions()}
        files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
        found = [file for file in files if file.suffix.lower() in suffixes]
        if found and len(found) < len(files):
            others = sorted({file.suffix for file in files} - {file.suffix for file in found})
            left_out = len(files) - len(found)
            warnings.warn(
                f"{left_out:,} of the {len(files):,} files in {path} are left out, for their names are no pictures' "
                f"({', '.join(others)}).",
                stacklevel=2,
            )
    elif path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"No picture found: {source} is no folder with pictures, no picture and no glob of them."
        )
    return sorted(found)


def for_inference(model: VisionLanguageModel, device: torch.device | None = None) -> VisionLanguageModel:
    """Put a model where it answers fastest: on a GPU in half precision (bfloat16 where it has that), else as it is."""
    device = device or find_device()
    dtype = None
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return model.eval().to(device, dtype)


def generate_batch(
    model: VisionLanguageModel,
    paths: Sequence[str | Path],
    prompt: str,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    seed: int | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Ask `prompt` about each picture. Yields one dict a path, in the order of `paths`:
    {"image": path, "answer": text}, or {"image": path, "error": sentence} for a picture that cannot be used.

    A batch holds pictures of up to `batch_size` tiles together (a picture that is not cut is one tile), alike in
    length. `options` are those of `answer_batch`; with num_generations above 1 the answer is a list.

    Raises: ValueError for a bad prompt or option, RuntimeError if the GPU's memory does not hold a batch.
    """
    if model.tokenizer is None or model.image_processor is None:
        raise ValueError("This model has no tokenizer or image processor: load it from a directory that holds them.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; it is {batch_size}.")
    prepare_prompt(model, prompt, None)  # a bad prompt is one error, not one a picture
    paths = [str(path) for path in paths]
    return _generate(model, paths, prompt, batch_size, max_new_tokens, seed, options)


def _generate(
    model: VisionLanguageModel,
    paths: Sequence[str],
    prompt: str,
    batch_size: int,
    max_new_tokens: int,
    seed: int | None,
    options: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    batches = _plan(model, paths, batch_size)
    done: dict[int, dict[str, Any]] = {}
    emitted = 0
    on_gpu = model.decoder.token_embedding.weight.device.type != "cpu"
    with ThreadPoolExecutor(min(8 if on_gpu else 2, batch_size)) as threads:  # a model on the CPU needs the cores

        def load(indices: Sequence[int]) -> list[tuple[int, Future]]:
            return [(i, threads.submit(_prepare, model, prompt, paths[i], max_new_tokens)) for i in indices]

        loading = load(next(batches, ()))
        each = options.get("num_generations", 1)
        while loading:
            loaded = {i: future.result() for i, future in loading}
            loading = load(next(batches, ()))  # while the model answers this batch
            done |= {i: {"image": paths[i], "error": error} for i, error in loaded.items() if isinstance(error, str)}
            usable = {i: prompt_ids for i, prompt_ids in loaded.items() if i not in done}
            # Each picture draws with its own seed, so that the batch size does not decide what is drawn.
            draw = None if seed is None else [seed + i * each for i in usable]
            answers = _answer(model, [*usable.values()], max_new_tokens=max_new_tokens, seed=draw, **options)
            done |= {i: {"image": paths[i], "answer": a} for i, a in zip(usable, answers, strict=True)}
            while emitted in done:
                yield done.pop(emitted)
                emitted += 1


def _plan(model: VisionLanguageModel, paths: Sequence[str], batch_size: int) -> Iterator[list[int]]:
    """Indices of each batch: within a window the pictures with the fewest tiles come first."""
    for start in range(0, len(paths), WINDOW * batch_size):
        window = range(start, min(start + WINDOW * batch_size, len(paths)))
        tiles = {i: _num_tiles(model, paths[i]) for i in window}
        batch: list[int] = []
        for i in sorted(window, key=tiles.__getitem__):
            if batch and sum(tiles[j] for j in batch) + tiles[i] > batch_size:
                yield batch
                batch = []
            batch.append(i)
        yield batch


def _num_tiles(model: VisionLanguageModel, path: str) -> int:
    """From the file's header alone; a file that cannot be read is found out when it is loaded."""
    if model.config.tiling is None:
        return 1
    try:
        return model.image_processor.num_tiles(image_size(path))
    except (OSError, ValueError):
        return 1


def _prepare(
    model: VisionLanguageModel, prompt: str, path: str, max_new_tokens: int
) -> tuple[list[int], Tensor | None] | str:
    """The prompt with this picture, or the sentence that says why it cannot be used."""
    try:
        ids, pixels = prepare_prompt(model, prompt, path)
    except (OSError, ValueError, MemoryError) as error:
        return str(error) or type(error).__name__
    num_prefix = model.config.num_image_tokens if model.config.image_token_id is None else 0
    needed, limit = len(ids) + num_prefix + max_new_tokens, model.config.language.max_positions
    if needed > limit:
        return f"{path} needs {needed} positions with its answer; the model has {limit}."
    return ids, pixels


def _answer(
    model: VisionLanguageModel, prompts: Sequence[tuple[list[int], Tensor | None]], **options: Any
) -> list[Any]:
    if not prompts:
        return []
    try:
        texts = answer_batch(model, collate_prompts(model, prompts), **options)
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"{len(prompts)} pictures at once do not fit into the GPU's memory: lower the batch size."
        ) from error
    each = len(texts) // len(prompts)
    return texts if each == 1 else [texts[i : i + each] for i in range(0, len(texts), each)]


@dataclass
class Counts:
    answered: int = 0
    skipped: int = 0


def write_answers(rows: Iterable[dict[str, Any]], out: TextIO, report: Callable[[str], Any]) -> Counts:
    """Write each row as one line of JSON, as soon as it is there; `report` gets a sentence for each skipped picture."""
    counts = Counts()
    for row in rows:
        line = json.dumps(row, ensure_ascii=False)
        try:
            line.encode(out.encoding or "utf-8")
        except UnicodeEncodeError:  # a file's name need not be text, and a terminal need not be UTF-8
            line = json.dumps(row)
        out.write(line + "\n")
        out.flush()
        if "error" in row:
            counts.skipped += 1
            name, error = row["image"], row["error"]
            report(f"skipped {error}" if name in error else f"skipped {name}: {error}")
        else:
            counts.answered += 1
    return counts


def measure_speed_up(
    model: VisionLanguageModel, paths: Sequence[str | Path], prompt: str, batch_size: int = 32, **options: Any
) -> dict[str, float]:
    """Seconds for all pictures one by one, in batches, and how many times faster the batches are."""
    seconds = {}
    for name, size in (("one_by_one", 1), ("batched", batch_size)):
        list(generate_batch(model, paths[:size], prompt, batch_size=size, **options))  # warm up
        start = time.perf_counter()
        list(generate_batch(model, paths, prompt, batch_size=size, **options))
        seconds[name] = time.perf_counter() - start
    return {**seconds, "speed_up": seconds["one_by_one"] / seconds["batched"]}
