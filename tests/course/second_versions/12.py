"""Chapter 12 once more, written another way."""

from __future__ import annotations

import einops
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def read_trace(t) -> dict[str, int]:
    """From sizes that stand elsewhere: grids, layers' outputs, parameters' places."""
    grid = t["vision_encoder.patch_embedding.conv"].shape
    logits = next(row for row in t.rows if row.path == "decoder.head")
    q = t["decoder.blocks.0.attn.q_proj"].shape[-1]
    heads = t["decoder.blocks.0.attn"]
    head_dim = q // next(row for row in heads.walk() if row.name == "scaled_dot_product_attention").shape[1]
    return {
        "patches": grid[-1] * grid[-2],
        "image_tokens": t["cat"].inputs[0].shape[1],
        "sequence": logits.shape[1],
        "decoder_blocks": sum(row.path.startswith("decoder.") for row in t.find("SwiGLU")),
        "kv_heads": t["decoder.blocks.0.attn.k_proj"].shape[-1] // head_dim,
    }


class Projector(nn.Module):
    """F.pixel_unshuffle, and the channels put into our order afterwards."""

    def __init__(self, vision_dim: int, language_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(vision_dim)
        self.proj = nn.Linear(factor * vision_dim * factor, language_dim)

    def forward(self, x: Tensor) -> Tensor:
        grid, r = round(x.shape[1] ** 0.5), self.factor
        image = self.norm(x).transpose(1, 2).unflatten(2, (grid, grid))
        tiles = F.pixel_unshuffle(image, r).flatten(2).transpose(1, 2)  # channel by channel
        return self.proj(tiles.unflatten(2, (-1, r * r)).transpose(2, 3).flatten(2))


class SharedHeads(nn.Module):
    """torch's own attention knows groups."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = num_heads, num_kv_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim // num_heads * num_kv_heads, bias=False)
        self.v = nn.Linear(dim, dim // num_heads * num_kv_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        counts = (self.heads, self.kv_heads, self.kv_heads)
        layers = (self.q, self.k, self.v)
        q, k, v = (f(x).unflatten(-1, (n, -1)).transpose(1, 2) for f, n in zip(layers, counts, strict=True))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


class InputSequence(nn.Module):
    """Each part gets its own stretch of the table before they are joined."""

    def __init__(self, vocab_size: int, dim: int, max_positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_positions, dim)

    def forward(self, image_tokens: Tensor, ids: Tensor) -> Tensor:
        n, t = image_tokens.shape[1], ids.shape[1]
        table = self.positions.weight
        return torch.cat([image_tokens + table[:n], self.tokens(ids) + table[n : n + t]], dim=1)


def shape_claims(config) -> dict[str, str]:
    """The text first in the sum, and spaces round the words."""
    r = config.projector.pixel_shuffle_factor
    grid = config.vision.grid_size // r
    width, dim = config.vision.hidden_dim, config.language.hidden_dim
    return {
        "vision_encoder": f" B  {(grid * r) ** 2}  {width} ",
        "pixel_shuffle": f"B {grid}*{grid} {width * r * r}",
        "projector.proj": f"B {grid}*{grid} {dim}",
        "cat": f"B T+{grid}*{grid} {dim}",
        "decoder.head": f"B T+{grid}*{grid} {config.language.vocab_size}",
    }


def flops_shares(config, num_text_tokens: int) -> dict[str, float]:
    """A list of products, each as (part, n, a, b), added up."""
    vision, language, r = config.vision, config.language, config.projector.pixel_shuffle_factor
    n, d, width = vision.num_patches, vision.hidden_dim, language.hidden_dim
    line, kv = n // (r * r) + num_text_tokens, language.num_kv_heads * language.head_dim
    products = [("vision_encoder", n, 3 * vision.patch_size**2, d), ("projector", n // (r * r), d * r * r, width)]
    for _ in range(vision.num_blocks):
        products += [("vision_encoder", n, d, d)] * 4 + [("vision_encoder", n, d, vision.inter_dim)] * 2
        products += [("vision_encoder", n, n, d)] * 2
    for _ in range(language.num_blocks):
        products += [("decoder", line, width, width)] * 2 + [("decoder", line, width, kv)] * 2
        products += [("decoder", line, width, language.inter_dim)] * 3 + [("decoder", line, line, width)] * 2
    products.append(("head", line, width, language.vocab_size))
    sums: dict[str, float] = {}
    for part, a, b, c in products:
        sums[part] = sums.get(part, 0) + a * b * c
    return {part: value / sum(sums.values()) for part, value in sums.items()}


def word_attention(weights: Tensor, word: int, first_image_token: int, grid: int, factor: int) -> Tensor:
    """Patch by patch: which token is it in?"""
    out = torch.zeros(grid, grid)
    for row in range(grid):
        for column in range(grid):
            token = row // factor * (grid // factor) + column // factor
            out[row, column] = weights[:, word, first_image_token + token].mean() / factor**2
    return out


# -- more styles -------------------------------------------------------------------------------------------------------


def read_by_paths(t):
    """Modules alone, by their paths."""
    paths = {row.path for row in t.rows if row.kind == "module"}
    blocks = {path.split(".")[2] for path in paths if path.startswith("decoder.blocks.")}
    keys = t["decoder.blocks.0.attn.k_proj"].shape[-1]
    queries = t["decoder.blocks.0.attn.q_proj"].shape[-1]
    heads = t.find("scaled_dot_product_attention")[-1].inputs[0].shape[1]
    return {
        "patches": t["projector"].inputs[0].shape[1],
        "image_tokens": t["projector"].shape[-2],
        "sequence": t["decoder.norm"].shape[1],
        "decoder_blocks": len(blocks),
        "kv_heads": keys * heads // queries,
    }


def read_backwards(t):
    return dict(reversed(read_by_paths(t).items()))


def read_by_counting(t):
    patches = image = blocks = 0
    for row in t.rows:
        if row.path == "vision_encoder" and not patches:
            _, patches, _ = row.shape
        elif row.path == "projector" and not image:
            _, image, _ = row.shape
        blocks += row.kind == "module" and row.path.endswith(".mlp") and row.path.startswith("decoder")
    q, _k, v = t.find("scaled_dot_product_attention")[-1].inputs
    numbers = [patches, image, q.shape[2], int(blocks), v.shape[-3]]
    return dict(zip(("patches", "image_tokens", "sequence", "decoder_blocks", "kv_heads"), numbers, strict=True))


def read_by_the_text(t):
    image = t["projector.proj"].shape[1]
    text = t["decoder.token_embedding"].shape[1]
    grid = t["Conv2d"].shape[-2:]
    return {
        "patches": int(torch.tensor(grid).prod()),
        "image_tokens": image,
        "sequence": image + text,
        "decoder_blocks": sum(1 for _ in t.find("DecoderBlock")),
        "kv_heads": t.find("scaled_dot_product_attention")[-1].inputs[2].shape[1],
    }


class ProjectorByEinops(nn.Module):
    def __init__(self, vision_dim, language_dim, factor):
        super().__init__()
        self.norm = nn.LayerNorm((vision_dim,))
        self.proj = nn.Linear(in_features=factor * factor * vision_dim, out_features=language_dim, bias=True)
        self.r = factor

    def forward(self, x):
        side = int(x.shape[1] ** 0.5)
        pattern = "b (h i w j) d -> b (h w) (i j d)"
        return self.proj(
            einops.rearrange(self.norm(x), pattern, i=self.r, j=self.r, h=side // self.r, w=side // self.r)
        )


class ProjectorByLoops(nn.Module):
    def __init__(self, vision_dim, language_dim, factor):
        super().__init__()
        self.factor, self.norm = factor, nn.LayerNorm(vision_dim)
        self.proj = nn.Linear(vision_dim * pow(factor, 2), language_dim)

    def forward(self, x):
        side, r = round(x.shape[1] ** 0.5), self.factor
        x = self.norm(x).unflatten(1, (side, side))
        groups = [x[:, i : i + r, j : j + r].flatten(1) for i in range(0, side, r) for j in range(0, side, r)]
        return F.linear(torch.stack(groups, 1), self.proj.weight, self.proj.bias)


class ProjectorByStrides(nn.Module):
    def __init__(self, vision_dim, language_dim, factor):
        super().__init__()
        self.factor, self.norm = factor, nn.LayerNorm(vision_dim)
        self.proj = nn.Linear(vision_dim * factor**2, language_dim)

    def forward(self, x):
        side, r = round(x.shape[1] ** 0.5), self.factor
        x = self.norm(x).unflatten(1, (side, side))
        return self.proj(torch.cat([x[:, i::r, j::r] for i in range(r) for j in range(r)], dim=-1).flatten(1, 2))


class LazyProjector(nn.Module):
    """The width is found at the first call."""

    def __init__(self, vision_dim, language_dim, factor):
        super().__init__()
        self.factor, self.norm = factor, nn.LayerNorm(vision_dim)
        self.proj = nn.LazyLinear(language_dim)
        self.proj.initialize_parameters(torch.empty(1, vision_dim * factor**2))

    def forward(self, x):
        batch, n, dim = x.shape
        side, r = int(n**0.5), self.factor
        x = self.norm(x).view(batch, side // r, r, side // r, r, dim).permute(0, 1, 3, 2, 4, 5)
        return self.proj(x.reshape(batch, n // r**2, dim * r * r))


class _Heads(nn.Module):
    def __init__(self, dim, num_heads, num_kv_heads):
        super().__init__()
        self.n, self.kv, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, self.kv * self.head_dim, bias=False)
        self.v = nn.Linear(dim, self.kv * self.head_dim, bias=False)


class HeadsByExpand(_Heads):
    def forward(self, x):
        batch, length, dim = x.shape
        q = self.q(x).view(batch, length, self.n, self.head_dim).transpose(1, 2)
        k, v = (
            f(x)
            .view(batch, length, self.kv, 1, self.head_dim)
            .expand(-1, -1, -1, self.n // self.kv, -1)
            .flatten(2, 3)
            .transpose(1, 2)
            for f in (self.k, self.v)
        )
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k).div(self.head_dim**0.5)
        return torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), v).reshape(batch, length, dim)


class HeadsByGroups(_Heads):
    """The queries get an axis for their group, and nothing is copied."""

    def forward(self, x):
        q = einops.rearrange(self.q(x), "b t (kv g d) -> b kv g t d", kv=self.kv, d=self.head_dim)
        k, v = (einops.rearrange(f(x), "b t (kv d) -> b kv 1 t d", kv=self.kv) for f in (self.k, self.v))
        weights = (q @ k.mT * self.head_dim**-0.5).softmax(-1)
        return einops.rearrange(weights @ v, "b kv g t d -> b t (kv g d)")


class HeadsByIndex(_Heads):
    def forward(self, x):
        own = torch.arange(self.n, dtype=torch.int32) // (self.n // self.kv)
        q = self.q(x).unflatten(-1, (self.n, -1)).movedim(-2, 1)
        k, v = (f(x).unflatten(-1, (self.kv, -1)).movedim(-2, 1).index_select(1, own) for f in (self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).movedim(1, -2).flatten(-2)


class HeadsByLoops(_Heads):
    def forward(self, x):
        q, k, v = (
            self.q(x).split(self.head_dim, -1),
            self.k(x).split(self.head_dim, -1),
            self.v(x).split(self.head_dim, -1),
        )
        out = []
        for head in range(self.n):
            shared = head * self.kv // self.n
            weights = torch.softmax(q[head] @ k[shared].transpose(1, 2) / self.head_dim**0.5, dim=2)
            out.append(weights @ v[shared])
        return torch.cat(out, dim=-1)


class _Tables(nn.Module):
    def __init__(self, vocab_size, dim, max_positions):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_positions, dim)


class PositionsByEmbedding(_Tables):
    def forward(self, image_tokens, ids):
        x = torch.hstack([image_tokens, self.tokens(ids)])
        places = torch.arange(x.size(1), dtype=torch.int32).expand(len(x), -1)
        return x + self.positions(places)


class PositionsInPlace(_Tables):
    """On a tensor of its own."""

    def forward(self, image_tokens, ids):
        n, t = image_tokens.shape[1], ids.shape[1]
        out = self.positions.weight[: n + t].expand(len(ids), -1, -1).clone()
        out[:, :n] += image_tokens
        out[:, n:] += F.embedding(ids, self.tokens.weight)
        return out


class PositionsByLoop(_Tables):
    def forward(self, image_tokens, ids):
        vectors = [*image_tokens.unbind(1), *self.tokens(ids).unbind(1)]
        return torch.stack([v + self.positions.weight[i] for i, v in enumerate(vectors)], dim=1)


class PositionsByNarrow(_Tables):
    def forward(self, image_tokens, ids):
        x = einops.pack([image_tokens, self.tokens(ids)], "b * d")[0]
        return torch.add(x, self.positions.weight.narrow(0, 0, x.shape[1])[None])


def claims_in_words(config):
    """Formulas that nobody worked out."""
    v, r, m = config.vision, config.projector.pixel_shuffle_factor, config.language
    return {
        "vision_encoder": f"B {v.grid_size}*{v.grid_size} {v.hidden_dim}",
        "pixel_shuffle": f"B {v.num_patches // r**2} {r}*{r}*{v.hidden_dim}",
        "projector.proj": f"B {v.num_patches // r**2} {m.hidden_dim}",
        "cat": f"B {v.num_patches // r**2}+T {m.hidden_dim}",
        "decoder.head": f"B T+{v.num_patches // r**2} {m.vocab_size}",
    }


def claims_by_join(config):
    n = config.vision.num_patches // config.projector.pixel_shuffle_factor**2
    wide, dim = config.projector.pixel_shuffle_factor**2 * config.vision.hidden_dim, config.language.hidden_dim
    shapes = {
        "decoder.head": ("B", f"{n}+T", config.language.vocab_size),
        "cat": ("B", f"{n}+T", dim),
        "projector.proj": ("B", n, dim),
        "pixel_shuffle": ("B", n, wide),
        "vision_encoder": ("B", config.vision.num_patches, config.vision.hidden_dim),
    }
    return {name: " ".join(map(str, shape)) for name, shape in shapes.items()}


def claims_by_percent(config):
    n = config.vision.num_patches // config.projector.pixel_shuffle_factor**2
    v, m = config.vision, config.language
    claims = {}
    claims["vision_encoder"] = "B %d %d" % (v.num_patches, v.hidden_dim)  # noqa: UP031
    claims["pixel_shuffle"] = "B %d %d" % (n, v.hidden_dim * v.num_patches // n)  # noqa: UP031
    claims["projector.proj"] = "B %d %d" % (n, m.hidden_dim)  # noqa: UP031
    claims["cat"] = "B %d+T %d" % (n, m.hidden_dim)  # noqa: UP031
    claims["decoder.head"] = "B %d+T %d" % (n, m.vocab_size)  # noqa: UP031
    return claims


def claims_by_the_grid(config):
    side = config.vision.image_size // config.vision.patch_size // config.projector.pixel_shuffle_factor
    claims = claims_by_join(config)
    return claims | {"cat": f"B T+{side}*{side} {config.language.hidden_dim}"}


def flops_on_meta(config, num_text_tokens):
    """Ask the tracer, on the meta device."""
    from nanovlm import VisionLanguageModel
    from nanovlm.trace import trace

    with torch.device("meta"):
        model = VisionLanguageModel(config)
    size = config.vision.image_size
    t = trace(model, torch.zeros(1, num_text_tokens).long(), torch.zeros(1, 3, size, size), device="meta")
    names = {"vision_encoder": "vision_encoder", "projector": "projector", "decoder": "decoder", "head": "decoder.head"}
    return {name: t[path].flops / t.flops for name, path in names.items()}


def linear(n, a, b):
    return 2 * n * a * b


def flops_by_layers(config, num_text_tokens):
    v, m, r = config.vision, config.language, config.projector.pixel_shuffle_factor
    n, s = v.num_patches, v.num_patches // r**2 + num_text_tokens
    kv = m.num_kv_heads * m.head_dim
    encoder = linear(n, 3 * v.patch_size**2, v.hidden_dim)
    for _ in range(v.num_blocks):
        encoder += linear(n, v.hidden_dim, 3 * v.hidden_dim) + linear(n, v.hidden_dim, v.hidden_dim)
        encoder += 2 * linear(n, v.hidden_dim, v.inter_dim) + 4 * n**2 * v.hidden_dim
    decoder = 0
    for _ in range(m.num_blocks):
        decoder += 2 * linear(s, m.hidden_dim, m.hidden_dim) + 2 * linear(s, m.hidden_dim, kv)
        decoder += 3 * linear(s, m.hidden_dim, m.inter_dim) + 4 * s**2 * m.hidden_dim
    projector = linear(n // r**2, v.hidden_dim * r**2, m.hidden_dim)
    head = linear(s, m.hidden_dim, m.vocab_size)
    shares = torch.tensor([encoder, projector, decoder, head], dtype=torch.float64)
    return dict(zip(("vision_encoder", "projector", "decoder", "head"), (shares / shares.sum()).tolist(), strict=True))


def flops_in_macs(config, num_text_tokens):
    """Multiplications alone: the factor two cancels."""
    v, m, r = config.vision, config.language, config.projector.pixel_shuffle_factor
    n, w = v.num_patches, m.hidden_dim
    s = n / r**2 + num_text_tokens
    macs = {
        "head": s * w * m.vocab_size,
        "decoder": m.num_blocks * s * w * (2 * w + 2 * w * m.num_kv_heads / m.num_heads + 3 * m.inter_dim + 2 * s),
        "projector": n * v.hidden_dim * w,
        "vision_encoder": n
        * v.hidden_dim
        * (3 * v.patch_size**2 + v.num_blocks * (4 * v.hidden_dim + 2 * v.inter_dim + 2 * n)),
    }
    total = sum(macs.values())
    return {part: share / total for part, share in macs.items()}


def flops_exactly(config, num_text_tokens):
    from fractions import Fraction

    shares = flops_by_layers(config, num_text_tokens)
    return {name: float(Fraction(share)) for name, share in shares.items()}


def attention_by_kron(weights, word, first_image_token, grid, factor):
    side = grid // factor
    row = weights[:, word, first_image_token : first_image_token + side**2].mean(0).view(side, side)
    return torch.kron(row, torch.full((factor, factor), 1 / factor**2))


def attention_with_einops(weights, word, first_image_token, grid, factor):
    side = grid // factor
    row = einops.reduce(weights, "h t s -> t s", "mean")[word].narrow(0, first_image_token, side * side)
    return einops.repeat(row / factor**2, "(a b) -> (a i) (b j)", a=side, i=factor, j=factor)


def attention_by_interpolation(weights, word, first_image_token, grid, factor):
    side = grid // factor
    row = (weights.sum(dim=0) / len(weights))[word][first_image_token:][: side * side].reshape(1, 1, side, side)
    return F.interpolate(row, scale_factor=factor, mode="nearest")[0, 0] / (factor * factor)


def attention_in_float64(weights, word, first_image_token, grid, factor):
    return word_attention(weights.double(), word, first_image_token, grid, factor).double()


class _Caption(nn.Module):
    def __init__(self, dim, heads, vocab):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, 4)
        self.embed = nn.Embedding(vocab, dim)
        self.cross = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.head = nn.Linear(dim, vocab)

    def memory(self, pixels):
        return self.stem(pixels).flatten(2).mT

    def logits(self, memory, ids):
        words = self.embed(ids)
        mixed, _ = self.cross(words, memory, memory)
        return self.head(words + mixed)

    def loss(self, logits, targets):
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))

    def forward(self, pixels, ids):
        return self.loss(self.logits(self.memory(pixels), ids[:, :-1]), ids[:, 1:])


class CaptionBatchSecond(_Caption):
    """The layer as it was, and tensors that suit it."""

    def __init__(self, dim, heads, vocab):
        super().__init__(dim, heads, vocab)
        self.cross = nn.MultiheadAttention(dim, heads)

    def logits(self, memory, ids):
        words, memory = self.embed(ids).transpose(0, 1), memory.transpose(0, 1)
        return self.head(words + self.cross(words, memory, memory)[0]).transpose(0, 1)


class CaptionByEinops(_Caption):
    def memory(self, pixels):
        return einops.rearrange(self.stem(pixels), "b d h w -> b (h w) d")

    def loss(self, logits, targets):
        return F.cross_entropy(einops.rearrange(logits, "b t v -> b v t"), targets)


class CaptionByHand(_Caption):
    """Row by row, and the loss from log_softmax."""

    def memory(self, pixels):
        return self.stem(pixels).permute(0, 2, 3, 1).flatten(1, 2)

    def loss(self, logits, targets):
        return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


class CaptionByLoop(_Caption):
    def logits(self, memory, ids):
        rows = []
        for own, row in zip(memory, ids, strict=True):
            words = self.embed(row)
            rows.append(self.head(words + self.cross(words, own, own)[0]))
        return torch.stack(rows)

    def loss(self, logits, targets):
        rows = [F.cross_entropy(y, t) for y, t in zip(logits, targets, strict=True)]
        return torch.stack(rows).mean()


class _Sample(nn.Module):
    """Everything at once: a layer twice, one that never runs, one inside of another, a product, a convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, stride=2)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.spare = nn.Linear(4, 4)

    def forward(self, images):
        x = self.conv(images).flatten(2).mT  # [B, 6, 4]
        x = self.mlp(self.mlp(x))
        return x @ x.mT


