"""Two processes and one model: what DDP makes of two losses, beside one process that has all the data.

A decoder of 0.1 M parameters on a CPU (gloo). The two ranks have answers of very different lengths.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanovlm.config import LMConfig
from nanovlm.course.processes import PATIENCE, last_words, running
from nanovlm.models.language_model import LanguageModel

SIZES = LMConfig(hidden_dim=64, inter_dim=128, num_blocks=2, num_heads=4, num_kv_heads=2, vocab_size=100)
COUNTS = ((4, 2), (30, 26))  # supervised tokens of each rank's two micro-batches
LENGTH = 32


class NextToken(nn.Module):
    """ids [1, LENGTH] and how many of the last tokens are supervised -> their mean loss."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = LanguageModel(SIZES)

    def forward(self, ids: Tensor, count: int) -> Tensor:
        logits = self.decoder.head(self.decoder(self.decoder.token_embedding(ids)))[0, -1 - count : -1]
        return F.cross_entropy(logits, ids[0, -count:])


def model_and_data() -> tuple[NextToken, list[list[Tensor]]]:
    """The same in every process: ids of each rank's micro-batches."""
    torch.manual_seed(0)
    model = NextToken()
    return model, [[torch.randint(0, SIZES.vocab_size, (1, LENGTH)) for _ in counts] for counts in COUNTS]


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def one_process() -> Tensor:
    """All micro-batches in one process: the sum over all supervised tokens, divided by their number."""
    model, data = model_and_data()
    total = sum(map(sum, COUNTS))
    for batches, counts in zip(data, COUNTS, strict=True):
        for ids, count in zip(batches, counts, strict=True):
            (model(ids, count) * count / total).backward()
    return gradient(model)


def all_reduce(x: Tensor) -> Tensor:
    x = x.clone()
    dist.all_reduce(x)
    return x


def this_rank(rank: int, scaled: bool) -> Tensor:
    """The gradient after DDP's mean, where each rank's loss is its mean, or what exercise 11.7 makes of it."""
    from nanovlm.course.your_parts import use

    with contextlib.redirect_stdout(io.StringIO()):
        rank_loss = use("full.ddp_loss_scale")
    model, data = model_and_data()
    parallel = DistributedDataParallel(model)
    counts = torch.tensor(COUNTS[rank], dtype=torch.float32)
    ids, last = data[rank], len(data[rank]) - 1
    if not scaled:
        rank_loss = lambda means, counts, all_reduce, world: means.sum() / len(COUNTS[rank])  # noqa: E731
    # A micro-batch at a time, as in a real run: the others count as zero. Gradients are exchanged with the last one.
    for i in range(len(ids)):
        with contextlib.nullcontext() if i == last else parallel.no_sync():
            means = torch.stack(
                [parallel(ids[i], COUNTS[rank][i]) if j == i else torch.zeros(()) for j in range(last + 1)]
            )
            rank_loss(means, counts, all_reduce, dist.get_world_size()).backward()
    return gradient(model)


def both_ways(rank: int, folder: str) -> None:
    """One of the two processes. They find each other through a file; the first writes what `measure` returns."""
    dist.init_process_group("gloo", init_method=Path(folder, "meet").as_uri(), rank=rank, world_size=len(COUNTS))
    right = one_process()
    found = {name: this_rank(rank, scaled) for name, scaled in (("mean of means", False), ("by tokens", True))}
    if rank == 0:
        error = {name: ((g - right).norm() / right.norm()).item() for name, g in found.items()}
        Path(folder, "error.json").write_text(json.dumps(error), encoding="utf-8")
    dist.destroy_process_group()


def measure() -> dict[str, float]:
    """Start the two processes. Relative distance of each gradient from that of one process with all the data.

    Raises: RuntimeError, with the last lines, where one of them fails.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as both:
        folder = Path(name)
        said = [folder / f"rank{rank}.txt" for rank in range(len(COUNTS))]
        processes = [both.enter_context(running(said[rank], both_ways, rank, name)) for rank in range(len(COUNTS))]
        until = time.monotonic() + PATIENCE
        # One that has failed leaves the other one waiting for it.
        while time.monotonic() < until and {process.exitcode for process in processes} in ({None}, {None, 0}):
            time.sleep(0.02)
        failed = [rank for rank, process in enumerate(processes) if process.exitcode != 0]
        if failed:
            raise RuntimeError("The two processes failed: " + " / ".join(last_words(said[rank]) for rank in failed))
        found: dict[str, float] = json.loads((folder / "error.json").read_text(encoding="utf-8"))
    return found
