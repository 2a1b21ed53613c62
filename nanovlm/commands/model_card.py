"""A finished run -> a model directory that says what it is.

`python -m nanovlm.commands.model_card runs/NAME --out assets/pocket`. The card is written from the run's own log and
scores and from nothing else, so that it can be made again and compared.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from nanovlm.commands.models import find_model
from nanovlm.config import TrainConfig, presets
from nanovlm.data.thimble import SUBSETS, Thimble
from nanovlm.evaluation.scores import percentage

LOG, RESULTS, CARD = "train_log.jsonl", "results.json", "README.md"
EARLIER_LOG = "train_log_{}.jsonl"  # of the runs that led to the last one; the first is 1
ROWS = 8  # of a run's evaluations that the card shows
NOT_OF_THE_RECIPE = ("run_name", "output_dir", "resume", "wandb")


def command(recipe: Mapping[str, Any], model: str | None = None, preset: str = "pocket") -> str:
    """The command line that trains `recipe`, starting from `model`: the preset, and what differs from it."""
    plain = asdict(presets()[preset].train)
    words = ["nanovlm train --preset", preset, *(["--model", model] if model else [])]
    for name, value in asdict(TrainConfig(**recipe)).items():
        if value != plain[name] and name not in NOT_OF_THE_RECIPE:
            shown = shlex.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def examples(captions: bool) -> list[str]:
    """Markdown: what a subset's kinds of questions look like. `captions`: and its captions, asked for at once."""
    lines = ["| subset | kind | question | answer |", "|---|---|---|---|"]
    for subset in SUBSETS:
        for turn in Thimble(subset, "test", 1)[0]["texts"]:
            kind = turn["source"].rsplit("/", 1)[-1]
            if kind != "caption" or captions:
                lines.append(f"| {subset} | {kind} | {turn['user']} | {turn['assistant']} |")
    return lines


