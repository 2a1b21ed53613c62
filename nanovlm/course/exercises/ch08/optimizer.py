"""Chapter 08: one step of AdamW, and which parameter gets which learning rate and decay."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig
from nanovlm.course.exercises.common import noise, optimizers_ready
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect
from nanovlm.models.vision_language_model import VisionLanguageModel

# -- training.adamw_step -----------------------------------------------------------------------------------------------


def adamw_step(
    p: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int, lr: float, betas: tuple, eps: float, weight_decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW. Returns the new weight and both new moments. step counts from 1."""
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    return p - lr * weight_decay * p - lr * update, m, v


ADAMW = Exercise(
    id="training.adamw_step",
    chapter="08",
    title="AdamW by hand",
    difficulty=2,
    minutes=15,
    why="Nearly every transformer was trained with these five lines. Who has written them knows what the optimizer's "
    "state is, why a checkpoint needs it, and what weight decay is multiplied by.",
    hints=(
        "Two running means: of the gradients, and of their squares. Both start at 0, so both are too small at first.",
        "Update m with beta1 and v with beta2. Divide each by 1 - beta ** step, which makes up for the start at 0. The "
        "update is the first divided by the root of the second plus eps. Decay is apart from all that: it shrinks the "
        "weight itself, by lr * weight_decay.",
        "m = beta1 * m + the rest of the weight * grad;  v likewise with beta2 and grad squared\n"
        "m_hat, v_hat = each divided by its correction\n"
        "p = p shrunk by lr * weight_decay of itself, less lr * (m_hat over root of v_hat, eps outside of the root)\n"
        "return p, m, v",
    ),
    reference=adamw_step,
    cases=lambda: (
        optimizers_ready()
        or [
            Case(
                torch.tensor([1.0, -2.0]),
                torch.tensor([0.5, 0.1]),
                torch.zeros(2),
                torch.zeros(2),
                1,
                0.1,
                (0.8, 0.6),
                0.01,
                0.5,
                note="the first step of two weights; betas 0.8 and 0.6, eps 0.01, decay 0.5",
            ),
            Case(
                noise(2, 3),
                noise(2, 3, seed=1),
                0.2 * noise(2, 3, seed=2),
                0.3 * noise(2, 3, seed=3).abs(),
                4,
                0.03,
                (0.7, 0.9),
                0.05,
                0.4,
                note="the fourth step, with moments that are not 0",
            ),
            Case(
                noise(3),
                torch.zeros(3),
                torch.zeros(3),
                torch.zeros(3),
                2,
                0.5,
                (0.9, 0.95),
                1e-3,
                0.2,
                note="no gradient at all: only the decay is left",
            ),
        ]
    ),
    axes={"p": "", "m": "", "v": ""},
)


