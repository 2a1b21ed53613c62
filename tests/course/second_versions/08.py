"""Chapter 08 once more, written in other ways."""

from __future__ import annotations

import copy
import io
import statistics

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# -- training.get_lr ---------------------------------------------------------------------------------------------------


def lr_by_interpolation(step, max_lr, max_steps, warmup_fraction=0.03, min_lr_fraction=0.1):
    """Warm-up by numpy's interpolation, the cosine as a square: (1 + cos x) / 2 = cos(x / 2) ** 2."""
    warmup = max(round(warmup_fraction * max_steps), 1)
    low = max_lr * min_lr_fraction
    if step < warmup:
        return float(np.interp(step + 1, [0, warmup], [0.0, max_lr]))
    x = np.clip((step - warmup) / max(max_steps - warmup, 1), 0, 1)
    return low + (max_lr - low) * np.cos(np.pi / 2 * x) ** 2


def lr_by_torch(step, max_lr, max_steps, warmup_fraction=0.03, min_lr_fraction=0.1):
    """The smaller one of two curves."""
    warmup = max(1, round(warmup_fraction * max_steps))
    rising = torch.tensor((step + 1) / warmup)
    turn = torch.tensor(float(step - warmup)).clamp(min=0) / max(1, max_steps - warmup) * torch.pi
    falling = min_lr_fraction + (1 - min_lr_fraction) * (1 + turn.clamp(max=torch.pi).cos()) / 2
    return max_lr * (rising if step < warmup else falling)


# -- training.clip_by_norm ---------------------------------------------------------------------------------------------


def clip_one_long_vector(gradients, max_norm):
    norm = torch.cat([g.flatten().double() for g in gradients]).norm()
    if norm <= max_norm:
        return [g.clone() for g in gradients], norm.float()
    return [(g.double() * (max_norm / norm)).to(g.dtype) for g in gradients], norm.float()


def clip_by_torch(gradients, max_norm):
    parameters = [nn.Parameter(g.float()) for g in gradients]
    for p in parameters:
        p.grad = p.detach().clone()
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return [p.grad.to(g.dtype) for p, g in zip(parameters, gradients, strict=True)], norm


# -- training.adamw_step -----------------------------------------------------------------------------------------------


def adamw_by_lerp(p, grad, m, v, step, lr, betas, eps, weight_decay):
    """In the order in which torch computes: decay first, then a step with corrected lr and root."""
    m, v = m.lerp(grad, 1 - betas[0]), betas[1] * v + (1 - betas[1]) * grad.square()
    p = p.mul(1 - lr * weight_decay)
    root = v.sqrt() / (1 - betas[1] ** step) ** 0.5
    return p.addcdiv(m, root + eps, value=-lr / (1 - betas[0] ** step)), m, v


