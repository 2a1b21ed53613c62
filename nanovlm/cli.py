"""The command `nanovlm`: finds the subcommand, runs it, and turns what a user can mend into one sentence.

A subcommand is a module of nanovlm.commands with `main(arguments)`, imported when it is called.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "train a model: the pocket preset in minutes, on a laptop",
    "plan": "say what a run will take: hours, memory, disk and money",
    "generate": "ask a model about a picture",
    "watch": "answer about what a camera, a video or a folder shows",
    "evaluate": "score a model per kind of question, beside its blind score",
    "bench": "time training and generation beside transformers' SmolVLM",
    "trace": "follow the shapes through a model, from picture to answer",
    "export": "write a model for transformers, nanoVLM, onnxruntime or llama.cpp",
    "demo": "ask a model about pictures on a page in the browser",
    "course": "build the notebooks, show your progress, list the exercises",
    "doctor": "check this environment",
}
USAGE = """usage: nanovlm COMMAND [options]

{commands}

nanovlm COMMAND --help lists the options of a command.
NANOVLM_DEBUG=1 in the environment shows where an error comes from.
"""
# Modules that only an extra of the package brings.
EXTRAS = {
    "datasets": "data",
    "pyarrow": "data",
    "matplotlib": "notebook",
    "ipywidgets": "notebook",
    "jupytext": "lab",
    "nbformat": "lab",
    "nbclient": "lab",
    "wandb": "wandb",
    "peft": "adapt",
    "torchao": "compress",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "gradio": "demo",
    "cv2": "watch",
    "transformers": "dev",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # an old Windows console cannot show every character a model may write
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = _run(arguments)
        sys.stdout.flush()  # or a full disk shows only when Python ends
        return status
    except KeyboardInterrupt:
        print("\nnanovlm: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `nanovlm … | head`: the reader has seen enough
        _forget_output()
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError, RuntimeError) as error:
        if os.environ.get("NANOVLM_DEBUG") == "1" or not _is_told(error):
            raise
        print(f"nanovlm: {sentence(error)}", file=sys.stderr)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _forget_output()
        return 2


def _run(arguments: Sequence[str]) -> int:
    usage = USAGE.format(commands="\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items()))
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage, end="")
        return 0
    if arguments[0] == "--version":
        from nanovlm import __version__

        print(f"nanovlm {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"nanovlm: there is no command {name!r}. Choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    return import_module(f"nanovlm.commands.{name}").main(rest) or 0


def _forget_output() -> None:
    """What standard output still holds cannot be written: Python would complain when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_told(error: Exception) -> bool:
    """Of RuntimeErrors only those of an allocator are for people; any other is a mistake of ours."""
    return not isinstance(error, RuntimeError) or "memory" in str(error)


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"nanovlm: {message}", file=sys.stderr)


def sentence(error: Exception) -> str:
    """What went wrong, for people. Our own errors are sentences already; the system's and Python's are put into one."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        extra = f"nanovlm[{EXTRAS[module]}]" if module in EXTRAS else module
        return f'This needs the package {module}, which is not installed: pip install "{extra}"'
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if isinstance(error, (MemoryError, RuntimeError)):
        return "This does not fit into the memory: ask for fewer rows at once, shorter ones, or a smaller model."
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
