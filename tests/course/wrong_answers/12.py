"""Chapter 12: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import torch
from torch import nn

from nanovlm.models.modality_projector import pixel_shuffle


def named(name, version):
    """A wrong answer under a name of its own: most of these differ in one expression."""
    version.__name__ = name
    return version


# -- trace.read_trace --------------------------------------------------------------------------------------------------


def _attention(t, i=-1):
    return t.find("scaled_dot_product_attention")[i].inputs


def _read(**wrong):
    def read_trace(t):
        right = {
            "patches": t["vision_encoder"].shape[1],
            "image_tokens": t["projector"].shape[1],
            "sequence": t["decoder"].inputs[0].shape[1],
            "decoder_blocks": len(t.find("DecoderBlock")),
            "kv_heads": _attention(t)[1].shape[1],
        }
        return right | {name: value(t) for name, value in wrong.items()}

    return read_trace


def values_alone(t):
    return list(_read()(t).values())


def as_strings(t):
    return {name: str(value) for name, value in _read()(t).items()}


def first_example(t):
    return {"patches": 16, "image_tokens": 4, "sequence": 9, "decoder_blocks": 3, "kv_heads": 2}


def one_missing(t):
    return {name: value for name, value in _read()(t).items() if name != "sequence"}


# -- trace.bug_projector -----------------------------------------------------------------------------------------------


def _projector(
    wide=lambda dim, r: dim * r * r,
    tokens=pixel_shuffle,
    run=lambda self, x: self.proj(self.tokens(self.norm(x))),
    norm=lambda dim, r: nn.LayerNorm(dim),
    proj=nn.Linear,
):
    class Projector(nn.Module):
        def __init__(self, vision_dim, language_dim, factor):
            super().__init__()
            self.factor = factor
            self.norm = norm(vision_dim, factor)
            self.proj = proj(wide(vision_dim, factor), language_dim)

        def tokens(self, x):
            return tokens(x, self.factor)

        def forward(self, x):
            return run(self, x)

    return Projector


def _mean(x, r):
    return pixel_shuffle(x, r).unflatten(-1, (r * r, -1)).mean(-2)


def _shorter(x, r):
    wide = pixel_shuffle(x, r)
    return wide.reshape(wide.shape[0], -1, wide.shape[-1] // r)


def _first_half(x, r):
    wide = pixel_shuffle(x, r)
    return wide[..., : wide.shape[-1] // r]


def _torchs_order(x, r):
    side = int(x.shape[1] ** 0.5)
    image = x.transpose(1, 2).unflatten(2, (side, side))
    return nn.functional.pixel_unshuffle(image, r).flatten(2).transpose(1, 2)


def _reshape(x, r):
    return x.reshape(x.shape[0], -1, x.shape[-1] * r * r)


class RenamedProjector(nn.Module):
    def __init__(self, vision_dim, language_dim, factor):
        super().__init__()
        self.factor = factor
        self.norm = nn.LayerNorm(vision_dim)
        self.linear = nn.Linear(vision_dim * factor**2, language_dim)

    def forward(self, x):
        return self.linear(pixel_shuffle(self.norm(x), self.factor))


def _without_grad(run):
    def forward(self, *inputs):
        with torch.no_grad():
            return run(self, *inputs)

    return forward


# -- trace.bug_heads ---------------------------------------------------------------------------------------------------


def _heads(
    keys=lambda k, group: k.repeat_interleave(group, dim=1),
    values=lambda v, group: v.repeat_interleave(group, dim=1),
    scale=lambda dim, head_dim: head_dim**-0.5,
    axis=-1,
    join=lambda mixed: mixed.transpose(1, 2).flatten(2),
    wide=lambda n, kv: kv,
    queries=lambda q, group: q,
    mask=lambda scores: scores,
):
    class SharedHeads(nn.Module):
        def __init__(self, dim, num_heads, num_kv_heads):
            super().__init__()
            self.n, self.kv, self.head_dim = num_heads, wide(num_heads, num_kv_heads), dim // num_heads
            self.q = nn.Linear(dim, dim, bias=False)
            self.k = nn.Linear(dim, self.kv * self.head_dim, bias=False)
            self.v = nn.Linear(dim, self.kv * self.head_dim, bias=False)

        def forward(self, x):
            group = self.n // self.kv
            q = self.q(x).unflatten(-1, (self.n, self.head_dim)).transpose(1, 2)
            k = self.k(x).unflatten(-1, (self.kv, self.head_dim)).transpose(1, 2)
            v = self.v(x).unflatten(-1, (self.kv, self.head_dim)).transpose(1, 2)
            k, v = keys(k, group), values(v, group)
            scores = mask(queries(q, group) @ k.transpose(-2, -1) * scale(x.shape[-1], self.head_dim))
            return join(scores.softmax(axis) @ v)

    return SharedHeads


def _interleaved(x, group):
    return x.repeat_interleave(group, dim=1)


def _tiled(x, group):
    return x.repeat(1, group, 1, 1)


def _averaged(x, group):
    return x.mean(1, keepdim=True).expand(-1, x.shape[1] * group, -1, -1)


def _backwards(x, group):
    return x.flip(1).repeat_interleave(group, dim=1)


def _zeros(x, group):
    return torch.cat([x, torch.zeros_like(x).repeat(1, group - 1, 1, 1)], dim=1)


def _causal(scores):
    return scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))


# -- trace.bug_positions -----------------------------------------------------------------------------------------------


def _line(place):
    class InputSequence(nn.Module):
        def __init__(self, vocab_size, dim, max_positions):
            super().__init__()
            self.tokens = nn.Embedding(vocab_size, dim)
            self.positions = nn.Embedding(max_positions, dim)

        def forward(self, image_tokens, ids):
            return place(image_tokens, self.tokens(ids), self.positions.weight)

    return InputSequence


def _both(image, words):
    return torch.cat([image, words], dim=1)


class RenamedSequence(nn.Module):
    def __init__(self, vocab_size, dim, max_positions):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.pos = nn.Embedding(max_positions, dim)

    def forward(self, image_tokens, ids):
        x = _both(image_tokens, self.tokens(ids))
        return x + self.pos.weight[: x.shape[1]]


# -- trace.symbolic_shapes ---------------------------------------------------------------------------------------------


def _claims(change=lambda claims, config: claims, line=None, tokens=None, wide=None, last=None, batch="B"):
    def shape_claims(config):
        r, patches = config.projector.pixel_shuffle_factor, config.vision.num_patches
        n = tokens(config) if tokens else patches // r**2
        length = line(config, n) if line else f"{n}+T"
        claims = {
            "vision_encoder": f"{batch} {patches} {config.vision.hidden_dim}",
            "pixel_shuffle": f"{batch} {n} {wide(config) if wide else config.vision.hidden_dim * r * r}",
            "projector.proj": f"{batch} {n} {config.language.hidden_dim}",
            "cat": f"{batch} {length} {config.language.hidden_dim}",
            "decoder.head": f"{batch} {length} {last(config) if last else config.language.vocab_size}",
        }
        return change(claims, config)

    return shape_claims


# -- trace.flops -------------------------------------------------------------------------------------------------------


def _flops(
    pairs=1.0,
    line=None,
    swiglu=3,
    kv=lambda m: m.num_kv_heads * m.head_dim,
    projector=1.0,
    head=None,
    conv=1,
    blocks=lambda part: part.num_blocks,
    share=lambda counts: {name: count / sum(counts.values()) for name, count in counts.items()},
    factors=2,
    vit=4,
):
    def flops_shares(config, num_text_tokens):
        v, m, r = config.vision, config.language, config.projector.pixel_shuffle_factor
        n, d, w = v.num_patches, v.hidden_dim, m.hidden_dim
        length = line(n, r, num_text_tokens) if line else n // r**2 + num_text_tokens
        in_head = head(n // r**2, num_text_tokens) if head else length
        block = 2 * n * (vit * d * d + 2 * d * v.inter_dim) + pairs * 4 * n * n * d
        weights = factors * (2 * w * w + 2 * w * kv(m) + swiglu * w * m.inter_dim)
        return share(
            {
                "vision_encoder": conv * 2 * n * d * 3 * v.patch_size**2 + blocks(v) * block,
                "projector": 2 * n * d * w * projector,
                "decoder": blocks(m) * (length * weights + pairs * 4 * length * length * w),
                "head": 2 * in_head * w * m.vocab_size,
            }
        )

    return flops_shares


# -- trace.word_attention ----------------------------------------------------------------------------------------------


def _map(row=lambda w, i: w.mean(0)[i], first=lambda f: f, spread=None, share=lambda r: r * r, back=lambda m: m):
    def word_attention(weights, word, first_image_token, grid, factor):
        side, begin = grid // factor, first(first_image_token)
        tokens = row(weights, word)[begin : begin + side * side].reshape(side, side)
        if spread is None:
            patches = tokens.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        else:
            patches = spread(tokens, factor, grid)
        return back(patches / share(factor))

    return word_attention


# -- trace.elsewhere ---------------------------------------------------------------------------------------------------


def _caption(
    memory=lambda self, pixels: self.stem(pixels).flatten(2).transpose(1, 2),
    mix=lambda self, w, m: w + self.cross(w, m, m)[0],
    loss=lambda y, t: nn.functional.cross_entropy(y.flatten(0, 1), t.flatten()),
    batch_first=True,
    shift=True,
    heads_of=lambda dim, vocab: nn.Linear(dim, vocab),
):
    class Captioner(nn.Module):
        def __init__(self, dim, heads, vocab):
            super().__init__()
            self.stem = nn.Conv2d(3, dim, kernel_size=4, stride=4)
            self.embed = nn.Embedding(vocab, dim)
            self.cross = nn.MultiheadAttention(dim, heads, batch_first=batch_first)
            self.head = heads_of(dim, vocab)

        def memory(self, pixels):
            return memory(self, pixels)

        def logits(self, memory, ids):
            return self.head(mix(self, self.embed(ids), memory))

        def loss(self, logits, targets):
            return loss(logits, targets)

        def forward(self, pixels, ids):
            if not shift:
                return self.loss(self.logits(self.memory(pixels), ids), ids)
            return self.loss(self.logits(self.memory(pixels), ids[:, :-1]), ids[:, 1:])

    return Captioner


def _one_sequence(self, w, m):
    w_, m_ = w.flatten(0, 1)[None], m.flatten(0, 1)[None]
    return w + self.cross(w_, m_, m_)[0].reshape(w.shape)


# -- trace.test_counter ------------------------------------------------------------------------------------------------


def counts_nothing(count):
    count(nn.Linear(3, 5), torch.zeros(7, 3))


def counts_something(count):
    assert count(nn.Linear(3, 5), torch.zeros(7, 3)) > 0


def one_layer_without_bias(count):
    assert count(nn.Linear(3, 5, bias=False), torch.zeros(1, 3)) == 30


def one_layer(count):
    assert count(nn.Linear(3, 5), torch.zeros(1, 3)) == 30


def many_tokens(count):
    assert count(nn.Linear(3, 5), torch.zeros(7, 3)) == 210


def a_batch(count):
    assert count(nn.Linear(3, 5), torch.zeros(2, 7, 3)) == 420


def doubled_with_the_batch(count):
    layer = nn.Linear(3, 5)
    assert count(layer, torch.zeros(4, 7, 3)) == 2 * count(layer, torch.zeros(2, 7, 3))


def half_of_it(count):
    assert count(nn.Linear(3, 5), torch.zeros(7, 3)) == 7 * 3 * 5


def with_its_bias(count):
    assert count(nn.Linear(3, 5), torch.zeros(7, 3)) == 2 * 7 * 3 * 5 + 7 * 5


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

    def forward(self, x):
        return self.inner(self.inner(x))


def a_shared_layer(count):
    assert count(_Twice(), torch.zeros(2, 7, 3)) == 2 * 2 * 14 * 9


class _Pairs(nn.Module):
    def forward(self, x):
        return x @ x.mT


def a_product_without_weights(count):
    assert count(_Pairs(), torch.zeros(2, 7, 3)) == 2 * 2 * 7 * 7 * 3


def a_convolution(count):
    assert count(nn.Conv2d(3, 4, 2, stride=2), torch.zeros(2, 3, 4, 6)) == 2 * 2 * 6 * 12 * 4


def layers_and_a_convolution(count):
    a_shared_layer(count)
    a_convolution(count)


def returns_whether(count):
    return count(nn.Linear(3, 5), torch.zeros(7, 3)) == 210


def compares_with_itself(count):
    layer = nn.Linear(3, 5)
    assert count(layer, torch.zeros(7, 3)) == count(layer, torch.zeros(7, 3))


def counts_an_activation(count):
    assert count(nn.ReLU(), torch.zeros(7, 3)) == 21


WRONG = {
    "trace.read_trace": [
        (
            named("image_tokens_of_the_encoder", _read(image_tokens=lambda t: t["vision_encoder"].shape[1])),
            "Pixel shuffle makes fewer",
        ),
        (named("line_of_the_text", _read(sequence=lambda t: t["decoder.token_embedding"].shape[1])), "the text alone"),
        (
            named(
                "line_of_patches",
                _read(sequence=lambda t: t["vision_encoder"].shape[1] + t["decoder.token_embedding"].shape[1]),
            ),
            "position for every patch",
        ),
        (named("line_of_image_tokens", _read(sequence=lambda t: t["projector"].shape[1])), "picture alone"),
        (
            named("all_blocks", _read(decoder_blocks=lambda t: len(t.find("DecoderBlock")) + len(t.find("ViTBlock")))),
            "encoder's blocks too",
        ),
        (named("encoder_blocks", _read(decoder_blocks=lambda t: len(t.find("ViTBlock")))), "blocks of the encoder"),
        (named("blocks_less_one", _read(decoder_blocks=lambda t: len(t.find("DecoderBlock")) - 1)), "counted from 0"),
        (named("query_heads", _read(kv_heads=lambda t: _attention(t)[0].shape[1])), "number of query heads"),
        (named("heads_of_the_encoder", _read(kv_heads=lambda t: _attention(t, 0)[1].shape[1])), "vision encoder's"),
        (named("head_dim_for_heads", _read(kv_heads=lambda t: _attention(t)[1].shape[-1])), "how wide a head is"),
        (named("head_dim_of_8", _read(kv_heads=lambda t: t["decoder.blocks.0.attn.k_proj"].shape[-1] // 8)), "8"),
        (
            named("width_of_keys", _read(kv_heads=lambda t: t["decoder.blocks.0.attn.k_proj"].shape[-1])),
            "all key/value heads together",
        ),
        (named("patches_of_a_side", _read(patches=lambda t: t["Conv2d"].shape[-1])), "one side"),
        (named("width_for_patches", _read(patches=lambda t: t["vision_encoder"].shape[2])), "wide"),
        (values_alone, "expected a dict"),
        (as_strings, "expected a whole number"),
        (first_example, "The numbers of the first trace"),
        (one_missing, "The dict holds"),
    ],
    "trace.bug_projector": [
        (named("averaged_to_fit", _projector(lambda d, r: d, _mean)), "averaged to fit"),
        (named("tokens_cut_shorter", _projector(lambda d, r: d * r, _shorter)), "made the tokens fit the layer"),
        (named("half_is_dropped", _projector(lambda d, r: d * r, _first_half)), "cut off"),
        (named("plain_reshape", _projector(tokens=_reshape)), "plain reshape"),
        (named("torchs_order", _projector(tokens=_torchs_order)), "channel by channel"),
        (named("no_norm", _projector(run=lambda self, x: self.proj(self.tokens(x)))), "norm is forgotten"),
        (
            named(
                "norm_behind",
                _projector(
                    norm=lambda d, r: nn.LayerNorm(d * r * r), run=lambda self, x: self.proj(self.norm(self.tokens(x)))
                ),
            ),
            "norm was right",
        ),
        (named("times_two", _projector(lambda d, r: 4 * d)), "factor"),
        (named("as_it_was", _projector(lambda d, r: d * r)), "still"),
        (named("cubed", _projector(lambda d, r: d * r**3)), "The layer still does not fit"),
        (named("no_bias", _projector(proj=lambda a, b: nn.Linear(a, b, bias=False))), "bias"),
        (
            named("norm_twice", _projector(run=lambda self, x: self.proj(self.tokens(self.norm(self.norm(x)))))),
            "norm twice",
        ),
        (
            named("an_activation", _projector(run=lambda self, x: self.proj(self.tokens(self.norm(x))).relu())),
            "activation",
        ),
        (
            named("no_grad", _projector(run=_without_grad(lambda self, x: self.proj(self.tokens(self.norm(x)))))),
            "gradient",
        ),
        (named("other_eps", _projector(norm=lambda d, r: nn.LayerNorm(d, eps=0.1))), "eps"),
        (RenamedProjector, "Keep the name `proj`"),
    ],
    "trace.bug_heads": [
        (named("tiled", _heads(_tiled, _tiled)), "wrong order"),
        (named("first_head_alone", _heads(lambda k, g: k[:, :1], lambda v, g: v[:, :1])), "single key/value head"),
        (named("two_orders", _heads(values=_tiled)), "in two orders"),
        (named("two_orders_the_other_way", _heads(keys=_tiled)), "keys as 0 1 0 1"),
        (named("keys_alone", _heads(values=lambda v, g: v)), "values need the same"),
        (named("values_alone", _heads(keys=lambda k, g: k)), "keys"),
        (named("averaged", _heads(_averaged, _averaged)), "averaged"),
        (named("backwards", _heads(_backwards, _backwards)), "groups are reversed"),
        (named("zeros", _heads(_zeros, _zeros)), "zeros"),
        (named("more_heads", _heads(lambda k, g: k, lambda v, g: v, wide=lambda n, kv: n)), "Keep the layer as it was"),
        (
            named(
                "queries_averaged", _heads(queries=lambda q, g: q.unflatten(1, (-1, g)).mean(2).repeat_interleave(g, 1))
            ),
            "averaged before they look",
        ),
        (named("no_scale", _heads(scale=lambda dim, head_dim: 1.0)), "not divided"),
        (named("scale_of_the_width", _heads(scale=lambda dim, head_dim: dim**-0.5)), "sqrt(dim)"),
        (named("softmax_over_queries", _heads(axis=-2)), "wrong axis"),
        (
            named("heads_not_brought_back", _heads(join=lambda m: m.reshape(m.shape[0], m.shape[2], -1))),
            "transpose(1, 2)",
        ),
        (named("a_mask", _heads(mask=_causal)), "causal mask"),
        (named("detached_values", _heads(values=lambda v, g: _interleaved(v, g).detach())), "gradient"),
    ],
    "trace.bug_positions": [
        (named("words_from_zero", _line(lambda i, w, p: _both(i, w + p[: w.shape[1]]))), "begin at 0"),
        (
            named("words_behind", _line(lambda i, w, p: _both(i, w + p[i.shape[1] : i.shape[1] + w.shape[1]]))),
            "image tokens have no positions",
        ),
        (
            named("both_from_zero", _line(lambda i, w, p: _both(i + p[: i.shape[1]], w + p[: w.shape[1]]))),
            "each counted from 0",
        ),
        (named("from_one", _line(lambda i, w, p: _both(i, w) + p[1 : i.shape[1] + w.shape[1] + 1])), "counted from 1"),
        (
            named("image_at_zero", _line(lambda i, w, p: _both(i + p[0], w + p[1 : w.shape[1] + 1]))),
            "All image tokens stand at position 0",
        ),
        (
            named("image_behind", _line(lambda i, w, p: _both(w, i) + p[: i.shape[1] + w.shape[1]])),
            "words stand in front",
        ),
        (
            named(
                "words_first",
                _line(lambda i, w, p: _both(i + p[w.shape[1] : w.shape[1] + i.shape[1]], w + p[: w.shape[1]])),
            ),
            "counted from the words on",
        ),
        (named("no_positions", _line(lambda i, w, p: _both(i, w))), "no positions at all"),
        (named("backwards", _line(lambda i, w, p: _both(i, w) + p[: i.shape[1] + w.shape[1]].flip(0))), "count down"),
        (named("one_for_all", _line(lambda i, w, p: _both(i, w) + p[0])), "one position"),
        (
            named("last_of_the_table", _line(lambda i, w, p: _both(i, w) + p[-i.shape[1] - w.shape[1] :])),
            "end of the table",
        ),
        (named("cut_to_the_text", _line(lambda i, w, p: _both(i, w)[:, : w.shape[1]] + p[: w.shape[1]])), "shape"),
        (named("multiplied", _line(lambda i, w, p: _both(i, w) * p[: i.shape[1] + w.shape[1]])), "multiplied"),
        (named("frozen_table", _line(lambda i, w, p: _both(i, w) + p[: i.shape[1] + w.shape[1]].detach())), "gradient"),
        (RenamedSequence, "Keep the name `positions`"),
    ],
    "trace.symbolic_shapes": [
        (named("line_of_text", _claims(line=lambda c, n: "T")), "are not counted"),
        (named("line_of_patches", _claims(line=lambda c, n: f"{c.vision.num_patches}+T")), "for each *patch*"),
        (named("line_times", _claims(line=lambda c, n: f"{n}*T")), "every pair"),
        (
            named(
                "r_times",
                _claims(
                    tokens=lambda c: c.vision.num_patches // c.projector.pixel_shuffle_factor,
                    wide=lambda c: c.vision.hidden_dim * c.projector.pixel_shuffle_factor,
                ),
            ),
            "r times fewer",
        ),
        (named("not_wider", _claims(wide=lambda c: c.vision.hidden_dim)), "not wider"),
        (
            named("r_times_wider", _claims(wide=lambda c: c.vision.hidden_dim * c.projector.pixel_shuffle_factor)),
            "only r times wider",
        ),
        (named("head_of_width", _claims(last=lambda c: c.language.hidden_dim)), "as wide as the decoder"),
        (named("text_of_five", _claims(line=lambda c, n: n + 5)), "one text"),
        (named("batch_of_one", _claims(batch="1")), "one batch"),
        (named("spaces", _claims(line=lambda c, n: f"{n} + T")), "No spaces"),
        (named("other_names", _claims(line=lambda c, n: f"{n}+L")), "other than B and T"),
        (
            named("brackets", _claims(lambda claims, c: {k: f"[{', '.join(v.split())}]" for k, v in claims.items()})),
            "no brackets",
        ),
        (named("lists", _claims(lambda claims, c: {k: v.split() for k, v in claims.items()})), "expected a string"),
        (named("no_batch", _claims(lambda claims, c: {k: v[2:] for k, v in claims.items()})), "the batch is missing"),
        (
            named(
                "projector_of_vision", _claims(lambda claims, c: claims | {"projector.proj": claims["pixel_shuffle"]})
            ),
            "as wide as its input",
        ),
        (
            named("last_position", _claims(lambda claims, c: claims | {"decoder.head": f"B {c.language.vocab_size}"})),
            "every position",
        ),
    ],
    "trace.flops": [
        (named("no_attention", _flops(pairs=0)), "attention itself is missing"),
        (named("half_attention", _flops(pairs=0.5)), "One of attention's two products"),
        (named("text_alone", _flops(line=lambda n, r, t: t)), "read the text alone"),
        (named("all_patches", _flops(line=lambda n, r, t: n + t)), "for every patch"),
        (named("two_matrices", _flops(swiglu=2)), "three matrices"),
        (named("wide_keys", _flops(kv=lambda m: m.hidden_dim)), "as wide as q"),
        (named("keys_of_one", _flops(kv=lambda m: m.num_kv_heads)), "one number a head"),
        (named("one_key_head", _flops(kv=lambda m: m.head_dim)), "one head wide"),
        (named("head_of_text", _flops(head=lambda i, t: t)), "The head runs on the text alone"),
        (named("head_of_one", _flops(head=lambda i, t: 1)), "one position"),
        (named("one_block", _flops(blocks=lambda part: 1)), "one block each"),
        (named("no_convolution", _flops(conv=0)), "convolution is missing"),
        (
            named("projector_on_patches", lambda c, t: _flops(projector=c.projector.pixel_shuffle_factor**2)(c, t)),
            "on every patch",
        ),
        (
            named("narrow_projector", lambda c, t: _flops(projector=c.projector.pixel_shuffle_factor**-2)(c, t)),
            "as wide as one patch",
        ),
        (named("multiply_only_in_decoder", _flops(factors=1)), "decoder has"),
        (named("no_out_projection", _flops(vit=3)), "vision_encoder has"),
        (named("counts", _flops(share=lambda counts: counts)), "These are FLOPs"),
        (
            named(
                "percent", _flops(share=lambda counts: {k: 100 * v / sum(counts.values()) for k, v in counts.items()})
            ),
            "percent",
        ),
        (
            named(
                "rounded",
                _flops(share=lambda counts: {k: round(v / sum(counts.values()), 2) for k, v in counts.items()}),
            ),
            "rounded",
        ),
    ],
    "trace.word_attention": [
        (named("who_looks_at_it", _map(row=lambda w, i: w.mean(0)[:, i])), "who looks *at* the word"),
        (
            named("strips", _map(spread=lambda x, r, g: x.flatten().repeat_interleave(r * r).reshape(g, g))),
            "strip of patches",
        ),
        (named("from_the_first", _map(first=lambda f: 0)), "first columns"),
        (named("one_late", _map(first=lambda f: f + 1)), "one token late"),
        (named("whole_weight", _map(share=lambda r: 1)), "whole weight"),
        (named("by_factor", _map(share=lambda r: r)), "divided by factor"),
        (named("repeated", _map(spread=lambda x, r, g: x.repeat(r, r))), "repeat lays the whole map"),
        (named("largest_head", _map(row=lambda w, i: w.amax(0)[i])), "largest of the heads"),
        (named("first_head", _map(row=lambda w, i: w[0, i])), "first head"),
        (named("last_head", _map(row=lambda w, i: w[-1, i])), "last head"),
        (named("heads_added", _map(row=lambda w, i: w.sum(0)[i])), "heads are added"),
        (named("stretched", _map(back=lambda m: m / m.sum())), "sums to 1"),
        (named("largest_is_one", _map(back=lambda m: m / m.max())), "largest is 1"),
        (named("turned", _map(back=lambda m: m.T.contiguous())), "Rows and columns are swapped"),
        (named("upside_down", _map(back=lambda m: m.flip(0))), "upside down"),
        (named("average_of_words", _map(row=lambda w, i: w.mean((0, 1)))), "mean over all words"),
        (named("not_a_grid", _map(back=lambda m: m.flatten())), "missing"),
    ],
    "trace.elsewhere": [
        (
            named("reshaped_picture", _caption(lambda s, p: (lambda x: x.reshape(len(x), -1, x.shape[1]))(s.stem(p)))),
            "instead of transposed",
        ),
        (named("averaged_picture", _caption(lambda s, p: s.stem(p).mean((2, 3))[:, None])), "averaged to one vector"),
        (named("one_sequence", _caption(mix=_one_sequence)), "one long sequence"),
        (
            named(
                "reshaped_logits",
                _caption(loss=lambda y, t: nn.functional.cross_entropy(y.reshape(len(y), y.shape[2], -1), t)),
            ),
            "a reshape mixes",
        ),
        (
            named("last_position", _caption(loss=lambda y, t: nn.functional.cross_entropy(y[:, -1], t[:, -1]))),
            "last position",
        ),
        (
            named("first_position", _caption(loss=lambda y, t: nn.functional.cross_entropy(y[:, 0], t[:, 0]))),
            "first position",
        ),
        (
            named(
                "a_sum",
                _caption(loss=lambda y, t: nn.functional.cross_entropy(y.flatten(0, 1), t.flatten(), reduction="sum")),
            ),
            "is a sum",
        ),
        (named("blind", _caption(mix=lambda s, w, m: w)), "written blind"),
        (named("no_residual", _caption(mix=lambda s, w, m: s.cross(w, m, m)[0])), "residual connection is gone"),
        (named("self_attention", _caption(mix=lambda s, w, m: w + s.cross(w, w, w)[0])), "attend to themselves"),
        (named("not_shifted", _caption(shift=False)), "the same tokens"),
        (named("two_of_three", _caption(loss=lambda y, t: nn.functional.cross_entropy(y, t))), "target"),
        (named("wide_head", _caption(heads_of=lambda d, v: nn.Linear(d, v + 1))), "have changed"),
        (named("detached_picture", _caption(lambda s, p: s.stem(p).flatten(2).transpose(1, 2).detach())), "radient"),
        (named("no_head", _caption(heads_of=lambda d, v: nn.Identity())), "`head` was a Linear"),
    ],
    "trace.test_counter": [
        (counts_nothing, "asserts nothing"),
        (counts_something, "asserts nothing"),
        (one_layer_without_bias, "one token"),
        (one_layer, "one token"),
        (many_tokens, "single layer"),
        (a_batch, "single layer"),
        (doubled_with_the_batch, "doubles"),
        (half_of_it, "count as two"),
        (with_its_bias, "bias"),
        (a_shared_layer, "What gets through"),
        (a_product_without_weights, "What gets through"),
        (a_convolution, "What gets through"),
        (layers_and_a_convolution, "What gets through"),
        (returns_whether, "returns"),
        (compares_with_itself, "Compare with a number"),
        (counts_an_activation, "products only"),
    ],
}