def adamw_by_torch(p, grad, m, v, step, lr, betas, eps, weight_decay):
    weight = nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([weight], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    optimizer.state[weight] = {
        "step": torch.tensor(float(step - 1)),
        "exp_avg": m.clone(),
        "exp_avg_sq": v.clone(),
    }
    weight.grad = grad.clone()
    optimizer.step()
    state = optimizer.state[weight]
    return weight.detach(), state["exp_avg"], state["exp_avg_sq"]


# -- training.param_groups ---------------------------------------------------------------------------------------------


def three_groups(model, lr_projector, lr_backbones, weight_decay):
    projector, matrices, others = [], [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            home = projector if name.startswith("projector.") else matrices if "blocks." in name else others
            (home if p.ndim == 2 or home is projector else others).append(p)
    return [
        {"params": projector, "lr": lr_projector, "weight_decay": weight_decay},
        {"params": matrices, "lr": lr_backbones, "weight_decay": weight_decay},
        {"params": others, "lr": lr_backbones, "weight_decay": 0.0},
    ]


def one_group_each(model, lr_projector, lr_backbones, weight_decay):
    groups = []
    for name, p in model.named_parameters():
        part, is_matrix = name.split(".")[0], p.dim() == 2
        decay = weight_decay * (is_matrix and (part == "projector" or ".blocks." in name))
        if p.requires_grad:
            groups.append({"params": [p], "lr": lr_projector if part == "projector" else lr_backbones})
            groups[-1]["weight_decay"] = decay
    return groups


# -- training.overfit_one_batch ----------------------------------------------------------------------------------------


def knows_all_answers(model, batch):
    """By answers instead of a loss, with SGD and momentum; stops when it is sure."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3, momentum=0.8)
    truth = batch["targets"][batch["targets"] != -100]
    for _ in range(30):
        out = model(batch["input_ids"], batch["images"], targets=batch["targets"])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    sure = out.logits.softmax(dim=-1).gather(1, truth[:, None])
    return (sure > 0.8).all()


def memorises(model, batch):
    """A fresh copy through a file, AdamW."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(18):
        optimizer.zero_grad()
        loss = twin(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        loss.backward()
        optimizer.step()
    return loss.item() < 0.3


# -- training.train_step -----------------------------------------------------------------------------------------------


def sums_then_divides(model, batches, optimizer, max_norm):
    """Sums of losses, and the gradients divided once at the end."""
    tokens = total = 0
    for batch in batches:
        count = batch["targets"].ne(-100).sum().item()
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss * count
        loss.backward()
        tokens, total = tokens + count, total + loss.item()
    for p in model.parameters():
        if p.grad is not None:
            p.grad /= tokens
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total / tokens


def one_backward(model, batches, optimizer, max_norm):
    """All losses in one sum, one backward pass. More memory, the same step."""
    counts = torch.tensor([float((batch["targets"] >= 0).sum()) for batch in batches])
    losses = torch.stack([model(b["input_ids"], b["images"], targets=b["targets"]).loss for b in batches])
    loss = (losses * counts).sum() / counts.sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], max_norm)
    optimizer.step()
    return loss.detach()


# -- training.resume ---------------------------------------------------------------------------------------------------


def resume_with_a_loop(stop, model, optimizer, batch_of, lr_of, saved=None):
    saved = saved or {"done": 0, "parts": None}
    step = saved["done"]
    if saved["parts"] is not None:
        for part, state in zip((model, optimizer), saved["parts"], strict=True):
            part.load_state_dict(state)
        torch.random.set_rng_state(saved["rng"])
    while step < stop:
        optimizer.zero_grad()
        x, y = batch_of(step)
        ((model(x)[:, 0] - y) ** 2).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        optimizer.step()
        step += 1
    parts = [copy.deepcopy(part.state_dict()) for part in (model, optimizer)]
    return {"done": step, "parts": parts, "rng": torch.random.get_rng_state()}


def resume_by_names(stop, model, optimizer, batch_of, lr_of, saved=None):
    start = saved["step"] if saved else 0
    if saved:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(saved["weights"][name])
        optimizer.load_state_dict(saved["adam"])
    generator = torch.default_generator
    if saved:
        generator.set_state(saved["generator"])
    for step in range(start, stop):
        optimizer.param_groups[0]["lr"] = lr_of(step)
        x, y = batch_of(step)
        optimizer.zero_grad()
        F.mse_loss(model(x).flatten(), y).backward()
        optimizer.step()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"step": stop, "weights": weights, "adam": optimizer.state_dict(), "generator": generator.get_state()}


# -- training.paired_difference ----------------------------------------------------------------------------------------


def paired_by_statistics(before, after):
    t = [None, 12.706, 4.303, 3.182, 2.776, 2.571]
    d = [y - x for x, y in zip(before, after, strict=True)]
    half = t[len(d) - 1] * statistics.stdev(d) / len(d) ** 0.5
    return statistics.fmean(d), statistics.fmean(d) - half, statistics.fmean(d) + half


def paired_by_numpy(before, after):
    t = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645}
    d = np.subtract(after, before)
    error = d.std(ddof=1) / np.sqrt(d.size)
    return d.mean(), d.mean() - t[d.size - 1] * error, d.mean() + t[d.size - 1] * error


VERSIONS = {
    "training.get_lr": (lr_by_interpolation, lr_by_torch),
    "training.clip_by_norm": (clip_one_long_vector, clip_by_torch),
    "training.adamw_step": (adamw_by_lerp, adamw_by_torch),
    "training.param_groups": (three_groups, one_group_each),
    "training.overfit_one_batch": (knows_all_answers, memorises),
    "training.train_step": (sums_then_divides, one_backward),
    "training.resume": (resume_with_a_loop, resume_by_names),
    "training.paired_difference": (paired_by_statistics, paired_by_numpy),
}