def score_table(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: a row per subset, and one per kind of question."""
    lines = ["| subset | kind | right | 95 % interval | blind |", "|---|---|---|---|---|"]
    for subset, result in scores.items():
        blind = f"{result['blind_accuracy']:.1%}" if result["blind"] else ""
        lines.append(f"| **{subset}** | **mean** | **{percentage(result['accuracy'])}** | | {blind} |")
        for kind, row in result["kinds"].items():
            low, high = row["interval"]
            blind = f"{result['blind'][kind]['accuracy']:.1%}" if kind in result["blind"] else ""
            lines.append(f"| {subset} | {kind} | {percentage(row['accuracy'])} | {low:.1%} to {high:.1%} | {blind} |")
    return lines


def curve(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: the evaluations of the run, of a long one every second or fourth or so, the last among them."""
    lines = ["| step | validation loss | short answers right |", "|---|---|---|"]
    evaluations = [row for row in log if "val_loss" in row]
    every = -(-len(evaluations) // ROWS) or 1
    for row in evaluations[::-1][::every][::-1]:
        accuracy = f"{row['accuracy']:.1%}" if "accuracy" in row else ""
        lines.append(f"| {row['step']:,} | {row['val_loss']:.4f} | {accuracy} |")
    return lines


def write_card(
    results: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    earlier_logs: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> str:
    """The card's text, from the scores (results.json) and the log (train_log.jsonl) of one run, and from the logs of
    the runs that led to it, the first first."""
    recipe = results["recipe"]
    test = results["test"]
    mean = sum(result["accuracy"] for result in test.values()) / len(test)
    names = [name for name in SUBSETS if name in recipe["dataset_names"]]
    untrained = [name for name in SUBSETS if name not in names]
    left_out = f"; it was never shown the other subset, {untrained[0]}" if untrained else ""
    describes = ", and describes them" if "captions" in results else ""
    parts = [
        "# The pocket model",
        f"A vision-language model of {results['parameters'] / 1e6:.2f} M parameters that answers questions about "
        f"64-pixel pictures of the Thimble ({', '.join(names)}){describes}. It is the model of chapter 00 and runs "
        f"anywhere, without a network. It knows nothing else than those pictures{left_out}.",
        "## What to ask it",
        "The table gives one question of each kind with its right answer, from the first test picture of its subset:",
        "\n".join(examples(captions="captions" in results)),
        "## How it was trained",
        *training(results, [*earlier_logs, log]),
        "The machines did other work at the same time, so the minutes are an upper bound. The checkpoints were chosen "
        "by the validation loss alone. Another machine or another version of torch gives slightly different weights. A "
        "short answer has at most 8 tokens, and the column counts the right ones to the questions about "
        f"{recipe['accuracy_images']} validation pictures. `captions` are descriptions without questions before them, "
        'and `american` are shapes whose questions are spelled "color".',
        "## What it gets right",
        "Each question was asked on its own, with greedy decoding, and an answer counts as right if it matches "
        f'exactly. The mean over the subsets is {percentage(mean)}. The column "blind" gives the accuracy for the '
        "same questions about another sample's picture.",
        "These are the test pictures, which share no scene with the training pictures:",
        "\n".join(score_table(test)),
        "The unseen pictures contain something that no training picture shows: a pair of colour and shape, two "
        "neighbouring colours, or two neighbouring characters:",
        "\n".join(score_table(results["unseen"])),
    ]
    if "multiple choice" in results:
        parts += [
            "Multiple choice has four options, in MMStar's schema, and an answer has to be the letter and nothing "
            "else. Guessing reaches 25 %:",
            "\n".join(score_table({"choice": results["multiple choice"]})),
        ]
    if "captions" in results:
        parts += [
            "Descriptions of test pictures, asked for without questions before them, have to match to the letter:",
            "\n".join(score_table({"captions": results["captions"]})),
        ]
    if "American spelling" in results:
        parts += [
            'Questions about a colour in pictures of shapes, spelled "color":',
            "\n".join(score_table({"American spelling": results["American spelling"]})),
        ]
    parts += [
        "This card is made from `results.json` and the logs (`train_log*.jsonl`) by "
        "`python -m nanovlm.commands.model_card`."
    ]
    return "\n\n".join(parts) + "\n"


def earlier_runs(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs that led to this one, as far as they are known, the first first."""
    before = results.get("started_from", {})
    return [*earlier_runs(before), before] if "recipe" in before else []


def training(results: Mapping[str, Any], logs: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Markdown: each run from the first weights to the last, with its command and its curve."""
    runs = [*earlier_runs(results), results]
    parts = []
    for number, (run, log) in enumerate(zip_longest(runs, logs, fillvalue=())):
        recipe, model = run["recipe"], run.get("started_from", {}).get("model")
        first = f"From the weights of {model}" if model else "From random weights"
        start = "The next run starts from its best weights" if number else first
        # What goes on from a run finds it by its name; a released model has lost it.
        path = Path(runs[number + 1]["started_from"]["model"]) if run is not results else Path()
        name = f" --run-name {path.parent.name}" if path.name == "best" else ""
        place = f" on {run['machine']}" if "machine" in run else ""
        samples = run["step"] * recipe["batch_size"] * recipe["gradient_accumulation_steps"]
        parts += [
            f"{start}, with seed {recipe['seed']}:",
            f"```\n{command(recipe, model)}{name}\n```",
            f"{run['step']:,} steps, {samples:,} pictures, {run['seconds'] / 60:.0f} minutes{place}.",
            *trained_alone(recipe),
            "\n".join(curve(log)),
        ]
    return parts


def trained_alone(recipe: Mapping[str, Any]) -> list[str]:
    """Markdown: what a run says that trained nothing but the embeddings of some tokens."""
    tokens = [f"`{token}`" for token in recipe.get("trainable_tokens", ())]
    if not tokens:
        return []
    return [f"Only the embedding of the token {', '.join(tokens)} was trained. All other weights are as they were."]


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
    earlier = []
    for number, path in enumerate(logs_before(results), start=1):
        shutil.copy(path, out / EARLIER_LOG.format(number))
        earlier.append(read_log(path))
    (out / CARD).write_text(write_card(results, read_log(out / LOG), earlier), encoding="utf-8")


def logs_before(results: Mapping[str, Any]) -> list[Path]:
    """The logs of the runs that led to this one, the first first. Paths in `results` start where its command did."""
    before = results.get("started_from", {})
    if "recipe" not in before:
        return []
    model = Path(find_model(before["model"]))
    if model.name == "best":
        return [*logs_before(before), model.parent / "metrics.jsonl"]
    earlier = [model / EARLIER_LOG.format(number + 1) for number in range(len(earlier_runs(before)))]
    return [*earlier, model / LOG]


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