def counter_in_one(count):
    conv, layer, pairs = 2 * 12 * 4 * 12, 2 * 12 * 4 * 6, 2 * 2 * 6 * 6 * 4
    assert count(_Sample(), torch.zeros(2, 3, 4, 6)) == conv + 4 * layer + pairs


class _Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.never = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(self.inner(x))


class _Scores(nn.Module):
    def forward(self, x):
        return torch.einsum("bid,bjd->bij", x, x)


def counter_piece_by_piece(count):
    assert count(nn.Linear(3, 5), torch.randn(2, 7, 3)) == 2 * 14 * 3 * 5
    assert count(_Shared(), torch.randn(1, 7, 3)) == 2 * 2 * 7 * 3 * 3
    assert count(_Scores(), torch.randn(2, 7, 3)) == 2 * 2 * 7 * 7 * 3
    assert count(nn.Conv2d(1, 1, 4, stride=4), torch.randn(1, 1, 8, 8)) == 2 * 4 * 16


def counter_beside_torch(count):
    """torch's own counter is the other way."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as theirs:
        _Sample()(torch.zeros(2, 3, 4, 6))
    assert count(_Sample(), torch.zeros(2, 3, 4, 6)) == theirs.get_total_flops()


def counter_with_a_class_inside(count):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.block, self.spare = nn.Conv2d(3, 6, 2, 2), nn.Sequential(nn.Linear(6, 6)), nn.Linear(6, 6)

        def forward(self, images):
            x = self.conv(images).flatten(2).mT
            x = self.block(self.block(x)).relu()
            return torch.baddbmm(torch.zeros(1), x, x.mT)

    wanted = 2 * 2 * 4 * 6 * 12 + 2 * (2 * 2 * 4 * 6 * 6) + 2 * 2 * 4 * 4 * 6
    assert count(Both(), torch.zeros(2, 3, 4, 4)) == wanted, "by hand"


def counter_in_a_loop(count):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.other = nn.ModuleDict({"fc": nn.Linear(3, 3)}), nn.Linear(3, 3)

        def forward(self, x):
            for _ in range(3):
                x = torch.tanh(self.body["fc"](x))
            return torch.bmm(x, x.transpose(1, 2))

    for batch, tokens in ((1, 4), (3, 5)):
        wanted = 3 * 2 * batch * tokens * 9 + 2 * batch * tokens * tokens * 3
        found = count(nn.Sequential(Block()), torch.ones(batch, tokens, 3))
        if found != wanted:
            raise AssertionError(f"{found} instead of {wanted}")
    if count(nn.Conv2d(2, 3, 2, stride=2), torch.ones(1, 2, 6, 4)) != 2 * 6 * 8 * 3:
        raise AssertionError("convolution")


VERSIONS = {
    "trace.read_trace": (read_trace, read_by_paths, read_backwards, read_by_counting, read_by_the_text),
    "trace.bug_projector": (Projector, ProjectorByEinops, ProjectorByLoops, ProjectorByStrides, LazyProjector),
    "trace.bug_heads": (SharedHeads, HeadsByExpand, HeadsByGroups, HeadsByIndex, HeadsByLoops),
    "trace.bug_positions": (
        InputSequence,
        PositionsByEmbedding,
        PositionsInPlace,
        PositionsByLoop,
        PositionsByNarrow,
    ),
    "trace.elsewhere": (_Caption, CaptionBatchSecond, CaptionByEinops, CaptionByHand, CaptionByLoop),
    "trace.symbolic_shapes": (shape_claims, claims_in_words, claims_by_join, claims_by_percent, claims_by_the_grid),
    "trace.flops": (flops_shares, flops_on_meta, flops_by_layers, flops_in_macs, flops_exactly),
    "trace.word_attention": (
        word_attention,
        attention_by_kron,
        attention_with_einops,
        attention_by_interpolation,
        attention_in_float64,
    ),
    "trace.test_counter": (
        counter_in_one,
        counter_piece_by_piece,
        counter_beside_torch,
        counter_with_a_class_inside,
        counter_in_a_loop,
    ),
}
