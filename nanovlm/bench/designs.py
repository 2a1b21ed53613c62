"""Every design of chapter 17 trained for equally many steps on the same data, at equal cost.

    python -m nanovlm.bench.designs --steps 300 --out assets/runs/17_designs.json
    python -m nanovlm.bench.designs --steps 300 --only cnn resampler --seeds 0 1 2 --out assets/runs/17_designs.json

The run is that of `nanovlm.bench.training_runs`, and the decoder's sizes are the same everywhere. The encoder's are
chosen (SIZES) so that a forward pass of every design takes the floating-point operations of the standard one, within
5 %, counted by the tracer; a test holds them to it. Masked attention counts in full, as it is computed.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from nanovlm.bench.training_runs import Run, run_seeds, small_vlm
from nanovlm.config import IGNORE, VLMConfig
from nanovlm.designs.registry import DESIGNS, build
from nanovlm.trace import trace

WORDS, SUPERVISED = 102, 38  # tokens of a row, those of its picture aside, and those the head answers for: as trained

SIZES: dict[str, dict[str, int]] = {  # what differs from small_vlm's; where nothing stands, nothing does
    "cnn": {"vision_blocks": 6},
    "cnn_pooled": {"vision_blocks": 7},
    "cross_attention": {"vision_blocks": 1, "vision_inter": 64},
    "pooled_fusion": {"vision_inter": 128},
    "early_fusion": {"factor": 1, "patch_size": 10},  # no encoder: 36 image tokens instead of 4
    "linear_attention": {"vision_inter": 320},
    "dropped_tokens": {"vision_inter": 96},
}


def forward_flops(name: str, config: VLMConfig) -> int:
    """Operations of one training row forward through a whole model of this design; with the backward pass three times
    as many."""
    model = build(name, config).eval()
    side, num_image_tokens = config.vision.image_size, config.num_image_tokens
    placeholder, word = config.image_token_id, config.image_token_id + 1
    ids = torch.tensor([[placeholder] * num_image_tokens + [word] * WORDS])
    targets = torch.full_like(ids, IGNORE)
    targets[:, -SUPERVISED:] = word
    with torch.no_grad():
        return trace(model, ids, torch.zeros(1, 3, side, side), targets=targets).flops


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
        flops = forward_flops(name, small_vlm(**SIZES.get(name, {})))
        print(f"{name}: {flops / 1e6:.2f} million operations a forward pass", flush=True)
        what = Run(
            f"the design {name}",
            {"max_steps": options.steps, "max_length": 192},  # room for early fusion's image tokens
            SIZES.get(name, {}),
            model_class=partial(build, name),
        )
        result = {"forward_flops": flops, **run_seeds(what, options.seeds, partial(print, flush=True))}
        kept = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        options.out.write_text(json.dumps({**kept, name: result}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
