"""Every design of chapter 17 trained for equally many steps on the same data, at the sizes of one small decoder.

    python -m nanovlm.bench.designs --steps 300 --out assets/runs/17_designs.json
    python -m nanovlm.bench.designs --steps 300 --only cnn resampler --seeds 0 1 2 --out assets/runs/17_designs.json

The run is that of `nanovlm.bench.training_runs`; beside its numbers stand the floating-point operations of one forward
pass, counted by the tracer. They differ from design to design, since the sizes are equal and not the operations: what
a design scores is to be read beside what it takes. Masked attention counts in full.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from nanovlm.bench.training_runs import Run, run_seeds, small_vlm
from nanovlm.config import VLMConfig
from nanovlm.designs.registry import DESIGNS, build
from nanovlm.trace import trace

WORDS = 24  # of the row whose operations are counted: about a question and its answer


def forward_flops(name: str, config: VLMConfig) -> int:
    """Operations of one picture and WORDS words through a whole model of this design."""
    model = build(name, config).eval()
    side, num_image_tokens = config.vision.image_size, config.num_image_tokens
    placeholder, word = config.image_token_id, config.image_token_id + 1
    ids = torch.tensor([[placeholder] * num_image_tokens + [word] * WORDS])
    with torch.no_grad():
        return trace(model, ids, torch.zeros(1, 3, side, side)).flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of 32 samples")
    parser.add_argument("--only", nargs="+", choices=DESIGNS, default=list(DESIGNS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; designs that it holds already are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        flops = forward_flops(name, small_vlm())
        print(f"{name}: {flops / 1e6:.2f} million operations a forward pass", flush=True)
        what = Run(f"the design {name}", {"max_steps": options.steps}, model_class=partial(build, name))
        result = {"forward_flops": flops, **run_seeds(what, options.seeds, partial(print, flush=True))}
        kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        options.out.write_text(json.dumps({**kept, name: result}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
