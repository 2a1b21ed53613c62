"""What a run writes down while it goes on."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanovlm.config import TrainConfig
from nanovlm.files import to_the_disk

Watch = Callable[[int, dict[str, Any]], None]  # step, what was measured at it


class MetricsLog:
    """One JSON object a line in metrics.jsonl, and wandb where it is asked for. `watch` is told each line as well."""

    def __init__(self, directory: Path, config: TrainConfig, from_step: int, watch: Watch | None = None) -> None:
        self.watch = watch
        self.path = directory / "metrics.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        # A resumed run writes what came after its checkpoint again; the last line may have been torn by a kill.
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for number, line in enumerate(whole, 1) if self._step(number, line) <= from_step]
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(kept), encoding="utf-8")
        to_the_disk(temporary)
        temporary.replace(self.path)
        self.wandb: Any = None
        if config.wandb:
            import wandb

            known = directory / "wandb_id"  # so that a resumed run is the same run there
            if not known.exists():
                known.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
            try:
                self.wandb = wandb.init(
                    project="nanovlm",
                    name=directory.name,
                    id=known.read_text(encoding="utf-8").strip(),
                    resume="allow",
                    config=asdict(config),
                    dir=str(directory),
                )
            except Exception as error:  # the library's own types: no login, no network, a project of somebody else
                reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
                raise ConnectionError(
                    f"wandb cannot log this run ({reason}). `wandb login` first, set WANDB_MODE=offline, or leave "
                    "--wandb out."
                ) from error

    def _step(self, number: int, line: str) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Line {number} of {self.path} is damaged: delete that line, then go on.") from error

    def write(self, step: int, **values: float | int | str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise OSError(
                f"Could not write {self.path}: {error.strerror}. Free some space, then go on with --resume."
            ) from error
        if self.wandb is not None:
            self.wandb.log(values, step=step)
        if self.watch is not None:
            self.watch(step, values)

    def close(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()


class Throughput:
    """Samples and tokens a second since it was last read; the wait for data and evaluations are part of the time."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self.samples = self.tokens = 0
        self.since = time.perf_counter()

    def count(self, batches: Sequence[dict[str, Any]]) -> None:
        self.samples += self.num_ranks * sum(len(batch["sample_indices"]) for batch in batches)
        self.tokens += self.num_ranks * sum(int(batch["attention_mask"].sum()) for batch in batches)

    def read(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        speed = {"samples_per_second": self.samples / seconds, "tokens_per_second": self.tokens / seconds}
        self.samples = self.tokens = 0
        return speed
