"""Your VLM: what passed its check becomes a part of a model that runs the shipped weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from nanovlm.course import my_vlm
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import REGISTRY, Exercise, load_exercises, no_such_exercise
from nanovlm.course.my_vlm import Refused, refuse_others, source_file
from nanovlm.course.progress import load, progress_file

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

# In the order of their imports.
MODULES = (
    *(
        f"models.{name}"
        for name in ("vision_transformer", "modality_projector", "language_model", "vision_language_model")
    ),
    *(f"inference.{name}" for name in ("sampling", "streaming", "generate")),
)


def use(exercise_id: str, given: Any = None) -> Any:
    """The learner's version that passed its check, now or in an earlier session; else `given` where it passes; else the
    reference. A line says which one goes on, unless it is `given` itself.

    `given` is what the notebook holds under the name: in an exercise the learner's own code, in a chapter the folded
    answer. Only `check` counts as solving. The exercise must exist: ValueError names those that do.
    """
    exercise = _find(exercise_id)
    kept, reason = _kept(exercise)
    if kept is not None:
        if given is not None:
            print(f"{exercise_id}: your version goes on, which passed its check.")
        return kept.thing
    if given is not None:
        result = judge(exercise, given)
        if result.passed:
            return given
        reason = "not written yet" if result.rung == "not_written" else "this version does not pass its check yet"
    print(f"{exercise_id}: {reason}; the reference stands in.")
    my_vlm.standing_in.add(exercise_id)
    return exercise.reference


def yours(replace: Mapping[str, Any] | None = None, directory: str | Path | None = None) -> VisionLanguageModel:
    """The pocket model, built from your own parts, with the shipped weights loaded into them strictly.

    Args:
        replace: exercise id -> a version to try instead of yours, unchecked; None takes the reference.
        directory: another model directory.

    `.parts` of the model tells for each exercise whether it is "yours", "reference" or "replaced".
    """
    from nanovlm.files import load_strictly, read_json
    from nanovlm.weights.formats import recognise
    from nanovlm.weights.pretrained import attach

    replace = dict(replace or {})
    for exercise_id in replace:
        if _find(exercise_id).install is None:
            raise ValueError(f"{exercise_id} is not a part of the model; parts are: {', '.join(part_ids())}.")
    if directory is None:
        from nanovlm.assets import asset_path

        directory = asset_path("pocket")
    directory = Path(directory)
    parts: dict[str, str] = {}
    chosen: dict[str, Any] = {}
    kept: dict[str, _Kept] = {}
    missing: dict[str, list[str]] = {}  # why a part that passed cannot be used -> ids
    for exercise_id in part_ids():
        if exercise_id in replace:
            parts[exercise_id], chosen[exercise_id] = "replaced", replace[exercise_id]
            continue
        found, reason = _kept(REGISTRY[exercise_id])
        parts[exercise_id] = "reference" if found is None else "yours"
        if found is not None:
            kept[exercise_id], chosen[exercise_id] = found, found.thing
        elif reason != NOT_PASSED:
            missing.setdefault(reason, []).append(exercise_id)
    for reason, ids in missing.items():
        print(f"{', '.join(ids)}: {reason}; the reference stands in.")
    _introduce(kept, chosen)
    code = ModelCode()
    for exercise_id, learner in chosen.items():
        if learner is not None:
            REGISTRY[exercise_id].install(code, learner)  # type: ignore[misc]
    code.link()
    own = [name for name, origin in parts.items() if origin != "reference"]
    values = read_json(directory / "config.json")
    source = recognise(values, directory)
    try:
        # Not from_pretrained, which builds without memory first: your parts may compute things when they are built.
        model: VisionLanguageModel = code.vision_language_model.VisionLanguageModel(
            source.read_config(values, directory)
        )
        load_strictly(model, source.read_weights(directory, model), directory)
    except Exception as error:
        whose = f"from your parts ({', '.join(own)})" if own else "from the reference parts"
        raise ValueError(f"The model could not be built {whose}: {type(error).__name__}: {error}") from error
    attach(model, source.load_processors(model.config, directory, values))
    model.eval()
    model.parts = parts  # type: ignore[assignment]
    # What a notebook shows of it, instead of sixty lines of modules.
    type(model).__repr__ = _in_a_line  # of the private copy of the class
    kept_ids, tried = ([i for i, origin in parts.items() if origin == what] for what in ("yours", "replaced"))
    line = f"{len(kept_ids)} of {len(parts)} parts are your own{': ' + ', '.join(kept_ids) if kept_ids else ''}."
    print(line + (f" Tried this time: {', '.join(tried)}." if tried else ""))
    return model


def _in_a_line(model: Any) -> str:
    own = sum(origin == "yours" for origin in model.parts.values())
    size = sum(p.numel() for p in model.parameters())
    return f"VisionLanguageModel with {size:,} parameters; {own} of {len(model.parts)} parts are your own"


def part_ids() -> list[str]:
    """Exercises whose answer is a part of the model, in the order of the chapters."""
    parts = [e for e in load_exercises().values() if e.install is not None]
    return [e.id for e in sorted(parts, key=lambda e: e.chapter)]


class ModelCode(SimpleNamespace):
    """A private copy of the model's modules (MODULES, as attributes): parts can be replaced in it, and the package
    stays as it is."""

    def __init__(self) -> None:
        copies = _copies()
        super().__init__(**{name.rpartition(".")[2]: module for name, module in copies.items()})
        # What one module imports from another: (importer, name) -> home.
        self._links = {
            (importer, name): copies[value.__module__]
            for importer in copies.values()
            for name, value in vars(importer).items()
            if getattr(value, "__module__", None) in copies and copies[value.__module__] is not importer
        }
        self._linked: dict[tuple[ModuleType, str], Any] = {}
        self.link()
        # The package's class imports its `generate` when it is called: this one speaks with the copy's.
        self.vision_language_model.VisionLanguageModel.generate = lambda *a, **k: self.generate.generate(*a, **k)

    def link(self) -> None:
        """Let every import see what its home module holds now."""
        for (importer, name), home in self._links.items():
            if (importer, name) in self._linked and vars(importer)[name] is not self._linked[importer, name]:
                continue  # replaced on the importer's side
            self._linked[importer, name] = getattr(home, name)
            setattr(importer, name, getattr(home, name))


def _copies() -> dict[str, ModuleType]:
    """Run the modules' code again, into modules that import each other and that nobody else sees."""
    names = [f"nanovlm.{name}" for name in MODULES]
    originals = {name: import_module(name) for name in names}
    copies: dict[str, ModuleType] = {}
    try:
        for name in names:
            spec = find_spec(name)
            assert spec is not None and spec.loader is not None
            copies[name] = sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(copies[name])
    finally:
        sys.modules.update(originals)
    return copies


