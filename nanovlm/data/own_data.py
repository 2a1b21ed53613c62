"""Your own pictures and texts, in three formats that people have, as samples in the_cauldron's schema.

- A folder of pictures with `metadata.jsonl` (`datasets` calls that an imagefolder), a row each: `file_name`, or
  `file_names` for several, and `question` and `answer`, or `text` (a caption), or turns as below.
- LLaVA's JSON: a list of rows with `image` (a path, a list, or none) and `conversations` of {"from": "human" | "gpt",
  "value": text}, where "<image>" marks the picture.
- Chat: a JSON list or JSON lines of rows with `messages` of {"role", "content"}; the content is a text, or parts, as
  {"type": "text", "text": …} and {"type": "image", "image": path}; pictures may also stand in the row, under `images`.

Paths are relative to the file's own folder. A row that cannot be used is left out, with a sentence that names it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

METADATA = "metadata.jsonl"
CAPTION_QUESTION = "Describe the picture."  # what a caption answers
MOST_SHOWN = 3  # sentences about wrong rows; the rest are counted
Sample = dict[str, Any]
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def is_own_data(path: Path) -> bool:
    return path.suffix in (".json", ".jsonl") or (path / METADATA).exists()


def read_own_data(path: Path) -> list[Sample]:
    """The usable rows of a folder with metadata.jsonl, or of a .json or .jsonl file.

    Warns, with counts, of rows that are left out. Raises: FileNotFoundError or ValueError where nothing can be used.
    """
    file = path / METADATA if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    samples, wrong = [], []
    for name, row in _rows(file):
        try:
            if isinstance(row, ValueError):
                raise row
            samples.append(_sample(row, file.parent))
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        shown = "; ".join(wrong[:MOST_SHOWN]) + (f"; and {len(wrong) - MOST_SHOWN} more" * (len(wrong) > MOST_SHOWN))
        counts = f"{len(wrong)} of {len(wrong) + len(samples)} rows of {file} cannot be used"
        if not samples:
            raise ValueError(f"{counts}: {shown}.")
        warnings.warn(f"{counts} and are left out: {shown}.", stacklevel=2)
    if not samples:
        raise ValueError(f"{file} holds no rows.")
    return samples


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(what to call it, the row or the ValueError that it is)"""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error.reason} at byte {error.start}.") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON: {error}.") from error
        yield from ((f"row {number}", row) for number, row in enumerate(rows))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                row = ValueError(f"it is not valid JSON ({error})")
            yield f"line {number}", row


def _sample(row: Any, folder: Path) -> Sample:
    """Raises: ValueError with what is wrong with the row."""
    if not isinstance(row, Mapping):
        raise ValueError(f"it is a {type(row).__name__}, not an object")
    images = _listed(row, "image", "images", "file_name", "file_names")
    if "conversations" in row:
        texts = _turns(row["conversations"], "from", "value", images)
    elif "messages" in row:
        texts = _turns(row["messages"], "role", "content", images)
    elif "question" in row or "answer" in row:
        texts = [{"user": row.get("question"), "assistant": row.get("answer")}]
    elif "text" in row:
        texts = [{"user": CAPTION_QUESTION, "assistant": row["text"]}]
    else:
        raise ValueError("it has none of conversations, messages, question and answer, or text")
    for number, turn in enumerate(texts):
        for name, words in (("user", "question"), ("assistant", "answer")):
            if not isinstance(turn[name], str) or not turn[name].strip():
                raise ValueError(f"turn {number} has no {words}")
    return {"images": [_image(name, folder) for name in images], "texts": texts}


def _listed(row: Mapping[str, Any], *names: str) -> list[str]:
    found: list[str] = []
    for name in names:
        value = row.get(name)
        found += [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    return found


def _image(name: Any, folder: Path) -> str:
    if isinstance(name, Mapping):  # {"path": …} or {"url": …}
        name = name.get("path") or name.get("url")
    if not isinstance(name, str) or not name:
        raise ValueError(f"its picture is {name!r}, not a path")
    if "://" in name or name.startswith("data:"):
        raise ValueError(f"its picture {name[:60]} is a link: download it and give a path")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"there is no picture {path}")
    return str(path)


def _turns(messages: Any, role_key: str, text_key: str, images: list[str]) -> list[dict[str, str]]:
    """Questions and answers in turn. Pictures within the messages are added to `images`; a system text leads the
    first question."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("its conversation is empty")
    system, spoken = "", []
    inside = 0
    for number, message in enumerate(messages):
        role = ROLES.get(message.get(role_key)) if isinstance(message, Mapping) else None
        if role is None:
            raise ValueError(f"message {number} has no {role_key} that is known ({', '.join(ROLES)})")
        text, found = _content(message.get(text_key), number)
        inside += len(found)
        images += found
        if role == "system":
            system += text
        else:
            spoken.append((role, text))
    if inside and len(images) > inside:
        raise ValueError("its pictures stand both in the row and in its messages")
    if len(spoken) % 2 or any(role != ("user", "assistant")[place % 2] for place, (role, _) in enumerate(spoken)):
        raise ValueError("its questions and answers do not alternate")
    turns = [{"user": spoken[i][1], "assistant": spoken[i + 1][1]} for i in range(0, len(spoken), 2)]
    if turns and system:
        turns[0]["user"] = f"{system}\n{turns[0]['user']}"
    return turns


def _content(content: Any, number: int) -> tuple[str, list[Any]]:
    """A message's text without picture marks, and the pictures in it."""
    if isinstance(content, str):
        return content.replace("<image>", "").strip(), []
    if not isinstance(content, Sequence):
        raise ValueError(f"message {number} has no text")
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(str(part.get("text", "")))
        elif kind in ("image", "image_url"):
            image = part.get("image") or part.get("path") or part.get("image_url") or part.get("url")
            if image is not None:  # else a mark: the picture stands in the row
                images.append(image)
        else:
            raise ValueError(f"message {number} has a part that is neither text nor image: {kind!r}")
    return "\n".join(texts).replace("<image>", "").strip(), images
