"""Training runs in processes of their own, to be killed or to work together."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it, which takes a second: the server does so for all children
from tqdm.auto import tqdm

# Children are forked from a server that has imported everything already (Linux), or start from nothing.
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    CONTEXT.set_forkserver_preload(["tests.training.children", "tests.training.tiny_run"])
KILLED = -signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM


def die() -> None:
    """kill -9, from within"""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def die_after(seconds: float) -> None:
    """kill -9 when this process has computed for so long. Processor time, so that a busy machine changes nothing."""
    start = time.process_time()

    def wait() -> None:
        while time.process_time() - start < seconds:
            time.sleep(0.0005)
        die()

    threading.Thread(target=wait, daemon=True).start()


def start(target: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None) -> Any:
    process = CONTEXT.Process(target=_main, args=(target, arguments, dict(environment or {})))
    process.start()
    return process


def wait(process: Any, seconds: float = 500) -> int:
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"The child still ran after {seconds} s.")
    return process.exitcode


def gather(world: int, target: Callable[..., None], *arguments: Any) -> list[Any]:
    """Start target(rank, *arguments) in `world` processes that find each other as under torchrun."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world)}
    return [
        start(target, rank, *arguments, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


def _free_port() -> int:
    """Below those that a system hands out by itself: nobody is given this one before rank 0 listens on it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port


def together(world: int, target: Callable[..., None], *arguments: Any) -> None:
    """The same, until all have ended well."""
    assert [wait(process) for process in gather(world, target, *arguments)] == [0] * world


def _main(target: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    if sys.platform == "linux":  # workers of a data loader are the child's own, and end with it
        multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # tqdm's own spans processes, and would outlive a killed one
    # What a child says belongs to nobody.
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    target(*arguments)
