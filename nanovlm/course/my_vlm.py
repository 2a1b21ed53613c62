"""The learner's own package: every answer that passed is a file of it, to read, to change and to put under git."""

from __future__ import annotations

import importlib
import linecache
import os
import sys
import tempfile
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, ModuleType

from nanovlm.course.progress import home, is_from_elsewhere, write_whole

PACKAGE = "my_vlm"
standing_in: set[str] = set()  # exercises whose reference `use` has handed out in this session: nobody's answer

# Where the home cannot be written, this session keeps the files elsewhere: home -> folder.
_session: dict[Path, tempfile.TemporaryDirectory[str]] = {}


class Refused(Exception):
    """Code that somebody else may have written. Says in one sentence what to do."""


def folders() -> list[Path]:
    """Where the package lies; the first that has a module wins."""
    spare = [Path(_session[home()].name, PACKAGE)] if home() in _session else []
    return [*spare, home() / PACKAGE]


def module_name(exercise_id: str) -> str:
    """ "decoder.gqa" -> "decoder_gqa"."""
    return exercise_id.replace(".", "_")


def source_file(exercise_id: str) -> Path | None:
    """Where the answer is kept; None: nowhere."""
    paths = [folder / f"{module_name(exercise_id)}.py" for folder in folders()]
    return next((path for path in paths if path.is_file()), None)


def write(exercise_id: str, source: str) -> None:
    """Keep the source of an answer, readable and writable for its owner alone."""
    source = f'"""{exercise_id}: kept when it passed its check. It is yours: change it as you like."""\n\n{source}'
    try:
        _write(home() / PACKAGE, exercise_id, source)
    except OSError:
        if home() not in _session:
            _session[home()] = tempfile.TemporaryDirectory(prefix=f"{PACKAGE}-")
        _write(folders()[0], exercise_id, source)


def _write(folder: Path, exercise_id: str, source: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if not (folder / "__init__.py").exists():
        write_whole(folder / "__init__.py", '"""The parts of a vision-language model that I wrote myself."""\n')
    write_whole(folder / f"{module_name(exercise_id)}.py", source)


def load(exercise_id: str) -> ModuleType:
    """Import the answer's module anew, as the file is now. Raises Refused, and whatever the code raises."""
    path = source_file(exercise_id)
    if path is None:
        raise FileNotFoundError(exercise_id)
    if is_from_elsewhere():
        raise Refused(
            f"{path.parent} was written on another machine or by another user, so its code is not run. Read it, and if "
            "you trust it, run once: nanovlm course trust (in a notebook: !nanovlm course trust)"
        )
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    places = [str(folder) for folder in folders() if folder.is_dir()]
    for place in places:
        refuse_others(os.stat(place), place)
        sys.path_importer_cache[place] = FileFinder(place, (_Loader, [".py"]))
    first = path.with_name("__init__.py")
    loader = _Loader(PACKAGE, str(first)) if first.is_file() else None
    spec = ModuleSpec(PACKAGE, loader, origin=str(first), is_package=True)
    spec.submodule_search_locations = places
    package = sys.modules[PACKAGE] = module_from_spec(spec)
    if loader is not None:
        loader.exec_module(package)
    return importlib.import_module(f"{PACKAGE}.{module_name(exercise_id)}")


class _Loader(SourceFileLoader):
    """Runs the source as it is now, and only what nobody else can have written. No bytecode: that of a file which was
    changed twice in a second is taken for fresh."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        linecache.checkcache(path)
        return self.source_to_code(self.get_data(path), path)

    def get_data(self, path: str) -> bytes:  # type: ignore[override]
        with open(path, "rb") as file:
            refuse_others(os.fstat(file.fileno()), path)
            return file.read()


def refuse_others(status: os.stat_result, path: str | Path) -> None:
    """Raise Refused where another user owns the file or may write it. Windows keeps homes apart by other means."""
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (os.geteuid(), 0):
        raise Refused(
            f"{path} belongs to another user, so its code is not run. Copy it into a folder of your own, and set "
            "NANOVLM_HOME to that."
        )
    if status.st_mode & 0o022:
        raise Refused(f'{path} can be changed by other users, so its code is not run. Run: chmod go-w "{path}"')
