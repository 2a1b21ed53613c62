"""`nanovlm train`: a preset, changed where you say so; then the proof that the model looks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from nanovlm.commands.options import parse
from nanovlm.config import Preset, TrainConfig, presets

if TYPE_CHECKING:
    from pathlib import Path

    from nanovlm.training.loop import Run

TEST_IMAGES = 500  # per subset and split


@dataclass
class TrainOptions:
    """Train a model.

    The preset pocket trains from random weights on the Thimble, in minutes on a laptop and without a network. colab and
    h100 join SigLIP and SmolLM2 and train them on the_cauldron, which comes from the Hugging Face Hub. 460m does so
    with larger backbones and tiles, on FineVision. The defaults below are those of the preset that you name. With
    --model, the training continues from a trained model instead, with this recipe and a new schedule.
    """

    recipe: TrainConfig
    preset: Literal["pocket", "colab", "h100", "460m"] = "pocket"
    model: str | None = None  # a model directory or a Hub id to start from; None: what the preset starts from
    vision_revision: str | None = None  # of the preset's encoder on the Hub: a commit, tag or branch
    language_revision: str | None = None  # of its decoder. --revision is that of the data
    estimate: bool = False  # say what this run will need, and stop
    machine: str = "this CPU"  # of --estimate: as in `nanovlm plan --help`


def main(arguments: Sequence[str]) -> int:
    options = parse(TrainOptions, "train", arguments, default=default_options(arguments))
    if options.estimate:
        return estimate(options)
    import torch

    from nanovlm.commands.models import find_model
    from nanovlm.models.vision_language_model import VisionLanguageModel
    from nanovlm.training.loop import train
    from nanovlm.weights.from_preset import build_model

    torch.manual_seed(options.recipe.seed)  # the weights to start from are the seed's, too
    if options.model is None:
        model = build_model(pinned(options))
    else:
        model = VisionLanguageModel.from_pretrained(find_model(options.model))
    run = train(options.recipe, model)
    if run.interrupted:
        return 130
    if int(os.environ.get("RANK", "0")) > 0:  # of torchrun's processes the first one goes on
        return 0
    print(f"trained    {run.step:,} steps in {run.seconds:,.0f} s, best val_loss {run.best_val_loss:.4f}")
    best = run.directory / "best"
    print(f"model      {best}")
    if options.recipe.dataset_path == "thimble":
        print(f"now        it is asked about new pictures. Stopped here? nanovlm evaluate --model {best}")
        examine(run, options)
    question = "How many shapes are there?" if options.recipe.dataset_path == "thimble" else "What is this?"
    print(f'\nask it     nanovlm generate --model {best} --prompt "{question}"')
    return 0


def pinned(options: TrainOptions) -> Preset:
    """The preset, with its backbones as they were at the revisions that are asked for."""
    preset = presets()[options.preset]
    for part, revision in (("vision", options.vision_revision), ("language", options.language_revision)):
        name = getattr(preset, f"{part}_backbone")
        if revision is not None and name is None:
            raise ValueError(f"{part}_revision has no meaning for {options.preset}, which starts from random weights.")
        if revision is not None:
            setattr(preset, f"{part}_backbone", f"{name}@{revision}")
    return preset


def estimate(options: TrainOptions) -> int:
    from pathlib import Path

    from nanovlm.commands.models import find_model
    from nanovlm.config import VLMConfig
    from nanovlm.files import read_json
    from nanovlm.training.largest_batch import MOST
    from nanovlm.training.plan import find_machine, plan

    config = presets()[options.preset].vlm
    if options.model is not None:
        config = VLMConfig.from_dict(read_json(Path(find_model(options.model)) / "config.json"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    recipe, machine = options.recipe, find_machine(options.machine)
    if recipe.batch_size == "auto":
        room = plan(config, replace(recipe, batch_size=1), machine, world).largest_batch
        recipe = replace(recipe, batch_size=max(1, min(room, MOST)))
    print(plan(config, recipe, machine, world))
    return 0


def default_options(arguments: Sequence[str]) -> TrainOptions:
    """The preset has to be known before the other options: their defaults are its recipe."""
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset", default="pocket")
    try:
        name = parser.parse_known_args(list(arguments))[0].preset
    except argparse.ArgumentError:  # no value: tyro says so
        name = "pocket"
    if name not in presets():  # nor which ones there are
        name = "pocket"
    return TrainOptions(presets()[name].train, name)


def examine(run: Run, options: TrainOptions) -> None:
    """Score the best model on pictures it never saw, show it, and write it into the run's directory."""
    from pathlib import Path

    from nanovlm.commands import score_report
    from nanovlm.commands.models import find_model, load_model
    from nanovlm.data.thimble import SUBSETS
    from nanovlm.device import processor
    from nanovlm.files import write_json

    names = options.recipe.dataset_names
    subsets = [name for name in SUBSETS if name in names or names == ("all",)]
    model = load_model(str(run.directory / "best"))
    test, unseen = (score_report.score_thimble(model, subsets, split, TEST_IMAGES) for split in ("test", "unseen"))
    extra = score_report.score_extras(model, names, "test", TEST_IMAGES)
    print("\n" + "\n\n".join(score_report.tables({**test, **extra}, "test") + score_report.tables(unseen, "unseen")))
    print("\nblind: the same questions about another sample's picture. unseen: what no training picture shows.")
    results = {
        split: {subset: result.to_dict() for subset, result in scores.items()}
        for split, scores in (("test", test), ("unseen", unseen))
    }
    results |= {title: result.to_dict() for title, result in extra.items()}
    about = {
        "step": run.step,
        "seconds": run.seconds,
        "best_val_loss": run.best_val_loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "machine": processor(),
        "recipe": asdict(options.recipe),
    }
    if options.model is not None:
        about["started_from"] = {"model": options.model, **how_it_was_trained(Path(find_model(options.model)))}
    write_json({**about, **results}, run.directory / "results.json")
    print(f"\nscores     {run.directory / 'results.json'}")
    if test:
        title = f"{', '.join(subsets)}: trained in {run.seconds / 60:.1f} minutes"
        score_report.write_sheet(run.directory / "answers.png", title, test)
        print(f"pictures   {run.directory / 'answers.png'}")


def how_it_was_trained(model: Path) -> dict[str, Any]:
    """From the scores beside a run's best model, or in the directory of a released one; {} where there are none."""
    import json

    results = (model.parent if model.name == "best" else model) / "results.json"
    if not results.is_file():
        return {}
    told = json.loads(results.read_text(encoding="utf-8"))
    return {key: told[key] for key in ("step", "seconds", "machine", "recipe", "started_from") if key in told}
