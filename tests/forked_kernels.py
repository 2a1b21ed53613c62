"""Kernels that are forked from a process that has imported torch, transformers and the exercises already.

    pytest -p tests.forked_kernels --nbval-lax ... chapters

Each notebook has a process of its own, as always, which runs all cells: what is saved is some seconds of imports in
every kernel. On Linux; elsewhere, kernels start as usual. The notebooks' stored outputs come from kernels that have
imported nothing (`nanovlm course build --execute`), and so do those of `make test-colab`.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from jupyter_client.provisioning import local_provisioner

from nanovlm.course import exercises

# Not matplotlib: how it draws is decided by the kernel, before it is imported.
PACKAGES = [
    "ipykernel.kernelapp",
    "torch._dynamo",
    "torch.utils.data",
    "safetensors.torch",
    "tokenizers",
    "jinja2",
    "PIL.Image",
    "transformers.models.llama.modeling_llama",
    "transformers.models.siglip.modeling_siglip",
    "transformers.models.smolvlm.modeling_smolvlm",
    *(module.name for module in pkgutil.walk_packages(exercises.__path__, f"{exercises.__name__}.")),
]


class ForkedKernel:
    """As much of a subprocess.Popen as jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, command: Sequence[str], cwd: str | None, env: dict[str, str]) -> None:
        self.process = CONTEXT.Process(target=_kernel, args=(list(command), cwd, env))
        self.process.start()
        self.pid = self.process.pid
        with contextlib.suppress(ProcessLookupError):
            # Signals are sent to its group, which must be no other's.
            while self.poll() is None and os.getpgid(self.pid) != self.pid:
                time.sleep(0.01)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def launch_kernel(command: Sequence[str], env: dict[str, str], cwd: str | None = None, **_: Any) -> ForkedKernel:
    """In place of jupyter_client's. command: python -m ipykernel_launcher -f file."""
    return ForkedKernel(command[command.index("-f") :], cwd, env)


def _kernel(arguments: list[str], cwd: str | None, env: dict[str, str]) -> None:
    os.setsid()
    gc.freeze()  # what was imported before stays, and need not be looked at, which would copy its memory
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.environ.clear()
    os.environ.update(env)
    if cwd is not None:
        os.chdir(cwd)
    multiprocessing.set_start_method(None, force=True)  # the notebook's own processes start as everywhere
    sys.argv = ["ipykernel_launcher", *arguments]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if sys.platform == "linux":
    CONTEXT = multiprocessing.get_context("forkserver")
    CONTEXT.set_forkserver_preload(PACKAGES)
    local_provisioner.launch_kernel = launch_kernel
