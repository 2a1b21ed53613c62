"""What ONNX gives: equal answers, int8's score, megabytes and milliseconds a token, on the pocket model.

python -m nanovlm.bench.onnx_runtime --questions 200
python -m nanovlm.bench.onnx_runtime --questions 200 --out assets/runs/16_onnx.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nanovlm.assets import asset_path
from nanovlm.data.thimble import Thimble
from nanovlm.device import processor
from nanovlm.evaluation.scores import Question, exact, questions_of
from nanovlm.evaluation.statistics import paired_bootstrap
from nanovlm.inference.onnx_graphs import GRAPHS, export_onnx
from nanovlm.inference.onnx_model import OnnxModel
from nanovlm.inference.speculative import early_exit
from nanovlm.models.vision_language_model import VisionLanguageModel

SUBSETS = ("shapes", "charts", "glyphs")
MAX_NEW_TOKENS = 24
Answer = Callable[[Question], tuple[str, int]]  # the text, and how many tokens were written for it


def pick_questions(number: int, image_size: int) -> list[Question]:
    """The first `number` questions of the test split, the subsets in turn."""
    samples = [Thimble(name, "test", number, image_size=image_size) for name in SUBSETS]
    found: list[Question] = []
    for index in range(number):
        found += questions_of([samples[index % len(SUBSETS)][index]])
        if len(found) >= number:
            break
    return found[:number]


def by_torch(model: VisionLanguageModel) -> Answer:
    def answer(question: Question) -> tuple[str, int]:
        tokens: list[int] = []
        text = model.generate(
            prompt=question.text, image=question.images, max_new_tokens=MAX_NEW_TOKENS, on_tokens=tokens.append
        )
        return text, len(tokens)

    return answer


def by_onnx(model: OnnxModel) -> Answer:
    def answer(question: Question) -> tuple[str, int]:
        tokens: list[int] = []
        return model.generate(question.text, question.images, MAX_NEW_TOKENS, tokens.append), len(tokens)

    return answer


def megabytes(directory: Path) -> float:
    return sum((directory / f"{name}.onnx").stat().st_size for name in GRAPHS) / 1e6


def measure(
    contenders: dict[str, Answer], questions: Sequence[Question]
) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """Answers, and milliseconds a token (picture and prompt included), the contenders in turn on each question."""
    texts: dict[str, list[str]] = {name: [] for name in contenders}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for answer in contenders.values():
        answer(questions[0])  # the first call reserves memory
    for question in questions:
        for name, answer in contenders.items():
            began = time.perf_counter()
            text, tokens = answer(question)
            times[name].append(1000 * (time.perf_counter() - began) / tokens)
            texts[name].append(text)
    return texts, times


def same_answers(model: VisionLanguageModel, folder: str | Path, blocks: int, questions: int) -> tuple[int, int, float]:
    """Export the model with the first `blocks` blocks of its decoder, and ask it and the graphs the same questions.

    Returns: how many answers are the same text, of how many, and the graphs' megabytes. Raises: ImportError without
    onnx, onnxscript or onnxruntime.
    """
    decoder = early_exit(model.decoder, blocks) if blocks < len(model.decoder.blocks) else model.decoder
    config = replace(model.config, language=decoder.config)
    few = VisionLanguageModel(config, model.vision_encoder, model.projector, decoder)
    few.tokenizer, few.image_processor = model.tokenizer, model.image_processor
    directory = export_onnx(few.eval(), Path(folder) / "onnx")
    graphs, same = OnnxModel.from_pretrained(directory, torch.get_num_threads()), 0
    asked = pick_questions(questions, model.config.vision.image_size)
    for question in asked:
        told = few.generate(prompt=question.text, image=question.images, max_new_tokens=MAX_NEW_TOKENS)
        same += graphs.generate(question.text, question.images, MAX_NEW_TOKENS) == told
    return same, len(asked), megabytes(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--out", type=Path, help="JSON file for the same figures")
    options = parser.parse_args()
    if options.questions < 1:
        parser.error("--questions is at least 1.")
    threads = torch.get_num_threads()
    model = VisionLanguageModel.from_pretrained(asset_path("pocket"), torch.float32).eval()
    questions = pick_questions(options.questions, model.config.vision.image_size)
    with tempfile.TemporaryDirectory() as folder:
        directories = {name: export_onnx(model, Path(folder) / name, name == "int8") for name in ("float32", "int8")}
        contenders = {"torch": by_torch(model)} | {
            name: by_onnx(OnnxModel.from_pretrained(directory, threads)) for name, directory in directories.items()
        }
        sizes = {name: megabytes(directory) for name, directory in directories.items()}
        texts, times = measure(contenders, questions)
    right = {
        name: torch.tensor([float(exact(text, q.answer)) for text, q in zip(texts[name], questions, strict=True)])
        for name in texts
    }
    found: dict[str, dict[str, Any]] = {}
    for name in texts:
        points = paired_bootstrap(right["torch"], right[name])
        found[name] = {
            "same": sum(a == b for a, b in zip(texts[name], texts["torch"], strict=True)) / len(questions),
            "right": round(right[name].mean().item(), 4),
            "points": [round(100 * value, 2) for value in points],
            "megabytes": round(sizes[name], 2) if name in sizes else None,
            "times_as_fast": round(
                statistics.median(a / b for a, b in zip(times["torch"], times[name], strict=True)), 2
            ),
            "ms_a_token": round(statistics.median(times[name]), 2),
        }
    print(f"{len(questions)} questions, {threads} thread(s)")
    print(f"{'':<10}{'same text':>11}{'right':>8}{'points to torch, 95 %':>26}{'MB':>7}{'torch ms / its ms':>19}")
    for name, row in found.items():
        gain, low, high = row["points"]
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
        points = f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"
        print(f"{name:<10}{row['same']:>11.1%}{row['right']:>8.1%}{points:>26}{size:>7}{row['times_as_fast']:>19.2f}")
    print("ms a token, median: " + ", ".join(f"{name} {row['ms_a_token']:.2f}" for name, row in found.items()))
    if options.out is not None:
        about = {
            "command": f"python -m nanovlm.bench.onnx_runtime --questions {len(questions)} --out {options.out}",
            "machine": f"{processor()}, {threads} thread(s)",
            "questions": len(questions),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**about, "contenders": found}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
