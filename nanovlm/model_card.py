"""A finished run -> a model directory that says what it is.

`python -m nanovlm.model_card runs/NAME --out assets/pocket`. The card is written from the run's own log and scores and
from nothing else, so that it can be made again and compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanovlm.commands.models import find_model
from nanovlm.config import TrainConfig, presets
from nanovlm.data.thimble import SUBSETS

LOG, FIRST_LOG, RESULTS, CARD = "train_log.jsonl", "first_train_log.jsonl", "results.json", "README.md"
NOT_OF_THE_RECIPE = ("run_name", "output_dir", "resume", "wandb")


def command(recipe: Mapping[str, Any], model: str | None = None, preset: str = "pocket") -> str:
    """The command line that trains `recipe`, starting from `model`: the preset, and what differs from it."""
    plain = asdict(presets()[preset].train)
    words = ["nanovlm train --preset", preset, *(["--model", model] if model else [])]
    for name, value in asdict(TrainConfig(**recipe)).items():
        if value != plain[name] and name not in NOT_OF_THE_RECIPE:
            shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def score_table(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: a row per subset, and one per kind of question."""
    lines = ["| subset | kind | right | 95 % interval | blind |", "|---|---|---|---|---|"]
    for subset, result in scores.items():
        blind = f"{result['blind_accuracy']:.1%}" if result["blind"] else ""
        lines.append(f"| **{subset}** | **mean** | **{result['accuracy']:.1%}** | | {blind} |")
        for kind, row in result["kinds"].items():
            low, high = row["interval"]
            blind = f"{result['blind'][kind]['accuracy']:.1%}" if kind in result["blind"] else ""
            lines.append(f"| {subset} | {kind} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | {blind} |")
    return lines


def curve(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: the evaluations of the run."""
    lines = ["| step | validation loss | short answers right |", "|---|---|---|"]
    for row in log:
        if "val_loss" in row:
            accuracy = f"{row['accuracy']:.1%}" if "accuracy" in row else ""
            lines.append(f"| {row['step']:,} | {row['val_loss']:.4f} | {accuracy} |")
    return lines


def write_card(
    results: Mapping[str, Any], log: Sequence[Mapping[str, Any]], first_log: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The card's text, from the scores (results.json) and the log (train_log.jsonl) of one run, and from the log of the
    run that it started from."""
    recipe = results["recipe"]
    test = results["test"]
    mean = sum(result["accuracy"] for result in test.values()) / len(test)
    samples = results["step"] * recipe["batch_size"] * recipe["gradient_accumulation_steps"]
    names = tuple(dict.fromkeys(recipe["dataset_names"]))  # one that is named twice was shown twice as often
    untrained = [name for name in SUBSETS if name not in names]
    left_out = f"; it was never shown the other subset, {untrained[0]}" if untrained else ""
    parts = [
        "# The pocket model",
        f"A vision-language model of {results['parameters'] / 1e6:.2f} M parameters that answers questions about "
        f"64-pixel pictures of the Thimble ({', '.join(names)}). It is the model of chapter 00 and runs anywhere, "
        f"without a network. It knows nothing but those pictures{left_out}.",
        "## How it was trained",
        *beginning(results, first_log),
        f"```\n{command_of(results)}\n```",
        f"{results['step']:,} steps, {samples:,} pictures, {results['seconds'] / 60:.0f} minutes on "
        f"{results['machine']}. The machine did other work at the same time, so the minutes are an upper bound. The "
        "validation loss alone chose the checkpoint. Another machine or another version of torch gives slightly other "
        "weights.",
        *["\n".join(curve(log))],
        "## What it gets right",
        f"Greedy decoding, exact match, each question asked on its own. The mean over the subsets is {mean:.1%}. "
        "Blind: the same questions about another sample's picture.",
        "Test pictures, which share no scene with the training pictures:",
        "\n".join(score_table(test)),
        "Unseen: pictures with something that no training picture shows (a colour-shape pair, two neighbouring "
        "colours, two neighbouring characters):",
        "\n".join(score_table(results["unseen"])),
    ]
    if "multiple choice" in results:
        parts += [
            "Multiple choice with four options, in MMStar's schema, scored strictly (the letter and nothing else). "
            "Chance is 25 %:",
            "\n".join(score_table({"choice": results["multiple choice"]})),
        ]
    parts += ["The card is made from `train_log.jsonl` and `results.json` by `python -m nanovlm.model_card`."]
    return "\n\n".join(parts) + "\n"


def beginning(results: Mapping[str, Any], first_log: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Markdown: where the weights came from that a run started with, and the run that made them, where it is known."""
    seed = results["recipe"]["seed"]
    before = results.get("started_from")
    if before is None:
        return [f"From random weights, with seed {seed}:"]
    if "recipe" not in before:
        return [f"From the weights of {before['model']}, with seed {seed}:"]
    model = Path(before["model"])
    name = f" --run-name {model.parent.name}" if model.name == "best" else ""  # a released model has lost its run's
    return [
        *beginning(before),
        f"```\n{command_of(before)}{name}\n```",
        f"{before['step']:,} steps, {before['seconds'] / 60:.0f} minutes.",
        "\n".join(curve(first_log)),
        f"Then on from its best weights, with seed {seed}:",
    ]


def command_of(results: Mapping[str, Any]) -> str:
    return command(results["recipe"], results.get("started_from", {}).get("model"))


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def release(run: Path, out: Path) -> None:
    """Copy the best model of `run`, its log and its scores to `out`, and write the card."""
    results = json.loads((run / RESULTS).read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted((run / "best").iterdir()):
        shutil.copy(file, out / file.name)
    shutil.copy(run / "metrics.jsonl", out / LOG)
    shutil.copy(run / RESULTS, out / RESULTS)
    first_log = []
    if "recipe" in results.get("started_from", {}):  # its path is relative to where the command was given, as here
        model = Path(find_model(results["started_from"]["model"]))
        shutil.copy(model.parent / "metrics.jsonl" if model.name == "best" else model / LOG, out / FIRST_LOG)
        first_log = read_log(out / FIRST_LOG)
    (out / CARD).write_text(write_card(results, read_log(out / LOG), first_log), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Put a run's best model, its log and a model card into a directory.")
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write")
    options = parser.parse_args()
    if not (options.run / RESULTS).is_file():
        parser.error(f"{options.run} holds no {RESULTS}: it is not a finished run of `nanovlm train`.")
    release(options.run, options.out)


if __name__ == "__main__":
    main()