def _find(exercise_id: str) -> Exercise:
    exercises = load_exercises()
    if exercise_id not in exercises:
        raise ValueError(no_such_exercise(exercise_id))
    return exercises[exercise_id]


class _Kept(NamedTuple):
    """A learner's version from an earlier check."""

    thing: Any
    name: str
    space: dict[str, Any]  # its module's names, its helpers included


NOT_PASSED = "not passed yet"


def _kept(exercise: Exercise) -> tuple[_Kept | None, str]:
    """The learner's version and "", or None and why not."""
    record = load()["exercises"].get(exercise.id, {})
    if not record.get("passed"):
        return None, NOT_PASSED
    try:
        if source_file(exercise.id) is None:
            _write_old_source(exercise.id, record)
        if source_file(exercise.id) is None:
            return None, "it passed, but its code could not be kept"
        module = my_vlm.load(exercise.id)
        name = record.get("name", "")
        thing = getattr(module, name)
    except Refused as error:
        return None, str(error).rstrip(".")
    except Exception as error:
        return None, f"your kept version does not run any more ({type(error).__name__}: {error})"
    if not judge(exercise, thing).passed:
        return None, "your kept version does not pass its check any more"
    return _Kept(thing, name, vars(module)), ""


def _write_old_source(exercise_id: str, record: Mapping[str, Any]) -> None:
    """Earlier versions kept the code in the progress file: make it a file, as it is kept now."""
    if "source" in record:
        refuse_others(os.stat(progress_file()), progress_file())
        my_vlm.write(exercise_id, record["source"])


def _introduce(kept: Mapping[str, _Kept], chosen: Mapping[str, Any]) -> None:
    """Let kept parts call each other. A part was kept with copies of its helpers; where a helper is a part too, the
    one that was chosen takes the copy's place: a projector runs the pixel shuffle that is in the model."""
    for exercise_id, part in kept.items():
        for other in part_ids():
            exercise = REGISTRY[other]
            names = {getattr(exercise.reference, "__name__", ""), kept[other].name if other in kept else ""}
            for name in names & set(part.space):
                if other != exercise_id and callable(part.space[name]):
                    part.space[name] = chosen.get(other) or exercise.reference
