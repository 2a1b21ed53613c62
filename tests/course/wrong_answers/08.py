"""Chapter 08: answers that people write before they know better, and what the check should say of each."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F

# -- training.get_lr ---------------------------------------------------------------------------------------------------


def first_step_learns_nothing(step, max_lr, max_steps, warmup_fraction=0.03, min_lr_fraction=0.1):
    warmup = max(1, round(warmup_fraction * max_steps))
    if step < warmup:
        return max_lr * step / warmup
    progress = min(1, (step - warmup) / max(1, max_steps - warmup))
    return max_lr * (min_lr_fraction + (1 - min_lr_fraction) * (1 + math.cos(math.pi * progress)) / 2)


def overshoots(step, max_lr, max_steps, warmup_fraction=0.03, min_lr_fraction=0.1):
    warmup = max(1, round(warmup_fraction * max_steps))
    if step <= warmup:
        return max_lr * (step + 1) / warmup
    progress = min(1, (step - warmup) / max(1, max_steps - warmup))
    return max_lr * (min_lr_fraction + (1 - min_lr_fraction) * (1 + math.cos(math.pi * progress)) / 2)


def cosine_over_the_whole_run(step, max_lr, max_steps, warmup_fraction=0.03, min_lr_fraction=0.1):
    warmup = max(1, round(warmup_fraction * max_steps))
    low = min_lr_fraction * max_lr
    if step < warmup:
        return max_lr * (step + 1) / warmup
    return low + (max_lr - low) * 0.5 * (1 + math.cos(math.pi * min(step, max_steps) / max_steps))


def rises_again(step, max_lr, max_steps, warmup_fraction=0.03, min_lr_fraction=0.1):
    warmup = max(1, round(warmup_fraction * max_steps))
    if step < warmup:
        return max_lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, max_steps - warmup)
    return max_lr * (min_lr_fraction + (1 - min_lr_fraction) * (1 + math.cos(math.pi * progress)) / 2)


def down_to_nothing(step, max_lr, max_steps, warmup_fraction=0.03, min_lr_fraction=0.1):
    warmup = max(1, round(warmup_fraction * max_steps))
    if step < warmup:
        return max_lr * (step + 1) / warmup
    progress = min(1, (step - warmup) / max(1, max_steps - warmup))
    return max_lr * 0.5 * (1 + math.cos(math.pi * progress))


def floor_is_a_rate(step, max_lr, max_steps, warmup_fraction=0.03, min_lr_fraction=0.1):
    warmup = max(1, round(warmup_fraction * max_steps))
    if step < warmup:
        return max_lr * (step + 1) / warmup
    progress = min(1, (step - warmup) / max(1, max_steps - warmup))
    return min_lr_fraction + 0.5 * (max_lr - min_lr_fraction) * (1 + math.cos(math.pi * progress))


# -- training.clip_by_norm ---------------------------------------------------------------------------------------------


def tensor_by_tensor(gradients, max_norm):
    total = math.sqrt(sum(float(g.float().norm()) ** 2 for g in gradients))
    return [(g.float() * min(1.0, max_norm / (float(g.float().norm()) + 1e-6))).to(g.dtype) for g in gradients], total


def clamped(gradients, max_norm):
    total = math.sqrt(sum(float(g.float().norm()) ** 2 for g in gradients))
    return [torch.clamp(g, -max_norm, max_norm) for g in gradients], total


def normalised(gradients, max_norm):
    total = math.sqrt(sum(float(g.float().norm()) ** 2 for g in gradients))
    return [(g.float() * max_norm / (total + 1e-6)).to(g.dtype) for g in gradients], total


def sum_of_norms(gradients, max_norm):
    total = sum(float(g.float().norm()) for g in gradients)
    scale = min(1.0, max_norm / (total + 1e-6))
    return [(g.float() * scale).to(g.dtype) for g in gradients], total


def norm_of_the_clipped(gradients, max_norm):
    total = math.sqrt(sum(float(g.float().norm()) ** 2 for g in gradients))
    scale = min(1.0, max_norm / (total + 1e-6))
    out = [(g.float() * scale).to(g.dtype) for g in gradients]
    return out, math.sqrt(sum(float(g.float().norm()) ** 2 for g in out))


def in_half_precision(gradients, max_norm):
    total = torch.stack([(g * g).sum().sqrt().float() for g in gradients]).square().sum().sqrt()
    scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    return [(g.float() * scale).to(g.dtype) for g in gradients], total


# -- training.adamw_step -----------------------------------------------------------------------------------------------


def adam_with_l2(p, grad, m, v, step, lr, betas, eps, weight_decay):
    grad = grad + weight_decay * p
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad * grad
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return p - lr * m_hat / (v_hat.sqrt() + eps), m, v


def no_correction(p, grad, m, v, step, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad * grad
    return p - lr * (m / (v.sqrt() + eps) + weight_decay * p), m, v


def eps_under_the_root(p, grad, m, v, step, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad * grad
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return p * (1 - lr * weight_decay) - lr * m_hat / torch.sqrt(v_hat + eps), m, v


def decay_without_lr(p, grad, m, v, step, lr, betas, eps, weight_decay):
    p = p * (1 - weight_decay)
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad * grad
    m_hat, v_hat = m / (1 - betas[0] ** step), v / (1 - betas[1] ** step)
    return p - lr * m_hat / (v_hat.sqrt() + eps), m, v


def keeps_the_hats(p, grad, m, v, step, lr, betas, eps, weight_decay):
    m = (betas[0] * m + (1 - betas[0]) * grad) / (1 - betas[0] ** step)
    v = (betas[1] * v + (1 - betas[1]) * grad * grad) / (1 - betas[1] ** step)
    return p * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


def decays_the_result(p, grad, m, v, step, lr, betas, eps, weight_decay):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad * grad
    p = p - lr * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
    return p - lr * weight_decay * p, m, v


# -- training.param_groups ---------------------------------------------------------------------------------------------


def everything_decayed(model, lr_projector, lr_backbones, weight_decay):
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for n, p in trained if "projector" in n], "lr": lr_projector, "weight_decay": weight_decay},
        {"params": [p for n, p in trained if "projector" not in n], "lr": lr_backbones, "weight_decay": weight_decay},
    ]


def all_matrices(model, lr_projector, lr_backbones, weight_decay):
    return [
        {
            "params": [p],
            "lr": lr_projector if name.startswith("projector") else lr_backbones,
            "weight_decay": weight_decay if p.dim() > 1 else 0.0,
        }
        for name, p in model.named_parameters()
        if p.requires_grad
    ]


def frozen_as_well(model, lr_projector, lr_backbones, weight_decay):
    return [
        {
            "params": [p],
            "lr": lr_projector if name.startswith("projector.") else lr_backbones,
            "weight_decay": weight_decay
            if p.ndim == 2 and ("blocks." in name or name.startswith("projector."))
            else 0.0,
        }
        for name, p in model.named_parameters()
    ]


def module_by_module(model, lr_projector, lr_backbones, weight_decay):
    """Walks through modules, and so meets the tied weight in the embedding and in the head."""
    groups = []
    for module_name, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            whole = f"{module_name}.{name}".lstrip(".")
            decayed = p.ndim == 2 and ("blocks." in whole or whole.startswith("projector."))
            lr = lr_projector if whole.startswith("projector.") else lr_backbones
            if p.requires_grad:
                groups.append({"params": [p], "lr": lr, "weight_decay": weight_decay if decayed else 0.0})
    return groups


def rates_exchanged(model, lr_projector, lr_backbones, weight_decay):
    groups = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            lr = lr_backbones if name.startswith("projector.") else lr_projector
            decayed = p.ndim == 2 and ("blocks." in name or name.startswith("projector."))
            groups.setdefault((lr, weight_decay if decayed else 0.0), []).append(p)
    return [{"params": ps, "lr": lr, "weight_decay": wd} for (lr, wd), ps in groups.items()]


# -- training.overfit_one_batch ----------------------------------------------------------------------------------------


def _losses(model, batch, steps=20, lr=0.1):
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        loss.backward()
        optimizer.step()
        yield loss.item()


def the_loss_fell(model, batch):
    losses = list(_losses(model, batch))
    return losses[-1] < losses[0] / 2


def much_too_slow(model, batch):
    return list(_losses(model, batch, lr=1e-4))[-1] < 0.1


def not_above(model, batch):
    return not list(_losses(model, batch))[-1] > 0.1


def never_zero(model, batch):
    return list(_losses(model, batch))[-1] == 0


def it_ran(model, batch):
    for _ in _losses(model, batch, steps=2):
        pass
    return True


def better_than_chance(model, batch):
    return list(_losses(model, batch))[-1] < math.log(6)


# -- training.train_step -----------------------------------------------------------------------------------------------


def _loss(model, batch):
    return model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss


def as_in_many_tutorials(model, batches, optimizer, max_norm):
    optimizer.zero_grad()
    total = 0.0
    for batch in batches:
        loss = _loss(model, batch) / len(batches)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return total


def zeroes_in_the_loop(model, batches, optimizer, max_norm):
    counts = [(batch["targets"] != -100).sum() for batch in batches]
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        optimizer.zero_grad()
        loss = _loss(model, batch) * count / sum(counts)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return total


def clips_in_the_loop(model, batches, optimizer, max_norm):
    counts = [int((batch["targets"] != -100).sum()) for batch in batches]
    optimizer.zero_grad()
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = _loss(model, batch) * (count / sum(counts))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        total += loss.item()
    optimizer.step()
    return total


def counts_positions(model, batches, optimizer, max_norm):
    counts = [batch["targets"].numel() for batch in batches]
    optimizer.zero_grad()
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = _loss(model, batch) * (count / sum(counts))
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return total


def forgets_to_clip(model, batches, optimizer, max_norm):
    counts = [int((batch["targets"] != -100).sum()) for batch in batches]
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        loss = _loss(model, batch) * (count / sum(counts))
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    return total


def adds_up(model, batches, optimizer, max_norm):
    optimizer.zero_grad()
    total = 0.0
    for batch in batches:
        loss = _loss(model, batch)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return total


# -- training.resume ---------------------------------------------------------------------------------------------------


def _train(steps, model, optimizer, batch_of, lr_of, offset=0):
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step - offset)
        x, y = batch_of(step)
        loss = F.mse_loss(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _state(stop, model, optimizer):
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    return {"step": stop, **states}


def weights_and_step(stop, model, optimizer, batch_of, lr_of, saved=None):
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        torch.set_rng_state(saved["random"])
        first = saved["step"]
    _train(range(first, stop), model, optimizer, batch_of, lr_of)
    return _state(stop, model, optimizer)


def forgets_dropout(stop, model, optimizer, batch_of, lr_of, saved=None):
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    _train(range(first, stop), model, optimizer, batch_of, lr_of)
    return _state(stop, model, optimizer)


def skips_one(stop, model, optimizer, batch_of, lr_of, saved=None):
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        first = saved["step"] + 1
    _train(range(first, stop), model, optimizer, batch_of, lr_of)
    return _state(stop, model, optimizer)


def schedule_from_the_start(stop, model, optimizer, batch_of, lr_of, saved=None):
    first = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        first = saved["step"]
    _train(range(first, stop), model, optimizer, batch_of, lr_of, offset=first)
    return _state(stop, model, optimizer)


def begins_again(stop, model, optimizer, batch_of, lr_of, saved=None):
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
    _train(range(stop), model, optimizer, batch_of, lr_of)
    return _state(stop, model, optimizer)


# -- training.paired_difference ----------------------------------------------------------------------------------------

T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}


def normal_factor(before, after):
    d = torch.tensor(after) - torch.tensor(before)
    half = 1.96 * d.std() / len(d) ** 0.5
    return d.mean().item(), (d.mean() - half).item(), (d.mean() + half).item()


def population_spread(before, after):
    d = torch.tensor(after) - torch.tensor(before)
    half = T[len(d) - 1] * d.std(correction=0) / len(d) ** 0.5
    return d.mean().item(), (d.mean() - half).item(), (d.mean() + half).item()


def no_root_of_n(before, after):
    d = torch.tensor(after) - torch.tensor(before)
    half = T[len(d) - 1] * d.std()
    return d.mean().item(), (d.mean() - half).item(), (d.mean() + half).item()


def two_samples(before, after):
    a, b = torch.tensor(before), torch.tensor(after)
    mean = (b.mean() - a.mean()).item()
    half = (T[len(a) - 1] * (a.var() + b.var()).sqrt() / len(a) ** 0.5).item()
    return mean, mean - half, mean + half


def the_other_way(before, after):
    d = torch.tensor(before) - torch.tensor(after)
    half = T[len(d) - 1] * d.std() / len(d) ** 0.5
    return d.mean().item(), (d.mean() - half).item(), (d.mean() + half).item()


WRONG = {
    "training.get_lr": [
        (first_step_learns_nothing, "learning rate of 0"),
        (overshoots, "one step too long"),
        (cosine_over_the_whole_run, "counts from step 0"),
        (rises_again, "rises again"),
        (down_to_nothing, "floor is left out"),
        (floor_is_a_rate, "share of max_lr"),
    ],
    "training.clip_by_norm": [
        (tensor_by_tensor, "its own norm"),
        (clamped, "one by one"),
        (normalised, "scaled *up*"),
        (sum_of_norms, "add the norms"),
        (norm_of_the_clipped, "after clipping"),
        (in_half_precision, "half precision"),
    ],
    "training.adamw_step": [
        (adam_with_l2, "Adam with L2"),
        (no_correction, "Neither moment"),
        (eps_under_the_root, "inside the root"),
        (decay_without_lr, "not multiplied by lr"),
        (keeps_the_hats, "corrected moments"),
        (decays_the_result, "after the step"),
    ],
    "training.param_groups": [
        (everything_decayed, "Everything is decayed"),
        (all_matrices, "patch convolution"),
        (frozen_as_well, "Frozen"),
        (module_by_module, "twice"),
        (rates_exchanged, "exchanged"),
    ],
    "training.overfit_one_batch": [
        (the_loss_fell, "only a bias"),
        (much_too_slow, "no to every model"),
        (not_above, "NaN passes"),
        (never_zero, "no to every model"),
        (it_ran, "yes to every model"),
        (better_than_chance, "its loss falls as well"),
    ],
    "training.train_step": [
        (as_in_many_tutorials, "mean of means"),
        (zeroes_in_the_loop, "inside the loop"),
        (clips_in_the_loop, "clipped by itself"),
        (counts_positions, "all positions"),
        (forgets_to_clip, "not clipped"),
        (adds_up, "without weights"),
    ],
    "training.resume": [
        (weights_and_step, "optimizer starts anew"),
        (forgets_dropout, "dropout drops"),
        (skips_one, "left out at each stop"),
        (schedule_from_the_start, "schedule starts anew"),
        (begins_again, "step 0 again"),
    ],
    "training.paired_difference": [
        (normal_factor, "1.96"),
        (population_spread, "divided by n."),
        (no_root_of_n, "single runs"),
        (two_samples, "nothing in common"),
        (the_other_way, "other way"),
    ],
}
