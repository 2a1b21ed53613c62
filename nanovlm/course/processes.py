"""Processes of a chapter's own, to be killed or to work together.

Importing torch and its compiler takes each new process some seconds. On Linux a server does so once, and processes are
forked from it; elsewhere each starts from nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PATIENCE = 240  # seconds to wait for a process that may have to import torch first
SERVER_IMPORTS = ["torch._dynamo", "nanovlm.training.loop", "nanovlm.weights.from_preset"]


@contextmanager
def running(said: Path, target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """target(*arguments) in a process of its own, on the CPU, which is killed at the end if it still runs. What it
    prints goes into the file `said`."""
    if sys.platform == "linux":
        CONTEXT.set_forkserver_preload(SERVER_IMPORTS)  # a server that runs already stays as it is
    process = CONTEXT.Process(target=_main, args=(str(said), target, arguments), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()  # does nothing to one that has ended
        process.join()


def last_words(said: Path) -> str:
    return " / ".join(said.read_text(encoding="utf-8").strip().splitlines()[-3:])


def _main(said: str, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    # On the CPU, where the same sums have the same last bits each time.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    tqdm.set_lock(threading.RLock())  # tqdm's own spans processes, and would outlive a killed one
    target(*arguments)
