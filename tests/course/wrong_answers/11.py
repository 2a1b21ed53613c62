"""Chapter 11: answers that people write before they know better, and what the check should say of each."""

from __future__ import annotations

import copy
import math
import re

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

# -- full.flops_to_hours -----------------------------------------------------------------------------------------------


def forward_alone(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
    peak = tflops * 1e12 * utilisation
    if sparse:
        peak /= 2
    return samples * (vision_flops + tokens * token_flops) / peak / 3600


def image_for_each_token(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
    peak = tflops * 1e12 * (0.5 if sparse else 1)
    return 3 * samples * tokens * (vision_flops + token_flops) / peak / utilisation / 3600


def believes_the_sheet(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
    return 3 * samples * (vision_flops + tokens * token_flops) / (tflops * 1e12 * utilisation * 3600)


def in_seconds(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
    peak = tflops * 1e12 * (0.5 if sparse else 1)
    return 3 * samples * (vision_flops + tokens * token_flops) / (peak * utilisation)


def faster_when_idle(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
    peak = tflops * 1e12 * (0.5 if sparse else 1)
    return 3 * samples * (vision_flops + tokens * token_flops) / peak * utilisation / 3600


def at_the_peak(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
    peak = tflops * 1e12 * (0.5 if sparse else 1)
    return 3 * samples * (vision_flops + tokens * token_flops) / peak / 3600


# -- full.memory_plan --------------------------------------------------------------------------------------------------


def by_state_dict(model, rows, row_bytes):
    weights = gradients = optimizer = 0
    for p in model.state_dict(keep_vars=True).values():
        weights += p.nelement() * p.element_size()
        if p.requires_grad:
            gradients += 4 * p.nelement()
            optimizer += (12 if p.element_size() == 2 else 8) * p.nelement()
    return weights / 2**30, gradients / 2**30, optimizer / 2**30, rows * row_bytes / 2**30


def everything_is_trained(model, rows, row_bytes):
    ps = list(model.parameters())
    weights = sum(p.nelement() * p.element_size() for p in ps)
    numbers = sum(p.nelement() for p in ps)
    narrow = sum(p.nelement() for p in ps if p.dtype != torch.float32)
    return weights / 2**30, 4 * numbers / 2**30, (8 * numbers + 4 * narrow) / 2**30, rows * row_bytes / 2**30


def all_in_bfloat16(model, rows, row_bytes):
    ps = list(model.parameters())
    weights = sum(p.nelement() * p.element_size() for p in ps)
    trained = sum(p.nelement() * p.element_size() for p in ps if p.requires_grad)
    return weights / 2**30, trained / 2**30, 2 * trained / 2**30, rows * row_bytes / 2**30


def no_masters(model, rows, row_bytes):
    weights = sum(p.nelement() * p.element_size() for p in model.parameters())
    n = sum(p.nelement() for p in model.parameters() if p.requires_grad)
    return weights / 2**30, 4 * n / 2**30, 8 * n / 2**30, rows * row_bytes / 2**30


def one_row(model, rows, row_bytes):
    weights = sum(p.nelement() * p.element_size() for p in model.parameters())
    n = sum(p.nelement() for p in model.parameters() if p.requires_grad)
    m = sum(p.nelement() for p in model.parameters() if p.requires_grad and p.dtype != torch.float32)
    return weights / 2**30, 4 * n / 2**30, (8 * n + 4 * m) / 2**30, row_bytes / 2**30


def gigabytes(model, rows, row_bytes):
    weights = sum(p.nelement() * p.element_size() for p in model.parameters())
    n = sum(p.nelement() for p in model.parameters() if p.requires_grad)
    m = sum(p.nelement() for p in model.parameters() if p.requires_grad and p.dtype != torch.float32)
    return weights / 1e9, 4 * n / 1e9, (8 * n + 4 * m) / 1e9, rows * row_bytes / 1e9


# -- full.activation_bytes ---------------------------------------------------------------------------------------------


def all_that_is_packed(model, x):
    total = 0

    def pack(t):
        nonlocal total
        total += t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    del y
    return total


def weights_once(model, x):
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    del y
    return sum(seen.values())


def numbers_not_bytes(model, x):
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes() // t.element_size()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    del y
    return sum(seen.values())


def outputs_of_modules(model, x):
    total = 0

    def note(module, inputs, output):
        nonlocal total
        total += output.nelement() * output.element_size()

    handles = [m.register_forward_hook(note) for m in model.modules() if len(list(m.children())) == 0]
    model(x)
    for h in handles:
        h.remove()
    return total


def twice_where_used_twice(model, x):
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes = []

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            sizes.append(t.untyped_storage().nbytes())
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    del y
    return sum(sizes)


def size_of_the_view(model, x):
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            seen[t.untyped_storage().data_ptr()] = t.nelement() * t.element_size()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    del y
    return sum(seen.values())


# -- full.map_names ----------------------------------------------------------------------------------------------------


def _renamed(tensors, num_blocks, order="qkv", dim=0, turn=False, strict=True, norms="12", lead=True, tower=True):
    left = dict(tensors)
    for name in list(left):
        if tower and name.startswith(("text_model.", "logit_", "vision_model.head.")):
            del left[name]
    ours = {}
    table = [
        ("vision_model.embeddings.patch_embedding.weight", "patch_embedding.conv.weight"),
        ("vision_model.embeddings.patch_embedding.bias", "patch_embedding.conv.bias"),
        ("vision_model.post_layernorm.weight", "layer_norm.weight"),
        ("vision_model.post_layernorm.bias", "layer_norm.bias"),
    ]
    for i in range(num_blocks):
        for part in ("weight", "bias"):
            layer = f"vision_model.encoder.layers.{i}."
            table.append((f"{layer}layer_norm{norms[0]}.{part}", f"blocks.{i}.ln1.{part}"))
            table.append((f"{layer}layer_norm{norms[1]}.{part}", f"blocks.{i}.ln2.{part}"))
            table.append((f"{layer}self_attn.out_proj.{part}", f"blocks.{i}.attn.out_proj.{part}"))
            table.append((f"{layer}mlp.fc1.{part}", f"blocks.{i}.mlp.fc1.{part}"))
            table.append((f"{layer}mlp.fc2.{part}", f"blocks.{i}.mlp.fc2.{part}"))
            three = [f"{layer}self_attn.{letter}_proj.{part}" for letter in order]
            if all(name in left for name in three):
                pieces = [left.pop(name) for name in three]
                if turn and part == "weight":
                    pieces = [p.t().contiguous() for p in pieces]
                ours[f"blocks.{i}.attn.qkv_proj.{part}"] = torch.cat(pieces, dim if part == "weight" else 0)
    for theirs, mine in table:
        ours[mine] = left.pop(theirs)
        if turn and ours[mine].ndim == 2:
            ours[mine] = ours[mine].t()
    positions = left.pop("vision_model.embeddings.position_embedding.weight")
    ours["patch_embedding.position_embedding"] = positions.unsqueeze(0) if lead else positions
    if strict and left:
        raise ValueError(f"unexpected: {sorted(left)}")
    return ours


def keys_first(tensors, num_blocks):
    return _renamed(tensors, num_blocks, order="kqv")


def side_by_side(tensors, num_blocks):
    return _renamed(tensors, num_blocks, dim=1)


def turned(tensors, num_blocks):
    return _renamed(tensors, num_blocks, turn=True)


def not_strict(tensors, num_blocks):
    return _renamed(tensors, num_blocks, strict=False)


def other_norms(tensors, num_blocks):
    return _renamed(tensors, num_blocks, norms="21")


def no_leading_one(tensors, num_blocks):
    return _renamed(tensors, num_blocks, lead=False)


def refuses_the_text_tower(tensors, num_blocks):
    return _renamed(tensors, num_blocks, tower=False)


# -- full.parity_test --------------------------------------------------------------------------------------------------


def by_shapes(ours, theirs):
    x = torch.randn(2, 3, 8, 8)
    return ours(x).shape == theirs(x).shape


def bit_by_bit(ours, theirs):
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        return torch.equal(ours(x), theirs(x))


def in_grey(ours, theirs):
    x = torch.randn(2, 1, 8, 8).repeat(1, 3, 1, 1)
    with torch.no_grad():
        return torch.allclose(ours(x), theirs(x), atol=1e-4)


def in_black(ours, theirs):
    x = torch.zeros(1, 3, 8, 8)
    with torch.no_grad():
        return torch.allclose(ours(x), theirs(x), atol=1e-4)


def by_means(ours, theirs):
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        return torch.allclose(ours(x).mean(1), theirs(x).mean(1), atol=1e-4)


def by_counts(ours, theirs):
    a, b = (sum(p.numel() for p in m.parameters()) for m in (ours, theirs))
    return a == b


def generous(ours, theirs):
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        return bool((ours(x) - theirs(x)).abs().max() < 1.0)


# -- full.extend_embeddings --------------------------------------------------------------------------------------------


def _wider(embedding, head, new_tokens, multiple, start="mean", tie="keep", rows=None, frozen=False):
    old, dim = embedding.weight.shape
    total = rows if rows is not None else math.ceil((old + new_tokens) / multiple) * multiple
    e, h = nn.Embedding(total, dim), nn.Linear(dim, total, bias=False)
    with torch.no_grad():
        for new, source in ((e, embedding), (h, head)):
            new.weight[:old] = source.weight
            if start == "mean":
                new.weight[old:] = source.weight.mean(dim=0)
            if start == "zero":
                new.weight[old:] = 0
            if start == "random":
                new.weight[old:] = torch.randn(total - old, dim)
    if tie == "always" or (tie == "keep" and head.weight is embedding.weight):
        h.weight = e.weight
    if frozen:
        e.requires_grad_(False)
    return e, h


def forgets_the_tie(embedding, head, new_tokens, multiple):
    return _wider(embedding, head, new_tokens, multiple, tie="never")


def ties_everything(embedding, head, new_tokens, multiple):
    return _wider(embedding, head, new_tokens, multiple, tie="always")


def begins_at_zero(embedding, head, new_tokens, multiple):
    return _wider(embedding, head, new_tokens, multiple, start="zero")


def does_not_round(embedding, head, new_tokens, multiple):
    return _wider(embedding, head, new_tokens, multiple, rows=len(embedding.weight) + new_tokens)


def one_block_too_many(embedding, head, new_tokens, multiple):
    n = embedding.num_embeddings + new_tokens
    return _wider(embedding, head, new_tokens, multiple, rows=n - n % multiple + multiple)


def old_rows_rounded(embedding, head, new_tokens, multiple):
    n = math.ceil(embedding.num_embeddings / multiple) * multiple + new_tokens
    return _wider(embedding, head, new_tokens, multiple, rows=n)


def head_of_before(embedding, head, new_tokens, multiple):
    larger, _ = _wider(embedding, head, new_tokens, multiple)
    return larger, head


# -- full.ddp_loss_scale -----------------------------------------------------------------------------------------------


def as_it_was(means, counts, all_reduce, world):
    return sum(means) / len(means)


def own_tokens(means, counts, all_reduce, world):
    weights = counts / counts.sum()
    return (weights * means).sum()


def forgets_ddp(means, counts, all_reduce, world):
    return torch.dot(means, counts) / all_reduce(counts.sum())


def world_twice(means, counts, all_reduce, world):
    total = all_reduce(counts.sum()) / world
    return torch.dot(means, counts) / total * world


def divides_by_world(means, counts, all_reduce, world):
    total = all_reduce(counts.sum())
    return torch.dot(means, counts) / (total * world)


def reduces_the_loss(means, counts, all_reduce, world):
    both = all_reduce(torch.stack([torch.dot(means, counts), counts.sum()]))
    return both[0] / both[1]


def mean_over_steps(means, counts, all_reduce, world):
    return torch.dot(means, counts) * world / all_reduce(counts.sum()) / len(means)


# -- full.lora_linear --------------------------------------------------------------------------------------------------


class _Adapter(nn.Module):
    a_start, b_start, frozen, keeps_bias, turned = "random", "zero", True, True, False

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        for p in base.parameters():
            p.requires_grad = not self.frozen
        make = {"zero": torch.zeros, "random": torch.randn}
        self.A = nn.Parameter(make[self.a_start](rank, base.in_features))
        self.B = nn.Parameter(make[self.b_start](base.out_features, rank))
        self.alpha, self.rank = alpha, rank

    def factor(self):
        return self.alpha / self.rank

    def forward(self, x):
        return self.base(x) + nn.functional.linear(nn.functional.linear(x, self.A), self.B) * self.factor()

    def delta(self):
        return self.factor() * (self.B @ self.A)

    def merge(self):
        merged = copy.deepcopy(self.base)
        with torch.no_grad():
            merged.weight += self.delta()
            if not self.keeps_bias and merged.bias is not None:
                merged.bias.zero_()
        return merged


class BothRandom(_Adapter):
    b_start = "random"


class BothZero(_Adapter):
    a_start = "zero"


class NoScale(_Adapter):
    def factor(self):
        return 1.0


class ScaledByAlpha(_Adapter):
    def factor(self):
        return self.alpha


class TrainsTheBase(_Adapter):
    frozen = False


class MergesWithoutScale(_Adapter):
    def delta(self):
        return self.B @ self.A


class LosesTheBias(_Adapter):
    keeps_bias = False


# -- full.resume_after_disconnect --------------------------------------------------------------------------------------


def last_by_name(folder):
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        if re.fullmatch(r"step_[0-9]+\.pt", path.name):
            try:
                return torch.load(path, weights_only=True)
            except Exception:
                continue
    return None


def last_by_date(folder):
    paths = [p for p in folder.glob("*.pt") if re.fullmatch(r"step_[0-9]+\.pt", p.name)]
    for path in sorted(paths, key=lambda p: -p.stat().st_mtime):
        try:
            return torch.load(path, weights_only=True)
        except Exception:
            pass
    return None


def gives_up(folder):
    paths = [p for p in folder.glob("*.pt") if re.fullmatch(r"step_[0-9]+\.pt", p.name)]
    if not paths:
        return None
    newest = max(paths, key=lambda p: int(p.stem.split("_")[1]))
    try:
        return torch.load(newest, weights_only=True)
    except Exception:
        return None


def crashes_on_half_a_file(folder):
    paths = [p for p in folder.glob("*.pt") if re.fullmatch(r"step_[0-9]+\.pt", p.name)]
    if not paths:
        return None
    return torch.load(max(paths, key=lambda p: int(p.stem.split("_")[1])), weights_only=True)


def crashes_at_the_first_start(folder):
    paths = [p for p in folder.iterdir() if re.fullmatch(r"step_[0-9]+\.pt", p.name)]
    paths.sort(key=lambda p: int(p.stem[5:]))
    newest = paths[-1]
    for path in [newest, *paths[-2::-1]]:
        try:
            return torch.load(path, weights_only=True)
        except Exception:
            pass
    return None


def takes_the_copy(folder):
    paths = [p for p in folder.iterdir() if p.name.startswith("step_")]
    paths.sort(key=lambda p: (int(re.search(r"\d+", p.name).group()), len(p.name)), reverse=True)
    for path in paths:
        try:
            return torch.load(path, weights_only=True)
        except Exception:
            pass
    return None


def takes_the_first(folder):
    paths = [p for p in folder.iterdir() if re.fullmatch(r"step_[0-9]+\.pt", p.name)]
    for path in sorted(paths, key=lambda p: int(p.stem[5:])):
        try:
            return torch.load(path, weights_only=True)
        except Exception:
            pass
    return None


# -- full.model_card_numbers -------------------------------------------------------------------------------------------


def _card(scores, blind, chosen_on, scored_on, method="wilson", z=1.96, refuse=True, need_blind=True, last="blind"):
    if refuse and chosen_on == scored_on:
        raise ValueError("chosen on the test split")
    if need_blind and not set(scores) <= set(blind):
        raise ValueError("a blind score is missing")
    table = {}
    for kind, (right, n) in scores.items():
        p = right / n
        if method == "wald":
            half = z * (p * (1 - p) / n) ** 0.5
            low, high = p - half, p + half
        else:
            mid = (right + z**2 / 2) / (n + z**2)
            half = z / (n + z**2) * (right * (n - right) / n + z**2 / 4) ** 0.5
            low, high = mid - half, mid + half
        b, m = blind.get(kind, (0, 1))
        table[kind] = (p, max(0.0, low) if method == "wilson" else low, min(1.0, high) if method == "wilson" else high)
        table[kind] += ({"blind": b / m, "gap": p - b / m, "n": b / n}[last],)
    return table


def wald(scores, blind, chosen_on, scored_on):
    return _card(scores, blind, chosen_on, scored_on, method="wald")


def one_standard_error(scores, blind, chosen_on, scored_on):
    return _card(scores, blind, chosen_on, scored_on, z=1.0)


def in_percent(scores, blind, chosen_on, scored_on):
    return {k: tuple(100 * x for x in v) for k, v in _card(scores, blind, chosen_on, scored_on).items()}


def chosen_on_the_test(scores, blind, chosen_on, scored_on):
    return _card(scores, blind, chosen_on, scored_on, refuse=False)


def blind_is_zero(scores, blind, chosen_on, scored_on):
    return _card(scores, blind, chosen_on, scored_on, need_blind=False)


def gap_to_blind(scores, blind, chosen_on, scored_on):
    return _card(scores, blind, chosen_on, scored_on, last="gap")


def blind_over_the_wrong_total(scores, blind, chosen_on, scored_on):
    return _card(scores, blind, chosen_on, scored_on, last="n")


WRONG = {
    "full.flops_to_hours": [
        (forward_alone, "forward pass alone"),
        (image_for_each_token, "per picture"),
        (believes_the_sheet, "sparsity"),
        (in_seconds, "seconds"),
        (faster_when_idle, "longer, not shorter"),
        (at_the_peak, "utilisation is missing"),
    ],
    "full.memory_plan": [
        (by_state_dict, "tied head"),
        (everything_is_trained, "Frozen"),
        (all_in_bfloat16, "own format"),
        (no_masters, "float32 copies"),
        (one_row, "one row"),
        (gigabytes, "GiB"),
    ],
    "full.activation_bytes": [
        (all_that_is_packed, "counted twice"),
        (weights_once, "weights are counted"),
        (numbers_not_bytes, "not bytes"),
        (outputs_of_modules, "outputs of the modules"),
        (twice_where_used_twice, "counted twice"),
        (size_of_the_view, "view"),
    ],
    "full.map_names": [
        (keys_first, "k is stacked before q"),
        (side_by_side, "side by side"),
        (turned, "transposed"),
        (not_strict, "strict=False"),
        (other_norms, "norms are exchanged"),
        (no_leading_one, "leading dimension"),
        (refuses_the_text_tower, "refuses a whole SigLIP"),
    ],
    "full.parity_test": [
        (by_shapes, "every encoder"),
        (bit_by_bit, "bit by bit"),
        (in_grey, "grey"),
        (in_black, "one colour"),
        (by_means, "mean over the patches"),
        (by_counts, "every encoder"),
        (generous, "so wide"),
    ],
    "full.extend_embeddings": [
        (forgets_the_tie, "now a copy"),
        (ties_everything, "weights of its own"),
        (begins_at_zero, "are zero"),
        (does_not_round, "not rounded up"),
        (one_block_too_many, "whole multiple too many"),
        (old_rows_rounded, "round the sum"),
        (head_of_before, "as few rows"),
    ],
    "full.ddp_loss_scale": [
        (as_it_was, "mean of means"),
        (own_tokens, "its own tokens"),
        (forgets_ddp, "world times too small"),
        (world_twice, "twice"),
        (divides_by_world, "divides by world"),
        (reduces_the_loss, "reduced, too"),
        (mean_over_steps, "number of micro-batches"),
    ],
    "full.lora_linear": [
        (BothRandom, "random numbers"),
        (BothZero, "both zero"),
        (NoScale, "scale is missing"),
        (ScaledByAlpha, "by alpha, not by"),
        (TrainsTheBase, "base is trained"),
        (MergesWithoutScale, "lacks the scale"),
        (LosesTheBias, "lost the bias"),
    ],
    "full.resume_after_disconnect": [
        (last_by_name, "sorts names"),
        (last_by_date, "date of the file"),
        (gives_up, "starts from nothing"),
        (crashes_on_half_a_file, "ends the search"),
        (crashes_at_the_first_start, "return None"),
        (takes_the_copy, "second copy"),
        (takes_the_first, "lowest step"),
    ],
    "full.model_card_numbers": [
        (wald, "Wald"),
        (one_standard_error, "one standard error"),
        (in_percent, "percentages"),
        (chosen_on_the_test, "chose the checkpoint"),
        (blind_is_zero, "0 blind"),
        (gap_to_blind, "distance"),
        (blind_over_the_wrong_total, "total of its own"),
    ],
}
