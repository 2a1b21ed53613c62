"""Several processes as one: `torchrun --nproc-per-node 4 -m nanovlm train …`. In one process nothing happens here.

"ddp" keeps all weights in every process and averages their gradients while the backward pass still runs. "fsdp" deals
out weights, gradients and optimizer states, for models that do not fit otherwise; each block is put together when it is
needed (torch.distributed's DistributedDataParallel and fully_shard).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanovlm.device import Precision
from nanovlm.models.vision_language_model import VisionLanguageModel, VLMOutput

T = TypeVar("T")


def start() -> tuple[int, int]:
    """Join the group that torchrun announces. Returns this process's rank and how many there are.

    Raises: ValueError if there are more processes than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if own >= there:
                raise ValueError(
                    f"Process {own} of this machine has no GPU: there are {there}. Start torchrun with "
                    f"--nproc-per-node {there}."
                )
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return (dist.get_rank(), dist.get_world_size()) if world > 1 else (0, 1)


def stop() -> None:
    if is_distributed():
        gc.collect()  # wrappers of the model hold the group
        dist.destroy_process_group()


def num_processes() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def one_for_all() -> Iterator[None]:
    """Where another process has ended, say so: it has told its reason itself, and torchrun ends the rest."""
    try:
        yield
    except RuntimeError as error:
        if is_distributed() and any(word in str(error).lower() for word in ("peer", "connection", "nccl", "gloo")):
            raise ConnectionError(
                f"Process {dist.get_rank()} of {dist.get_world_size()} stops, because another one has ended: look for "
                "its message. All go on from the last checkpoint with --resume."
            ) from error
        raise


def precision_for_many(precision: Precision) -> Precision:
    """Gradients are summed over processes and added up over batches in the type of the weights. bfloat16 is too coarse
    for that: the weights stay float32, and products are computed in bfloat16."""
    if is_distributed() and precision.weights == torch.bfloat16:
        return replace(precision, weights=torch.float32, autocast=torch.bfloat16)
    return precision


class Joined(nn.Module):
    """The model in one of several processes: each weight has a gradient, also where this batch shows no picture."""

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Tensor, images: Tensor | None, **rest: Any) -> VLMOutput:
        output = self.model(input_ids, images, **rest)
        if images is not None:
            return output
        unseen = [*self.model.vision_encoder.parameters(), *self.model.projector.parameters()]
        return output._replace(loss=output.loss + 0.0 * sum(weight.sum() for weight in unseen))


def wrap(model: VisionLanguageModel, kind: str, device: torch.device) -> nn.Module:
    """The model to train with: itself in one process, else joined to those of the other processes."""
    if not is_distributed():
        if kind == "fsdp":
            raise ValueError("parallel fsdp deals a model out to several processes: start them with torchrun.")
        return model
    for weight in model.parameters():  # all begin with the first one's
        dist.broadcast(weight.detach(), src=0)
    joined = Joined(model)
    if kind == "ddp":
        devices = [device.index] if device.index is not None else None
        # The gradients lie in the memory that is sent: no second copy of them.
        return nn.parallel.DistributedDataParallel(joined, device_ids=devices, gradient_as_bucket_view=True)
    from torch.distributed.fsdp import fully_shard

    for block in model.decoder.blocks:  # the encoder stays with the rest: a process may have no picture to show it
        fully_shard(block)
    # Resharded after each forward pass too: between steps a weight is always this process's part of it.
    return fully_shard(joined, reshard_after_forward=True)


def only_the_last(model: nn.Module, is_last: bool) -> AbstractContextManager[object]:
    """Of the batches of one step, only the last one's backward pass sums the gradients over the processes."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext() if is_last else model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(is_last)
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be dealt out; then every process has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def dealt_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The reverse of `whole`: dealt out as `like` is."""
    if not hasattr(like, "device_mesh") or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def broadcast_object(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, to all of them: names with a time in them would differ."""
    if not is_distributed():
        return make()
    made: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            made[0] = make()
        except Exception as error:  # all of them have to end
            made[1] = error
    dist.broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    return made[0]


def summed(value: float, device: torch.device) -> float:
    """The sum over all processes."""
    if not is_distributed():
        return value
    return all_sum(torch.tensor(float(value), dtype=torch.float64, device=device)).item()


def all_sum(total: Tensor) -> Tensor:
    """The same in place, on the device: nobody waits for it yet."""
    if is_distributed():
        dist.all_reduce(total)
    return total


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process: they must leave a loop together, or the rest would wait for ever."""
    return summed(flag, device) > 0


def in_step(batches: Iterable[T], device: torch.device) -> Iterator[tuple[T, bool]]:
    """This process's batches, each with True; then its last one with False, as long as others still have theirs: the
    processes that share a model compute together."""
    if not is_distributed():
        for batch in batches:
            yield batch, True
        return
    own, last = iter(batches), None
    while True:
        batch = next(own, None)
        last = last if batch is None else batch
        if not any_rank(batch is not None, device):
            return
        if any_rank(last is None, device):  # more processes than batches
            first = broadcast_object(lambda last=last: last)
            last = first if last is None else last
        yield last, batch is not None