@ADAMW.property("thirty steps are torch.optim.AdamW's")
def _(step) -> None:
    target, theirs = noise(4, seed=5), nn.Parameter(noise(4))
    ours, m, v = theirs.detach().clone(), torch.zeros(4), torch.zeros(4)
    optimizer = torch.optim.AdamW([theirs], lr=0.05, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
    for count in range(1, 31):
        theirs.grad = theirs.detach() - target
        ours, m, v = step(ours, ours - target, m, v, count, 0.05, (0.8, 0.9), 1e-3, 0.3)
        optimizer.step()
    off = (ours - theirs.detach()).abs().max()
    expect(off < 1e-5, f"After thirty steps of your version the weights are up to {off:.2g} away from torch's.")


def _adamw(p, grad, m, v, step, lr, betas, eps, weight_decay, wrong=""):
    """adamw_step, with one thing at a time to get wrong."""
    beta1, beta2 = betas if wrong != "betas" else betas[::-1]
    if wrong == "l2":
        grad = grad + weight_decay * p
    old_m = m
    if wrong == "swapped weights":
        m, v = (1 - beta1) * m + beta1 * grad, (1 - beta2) * v + beta2 * grad**2
    elif wrong == "sums":
        m, v = beta1 * m + grad, beta2 * v + grad**2
    else:
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * (grad.abs() if wrong == "no square" else m**2 if wrong == "of m" else grad**2)
    count = step - 1 if wrong == "count" else step
    m_hat = m if wrong in ("uncorrected", "m uncorrected") else m / (1 - beta1**count)
    v_hat = v if wrong in ("uncorrected", "v uncorrected") else v / (1 - beta2**count)
    if wrong == "old m":
        m_hat = old_m / (1 - beta1**step)
    root = (v_hat + eps).sqrt() if wrong == "eps inside" else v_hat if wrong == "no root" else v_hat.sqrt() + eps
    update = m_hat / root
    if wrong == "up":
        return p - lr * weight_decay * p + lr * update, m, v
    if wrong == "no lr":
        return p - weight_decay * p - lr * update, m, v
    if wrong == "after":
        return (p - lr * update) * (1 - lr * weight_decay), m, v
    if wrong in ("l2", "no decay"):
        return p - lr * update, m, v
    if wrong == "growth":
        return p + lr * weight_decay * p - lr * update, m, v
    if wrong == "hats kept":
        return p - lr * weight_decay * p - lr * update, m_hat, v_hat
    return p - lr * weight_decay * p - lr * update, m, v


for sentence, wrong in (
    (
        "The decay goes through the gradient: that is Adam with L2, where weights with large gradients are hardly "
        "decayed. The W of AdamW takes lr * weight_decay * p off the weight itself.",
        "l2",
    ),
    ("The decay is left out.", "no decay"),
    (
        "The decay is not multiplied by lr: with this the weights shrink just as fast at the end of the schedule.",
        "no lr",
    ),
    ("You decay after the step, and so decay the step as well. The weight as it came in is what shrinks.", "after"),
    ("The decay makes weights grow: it is subtracted.", "growth"),
    ("Neither moment is corrected: both start at 0 and are too small in the first steps.", "uncorrected"),
    ("The first moment is not corrected: divide it by 1 - beta1 ** step.", "m uncorrected"),
    ("The second moment is not corrected: divide it by 1 - beta2 ** step.", "v uncorrected"),
    ("You return the corrected moments. Keep m and v as they are: the next step corrects them anew.", "hats kept"),
    ("The correction counts steps from 0, and divides by 0 in the first one. `step` is 1 there already.", "count"),
    ("eps is inside the root. It belongs behind it: sqrt(v) + eps.", "eps inside"),
    ("The root is missing: divide by the root of the second moment.", "no root"),
    ("The two betas are exchanged: the first belongs to the gradients, the second to their squares.", "betas"),
    (
        "Old and new are weighted the wrong way round: beta times the old mean, 1 - beta times the new value.",
        "swapped weights",
    ),
    ("These are sums, not means: the new value is weighted by 1 - beta.", "sums"),
    ("The second moment is a mean of *squared* gradients.", "no square"),
    ("The second moment takes the square of m. It takes the square of the gradient.", "of m"),
    ("You step along the moment of the step before. Update m first, then use it.", "old m"),
    ("You climb: the update is subtracted.", "up"),
):
    ADAMW.mistake(sentence)(lambda *args, wrong=wrong: _adamw(*args, wrong=wrong))


# -- training.param_groups ---------------------------------------------------------------------------------------------


@cache
def tiny_model() -> VisionLanguageModel:
    config = VLMConfig(
        ViTConfig(hidden_dim=4, inter_dim=4, num_blocks=1, num_heads=1, image_size=4, patch_size=2),
        ProjectorConfig(vision_dim=4, language_dim=4, pixel_shuffle_factor=2),
        LMConfig(hidden_dim=4, inter_dim=4, num_blocks=1, num_heads=1, num_kv_heads=1, vocab_size=6, max_positions=8),
        image_token_id=4,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        return VisionLanguageModel(config)


def model_with(frozen: str = "") -> VisionLanguageModel:
    """The tiny model; `frozen`: the beginning of the names whose parameters are not trained."""
    import copy

    model = copy.deepcopy(tiny_model())
    for name, p in model.named_parameters():
        p.requires_grad_(not (frozen and name.startswith(frozen)))
    return model


def param_groups(
    model: nn.Module, lr_projector: float, lr_backbones: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for torch.optim.AdamW: every trained parameter once."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            matrix = p.ndim == 2 and ("blocks." in name or name.startswith("projector."))
            lr = lr_projector if name.startswith("projector.") else lr_backbones
            groups.setdefault((lr, weight_decay if matrix else 0.0), []).append(p)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def run_groups(param_groups: Any, frozen: str, *settings: float) -> dict[str, float]:
    """For every parameter: how often it is in the groups, its learning rate, its decay."""
    model = model_with(frozen)
    groups = param_groups(model, *settings)
    if not isinstance(groups, (list, tuple)) or not all(isinstance(g, dict) and "params" in g for g in groups):
        raise Complaint('Return a list of dicts, each with "params", "lr" and "weight_decay".')
    found: dict[int, list[float]] = {}
    for group in groups:
        for key in ("lr", "weight_decay"):
            expect(key in group, f'A group has no "{key}", so the optimizer would take its own default.')
        for p in group["params"]:
            expect(isinstance(p, Tensor), '"params" holds something else than parameters: leave out their names.')
            times = found.get(id(p), [0.0])[0]
            found[id(p)] = [times + 1, float(group["lr"]), float(group["weight_decay"])]
    table = {
        f"{name}: {what}": value
        for name, p in model.named_parameters()
        for what, value in zip(("times", "lr", "weight_decay"), found.get(id(p), [0.0, 0.0, 0.0]), strict=True)
    }
    known = {id(p) for p in model.parameters()}
    expect(set(found) <= known, "The groups hold a tensor that is no parameter of the model.")
    return table


PARAM_GROUPS = Exercise(
    id="training.param_groups",
    chapter="08",
    title="Which weight learns how fast",
    difficulty=2,
    minutes=12,
    why="A projector that starts from nothing and backbones that know a language need different rates. A group that is "
    "wrong raises nothing: it trains what should be still, or leaves still what should learn.",
    hints=(
        "Walk through model.named_parameters(): the name says which part it is, p.ndim whether it is a matrix.",
        'Leave out what does not require a gradient. The rate depends on whether the name starts with "projector."; '
        "the decay on whether it is a matrix (two axes) of a block or of the projector. named_parameters() names a "
        "tied weight once.",
        "groups = {}   # (lr, weight_decay) -> parameters\n"
        "for name, p in model.named_parameters():\n"
        "    skip it if it is frozen\n"
        "    lr = by its name;  decay = weight_decay for matrices of blocks and projector, else 0.0\n"
        "    groups.setdefault((lr, decay), []).append(p)\n"
        'return [{"params": …, "lr": …, "weight_decay": …} for each of them]',
    ),
    reference=param_groups,
    cases=lambda: [
        Case("", 0.02, 0.003, 0.1, note="everything is trained; projector 0.02, backbones 0.003, decay 0.1"),
        Case("vision_encoder.", 0.5, 0.25, 0.3, note="the vision encoder is frozen"),
        Case("decoder.", 0.01, 0.04, 0.2, note="the decoder is frozen, and the projector is the slower one"),
    ],
    call=run_groups,
)


def _groups(model, lr_projector, lr_backbones, weight_decay, wrong=""):
    """param_groups, with one thing at a time to get wrong."""
    groups: list[dict[str, Any]] = []
    for name, p in model.named_parameters(remove_duplicate=wrong != "tied"):
        if not p.requires_grad and wrong != "frozen":
            continue
        is_projector = name.startswith("projector.")
        decayed = p.ndim == 2 and ("blocks." in name or is_projector)
        decayed = {
            "all decayed": True,
            "none decayed": False,
            "embeddings": p.ndim >= 2,
            "two axes": p.ndim == 2,
            "by name": not name.endswith("bias"),
            "projector not decayed": decayed and not is_projector,
        }.get(wrong, decayed)
        lr = lr_projector if is_projector else lr_backbones
        if wrong == "swapped":
            lr = lr_backbones if is_projector else lr_projector
        if wrong == "one rate":
            lr = lr_backbones
        if wrong == "only matrices" and not decayed:
            continue
        groups.append({"params": [p], "lr": lr, "weight_decay": weight_decay if decayed else 0.0})
        if wrong == "twice" and is_projector:
            groups.append({"params": [p], "lr": lr_projector, "weight_decay": weight_decay})
    return groups


for sentence, wrong in (
    (
        "The tied weight is in there twice, as embedding and as head: it would be moved twice a step. "
        "named_parameters() names it once by itself.",
        "tied",
    ),
    ("Frozen parameters are in the groups. Leave out what does not require a gradient.", "frozen"),
    (
        "Everything is decayed. Decay pulls towards 0, and a norm's weight of 1 is no mistake to be pulled back.",
        "all decayed",
    ),
    ("Nothing is decayed: the matrices of blocks and projector should be.", "none decayed"),
    (
        "Embeddings or the patch convolution are decayed. A rare token's row gets no gradient for many steps, and decay "
        "alone would wear it down: only matrices of blocks and projector are decayed.",
        "embeddings",
    ),
    (
        "The token embedding is decayed. It has two axes, but it is a table of rows, not a matrix of a block.",
        "two axes",
    ),
    ("You leave out biases only: the weights of norms and the embeddings are decayed as well.", "by name"),
    ("The projector's matrix is not decayed.", "projector not decayed"),
    ("The two learning rates are exchanged.", "swapped"),
    ("All parameters get the same learning rate: the projector has its own.", "one rate"),
    (
        "Only decayed parameters are in the groups. The others would never be trained: give them a decay of 0.",
        "only matrices",
    ),
    ("The projector is in two groups, so it would be moved twice a step.", "twice"),
):
    PARAM_GROUPS.mistake(sentence)(lambda *args, wrong=wrong: _groups(*args, wrong=wrong))
