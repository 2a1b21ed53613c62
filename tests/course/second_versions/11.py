"""Chapter 11: each exercise solved in other ways."""

from __future__ import annotations

import copy
import math
import re

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks


def hours_step_by_step(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
    a_sample = vision_flops
    for _ in range(tokens):
        a_sample += token_flops
    per_second = 1e12 * tflops * utilisation
    if sparse:
        per_second *= 0.5
    return (a_sample + 2 * a_sample) * samples / per_second / 60 / 60


def hours_in_samples(vision_flops, token_flops, tokens, samples, tflops, sparse, utilisation):
    rate = utilisation * (tflops / 2 if sparse else tflops) * 1e12 / (3 * (vision_flops + tokens * token_flops))
    return samples / rate / 3600


def memory_by_loop(model, rows, row_bytes):
    parts, seen = [0, 0, 0], set()
    for module in model.modules():
        for p in module._parameters.values():
            if p is None or id(p) in seen:
                continue
            seen.add(id(p))
            parts[0] += p.nelement() * p.element_size()
            if p.requires_grad:
                parts[1] += p.nelement() * 4
                parts[2] += p.nelement() * (8 if p.dtype in (torch.float32, torch.float64) else 12)
    return tuple(n / 1024**3 for n in (*parts, rows * row_bytes))


def memory_in_sets(model, rows, row_bytes):
    narrow = [p for p in model.parameters() if p.dtype == torch.bfloat16 and p.requires_grad]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * torch.finfo(p.dtype).bits // 8 for p in model.parameters())
    copies = sum(p.numel() for p in narrow)
    return (weights / 2**30, trained * 4 / 2**30, (trained * 8 + copies * 4) / 2**30, row_bytes * rows / 2**30)


def kept_in_a_list(model, x):
    tensors = []

    def pack(tensor):
        tensors.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    own = [p.untyped_storage().data_ptr() for p in model.parameters()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    del output
    return sum(size for place, size in storages.items() if place not in own)


def kept_through_the_graph(model, x):
    seen, total = {p.data_ptr() for p in model.parameters()}, [0]

    class Keep:
        def __call__(self, tensor):
            place = tensor.untyped_storage().data_ptr()
            if place not in seen:
                seen.add(place)
                total[0] += len(tensor.untyped_storage())
            return tensor

    with torch.enable_grad(), saved_tensors_hooks(Keep(), lambda tensor: tensor):
        loss = model(x).sum()
    loss.backward()
    return total[0]


def names_by_substitution(tensors, num_blocks):
    rules = [
        (r"^vision_model\.embeddings\.patch_embedding\.", "patch_embedding.conv."),
        (r"^vision_model\.post_layernorm\.", "layer_norm."),
        (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.ln\2."),
        (r"^vision_model\.encoder\.layers\.(\d+)\.mlp\.fc([12])\.", r"blocks.\1.mlp.fc\2."),
        (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.out_proj."),
    ]
    ours, stacks = {}, {}
    for name, tensor in tensors.items():
        if re.match(r"text_model\.|logit_|vision_model\.head\.", name):
            continue
        if name == "vision_model.embeddings.position_embedding.weight":
            ours["patch_embedding.position_embedding"] = tensor.unsqueeze(0)
            continue
        third = re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if third:
            stacks.setdefault(f"blocks.{third[1]}.attn.qkv_proj.{third[3]}", {})[third[2]] = tensor
            continue
        for old, new in rules:
            if re.match(old, name):
                ours[re.sub(old, new, name)] = tensor
                break
        else:
            raise ValueError(f"{name} has no place in this model")
    for name, parts in stacks.items():
        if len(parts) < 3:
            raise ValueError(f"{name} needs q_proj, k_proj and v_proj; there are only {sorted(parts)}")
        ours[name] = torch.vstack([parts[w][..., None] if parts[w].ndim == 1 else parts[w] for w in "qkv"])
        if parts["q"].ndim == 1:
            ours[name] = ours[name][:, 0]
    return ours


def names_by_lookup(tensors, num_blocks):
    wanted = {
        "patch_embedding.conv": "embeddings.patch_embedding",
        "layer_norm": "post_layernorm",
    }
    for i in range(num_blocks):
        for ours, theirs in (("ln1", "layer_norm1"), ("ln2", "layer_norm2"), ("mlp.fc1", "mlp.fc1")):
            wanted[f"blocks.{i}.{ours}"] = f"encoder.layers.{i}.{theirs}"
        wanted[f"blocks.{i}.mlp.fc2"] = f"encoder.layers.{i}.mlp.fc2"
        wanted[f"blocks.{i}.attn.out_proj"] = f"encoder.layers.{i}.self_attn.out_proj"
    out, used = {}, set()

    def take(name):
        name = f"vision_model.{name}"
        if name not in tensors:
            raise ValueError(f"the file lacks {name}")
        used.add(name)
        return tensors[name]

    for part in ("weight", "bias"):
        for ours, theirs in wanted.items():
            out[f"{ours}.{part}"] = take(f"{theirs}.{part}")
        for i in range(num_blocks):
            rows = [take(f"encoder.layers.{i}.self_attn.{w}_proj.{part}") for w in ("q", "k", "v")]
            out[f"blocks.{i}.attn.qkv_proj.{part}"] = torch.cat(rows)
    out["patch_embedding.position_embedding"] = take("embeddings.position_embedding.weight")[None]
    unused = [n for n in tensors if n.startswith("vision_model.") and ".head." not in n and n not in used]
    if unused:
        raise ValueError(f"these tensors are not used: {unused}")
    return out


def compares_the_largest(ours, theirs):
    torch.manual_seed(3)
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    with torch.inference_mode():
        difference = (ours(images) - theirs(images)).abs()
    return difference.max().item() < 1e-3


def several_images(ours, theirs):
    for seed in range(3):
        image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        try:
            torch.testing.assert_close(ours(image), theirs(image), atol=1e-4, rtol=1e-4)
        except AssertionError:
            return False
    return True


def extends_in_place_of_old(embedding, head, new_tokens, multiple):
    needed = embedding.num_embeddings + new_tokens
    while needed % multiple:
        needed += 1
    dim, tied = embedding.embedding_dim, embedding.weight is head.weight
    new_embedding, new_head = nn.Embedding(needed, dim), nn.Linear(dim, needed, bias=False)
    with torch.no_grad():
        for new, old in ((new_embedding, embedding), (new_head, head)):
            new.weight[:] = old.weight.mean(dim=0)
            new.weight[: len(old.weight)] = old.weight
    if tied:
        new_head.weight = new_embedding.weight
    return new_embedding, new_head


def extends_the_head_first(embedding, head, new_tokens, multiple):
    rows = math.ceil((embedding.num_embeddings + new_tokens) / multiple) * multiple

    def grown(weight):
        weight = weight.detach()
        mean = weight.sum(0) / weight.shape[0]
        return nn.Parameter(torch.cat([weight, mean.repeat(rows - weight.shape[0], 1)]))

    big_head = nn.Linear(head.in_features, rows, bias=False)
    big_head.weight = grown(head.weight)
    weight = big_head.weight if head.weight is embedding.weight else grown(embedding.weight)
    big = nn.Embedding(rows, embedding.embedding_dim)
    big.weight = weight
    return big, big_head


def loss_by_share(means, counts, all_reduce, world):
    shares = counts / all_reduce(counts.sum())
    return world * torch.dot(shares, means)


def loss_by_average_count(means, counts, all_reduce, world):
    average = all_reduce(torch.tensor([float(n) for n in counts]).sum()) / world
    loss = 0.0
    for mean, count in zip(means, counts, strict=True):
        loss = loss + mean * (count / average)
    return loss


class LoRAByFunctions(nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.rank, self.alpha = base, rank, alpha
        for p in self.base.parameters():
            p.requires_grad = False
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        low = torch.nn.functional.linear(x, self.A)
        return self.base(x) + torch.nn.functional.linear(low, self.B) * self.alpha / self.rank

    def merge(self):
        merged = copy.deepcopy(self.base)
        merged.weight.data = merged.weight.data + (self.B.data @ self.A.data) * (self.alpha / self.rank)
        return merged


class LoRAOnWeights(nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        base.requires_grad_(False)
        self.A = nn.Parameter(0.02 * torch.randn(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.factor = alpha / rank

    def weight(self):
        return self.base.weight + self.factor * torch.einsum("or,ri->oi", self.B, self.A)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight(), self.base.bias)

    def merge(self):
        out, into = self.base.weight.shape
        layer = nn.Linear(into, out, bias=self.base.bias is not None)
        state = {"weight": self.weight().detach()}
        if self.base.bias is not None:
            state["bias"] = self.base.bias.detach()
        layer.load_state_dict(state)
        return layer


def newest_by_recursion(folder):
    def number(path):
        digits = path.name.removeprefix("step_").removesuffix(".pt")
        return int(digits) if path.name == f"step_{digits}.pt" and digits.isdigit() else -1

    def first_whole(paths):
        if not paths:
            return None
        try:
            return torch.load(paths[0], weights_only=True)
        except Exception as error:
            print(paths[0], error)
            return first_whole(paths[1:])

    return first_whole(sorted((p for p in folder.glob("*") if number(p) >= 0), key=number, reverse=True))


def newest_by_trying_all(folder):
    best = None
    for path in folder.glob("step_*.pt"):
        if not path.stem[len("step_") :].isdecimal():
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (EOFError, RuntimeError, OSError, ValueError, Exception):
            continue
        if best is None or state["step"] > best["step"]:
            best = state
    return best


def card_in_one_go(scores, blind, chosen_on, scored_on):
    if chosen_on == scored_on or set(scores) - set(blind):
        raise ValueError("no card for this")
    z, rows = 1.96, {}
    for kind in scores:
        right, n = scores[kind]
        mid = (right + z**2 / 2) / (n + z**2)
        half = z / (n + z**2) * math.sqrt(right * (n - right) / n + z**2 / 4)
        rows[kind] = (right / n, max(0.0, mid - half), min(1.0, mid + half), blind[kind][0] / blind[kind][1])
    return rows


def card_by_roots(scores, blind, chosen_on, scored_on):
    """Wilson's ends are the roots of (share - p)^2 = z^2 p (1 - p) / n."""
    if chosen_on == scored_on:
        raise ValueError("chosen on the split that is reported")
    rows = {}
    for kind, (right, n) in scores.items():
        if kind not in blind:
            raise ValueError(f"{kind} has no blind score")
        share, z2 = right / n, 1.96**2
        a, b, c = 1 + z2 / n, -(2 * share + z2 / n), share**2
        root = math.sqrt(max(0.0, b * b - 4 * a * c))
        dark, of = blind[kind]
        rows[kind] = (share, (-b - root) / (2 * a), (-b + root) / (2 * a), dark / of)
    return rows


VERSIONS = {
    "full.flops_to_hours": (hours_step_by_step, hours_in_samples),
    "full.memory_plan": (memory_by_loop, memory_in_sets),
    "full.activation_bytes": (kept_in_a_list, kept_through_the_graph),
    "full.map_names": (names_by_substitution, names_by_lookup),
    "full.parity_test": (compares_the_largest, several_images),
    "full.extend_embeddings": (extends_in_place_of_old, extends_the_head_first),
    "full.ddp_loss_scale": (loss_by_share, loss_by_average_count),
    "full.lora_linear": (LoRAByFunctions, LoRAOnWeights),
    "full.resume_after_disconnect": (newest_by_recursion, newest_by_trying_all),
    "full.model_card_numbers": (card_in_one_go, card_by_roots),
}
