"""Several processes as one: `torchrun --nproc-per-node 4 -m nanovlm train …`. In one process nothing happens here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def start() -> tuple[int, int]:
    """Join the group that torchrun announces. Returns this process's rank and how many there are."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # The others wait while the first one validates and saves; the default patience is ten minutes.
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(hours=2))
    return (dist.get_rank(), dist.get_world_size()) if world > 1 else (0, 1)


def stop() -> None:
    if is_distributed():
        dist.destroy_process_group()


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def broadcast_object(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, to all of them: names with a time in them would differ."""
    if not is_distributed():
        return make()
    made = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    return made[0]


def broadcast_parameters(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's tensors, in place."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process: they must leave a loop together, or the rest would wait for ever."""
    count = torch.tensor(float(flag), device=device)
    sum_over_processes([count])
    return count.item() > 0


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes."""
    if not is_distributed():
        return
    tensors = list(tensors)
    flat = torch.cat([t.reshape(-1).float() for t in tensors])  # one message instead of hundreds
    dist.all_reduce(flat)
    for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))
