"""Chapter 09: attention with a cache, and a test that catches wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.language_model import BlockCache, RotaryEmbedding, apply_rope, attention_layout

# -- generation.cached_attention ---------------------------------------------------------------------------------------

BASE = 100.0


def new_cache(k: Tensor, max_length: int) -> BlockCache:
    """An empty cache for keys like k [B, num_kv_heads, T, head_dim]."""
    sizes = SimpleNamespace(num_kv_heads=k.shape[1], head_dim=k.shape[3])
    return BlockCache(sizes, k.shape[0], max_length, like=k)  # type: ignore[arg-type]


def in_pieces(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sizes: Sequence[int],
    padding: Tensor | None = None,
) -> Tensor:
    """The outputs [B, num_heads, T, head_dim] where the T tokens come in pieces of these sizes, through one cache."""
    cache, start, outputs = new_cache(k, q.shape[2]), 0, []
    for size in sizes:
        new, real = slice(start, start + size), None if padding is None else padding[:, : start + size]
        positions, mask = attention_layout(real, None, start + size, q.device, start)
        rope = RotaryEmbedding(q.shape[3], BASE)(positions)
        more = () if padding is None else (mask,)
        outputs.append(attention(q[:, :, new], k[:, :, new], v[:, :, new], rope, cache, *more))
        start += size
    return torch.cat(outputs, dim=2)


def without_cache(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same attention with all tokens at once and no cache: what in_pieces should give, whatever the sizes."""
    rope = RotaryEmbedding(q.shape[3], BASE)(torch.arange(q.shape[2])[None])
    groups = q.shape[1] // k.shape[1]
    k, v = apply_rope(k, *rope).repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(apply_rope(q, *rope), k, v, is_causal=True)


def cached_attention(q, k, v, rope, cache, mask=None):
    """The right one: turn, store, attend."""
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    k, v = cache.update(k, v)
    groups, new, seen = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    if mask is None:
        mask = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, mask)


def tokens(batch: int, heads: int, kv_heads: int, length: int, head_dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return (
        noise(batch, heads, length, head_dim, seed=1),
        noise(batch, kv_heads, length, head_dim, seed=2),
        noise(batch, kv_heads, length, head_dim, seed=3),
    )


LEFT_PADDED = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])

CACHED = Exercise(
    id="generation.cached_attention",
    chapter="09",
    title="Mend it: the cache that forgets what it turned",
    difficulty=2,
    minutes=15,
    why="With a cache each token is read once. A cache that is wrong raises nothing: the first token is right, and the "
    "rest of the answer is noise, or a little worse than it should be, which is harder to see.",
    hints=(
        "Print what each line works on, for one new token after three old ones. How many angles does rope hold, and "
        "how many keys are turned by them? Which keys does is_causal=True let one single query see?",
        "Two faults. A key is turned once, by its own position, before it is stored; what the cache holds is turned "
        "already. And is_causal=True lines up the first query with the first key, while your queries are the *last* of "
        "the keys: build the mask yourself where mask is None.",
        "q, k = apply_rope(q, *rope), apply_rope(k, *rope)\n"
        "k, v = cache.update(k, v)\n"
        "if mask is None:\n"
        "    mask = torch.ones(new, seen, dtype=torch.bool).tril(…)    # query i is key seen - new + i\n"
        "k, v = both with each head repeated for the query heads that share it\n"
        "return F.scaled_dot_product_attention(q, k, v, mask)",
    ),
    reference=cached_attention,
    cases=lambda: [
        Case(*tokens(1, 1, 1, 3, 4), [1, 1, 1], note="three tokens, one by one, a single head"),
        Case(*tokens(2, 4, 2, 5), [3, 1, 1], note="a prompt of three tokens, then two more; 4 query heads share 2"),
        Case(*tokens(1, 2, 1, 5), [2, 3], note="two tokens, then three at once"),
        Case(*tokens(2, 2, 2, 4), [2, 1, 1], LEFT_PADDED, note="two rows, one padded on the left: mask is given"),
    ],
    axes="batch num_heads length head_dim",
    call=in_pieces,
)


@CACHED.property("however the tokens are cut into pieces, the result is that of one pass without a cache")
def _(attention) -> None:
    q, k, v = tokens(2, 4, 2, 7)
    for sizes in ([7], [1] * 7, [4, 1, 2], [1, 6]):
        same = torch.allclose(in_pieces(attention, q, k, v, sizes), without_cache(q, k, v), atol=1e-5)
        expect(same, f"With pieces of {sizes} tokens the result is another one than without a cache.")


@CACHED.property("the cache holds every key, turned once")
def _(attention) -> None:
    q, k, v = tokens(1, 2, 1, 4)
    cache, rotary = new_cache(k, 6), RotaryEmbedding(8, BASE)
    for i in range(4):
        one = slice(i, i + 1)
        attention(q[:, :, one], k[:, :, one], v[:, :, one], rotary(torch.tensor([[i]])), cache)
    expect(cache.length == 4, f"After four tokens cache.length is {cache.length}.")
    turned = apply_rope(k, *rotary(torch.arange(4)[None]))
    expect(torch.allclose(cache.keys[:, :, :4], turned, atol=1e-5), "The stored keys are not k turned by its position.")


def _variant(
    before: bool = True,
    turn_k: bool = True,
    turn_v: bool = False,
    stored: bool = True,
    repeat: bool = False,
    masks: str = "own",
    given: bool = True,
) -> Callable[..., Tensor]:
    def attention(q, k, v, rope, cache, mask=None):
        q = apply_rope(q, *rope)
        new_k, new_v = k, v
        if before and turn_k:
            k = apply_rope(k, *rope)
        if turn_v:
            v = apply_rope(v, *rope)
        if not stored:
            new_k, new_v = k, v
        k, v = cache.update(k, v)
        if not stored:
            k, v = new_k, new_v
        if not before:
            k = apply_rope(k, *rope)
        groups, new, seen = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
        mask = None if mask is None or not given else mask[..., -seen:]
        causal = False
        if mask is None:
            if masks == "own":
                mask = torch.ones(new, seen, dtype=torch.bool).tril(seen - new)
            causal = masks == "always" or (masks == "several" and new > 1)
        k, v = ((x.repeat(1, groups, 1, 1) if repeat else x.repeat_interleave(groups, dim=1)) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)

    return attention


TURNED_AGAIN = "What the cache returns is turned again, by the new token's angle. Turn k first, then store it."
CACHED.mistake(f"Both faults are still there. {TURNED_AGAIN} After that, look at is_causal.")(
    _variant(before=False, masks="always")
)
CACHED.mistake(TURNED_AGAIN)(_variant(before=False))
CACHED.mistake(
    "A single new query sees only the very first key: is_causal lines up query 0 with key 0, but your queries are the "
    "last of the keys."
)(_variant(masks="always"))
CACHED.mistake(
    "One token at a time is right, but several after a prefix are lined up with the first keys: query i is key "
    "seen - new + i, so shift the triangle by seen - new."
)(_variant(masks="several"))
CACHED.mistake("Where mask is None the future can be seen: a prompt of several tokens needs the causal mask.")(
    _variant(masks="none")
)
CACHED.mistake("It attends to only the new keys and values: go on with what cache.update returns.")(
    _variant(stored=False, masks="several")
)
CACHED.mistake("The keys are not turned: both q and k go through apply_rope, before the cache.")(_variant(turn_k=False))
CACHED.mistake("The values are turned too: RoPE belongs to what is compared, queries and keys.")(_variant(turn_v=True))
CACHED.mistake(
    "The shared heads come in the wrong order, 0 1 0 1: query heads that follow each other share, so repeat_interleave."
)(_variant(repeat=True))
CACHED.mistake("The mask that is given is not used, so the padding can be seen.")(_variant(given=False))


@CACHED.part
def _(code, learner) -> None:
    class Attention(code.language_model.GroupedQueryAttention):  # type: ignore[misc, name-defined]
        """Whatever attention is there, with the learner's way through the cache."""

        def forward(self, x, rope, mask, cache=None):
            if cache is None:
                return super().forward(x, rope, mask)
            q, k, v = (
                layer(x).unflatten(2, (-1, cache.keys.shape[3])).transpose(1, 2)
                for layer in (self.q_proj, self.k_proj, self.v_proj)
            )
            return self.out_proj(learner(q, k, v, rope, cache, mask).transpose(1, 2).flatten(2))

    code.language_model.GroupedQueryAttention = Attention


# -- generation.cache_test ---------------------------------------------------------------------------------------------


def other_style(q, k, v, rope, cache, mask=None):
    """A right one that adds in another order: the last bits differ."""
    q, k = apply_rope(q, *rope).double(), apply_rope(k, *rope)
    k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in cache.update(k, v))
    scores = q @ k.mT / q.shape[3] ** 0.5
    hidden = torch.ones(scores.shape[2:], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
    return (scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ v).float()


def cache_is_right(attention: Callable[..., Tensor]) -> bool:
    q, k, v = tokens(2, 4, 2, 6)
    expected = without_cache(q, k, v)
    for sizes in ([6], [1] * 6, [3, 1, 2]):
        try:
            if not torch.allclose(in_pieces(attention, q, k, v, sizes), expected, atol=1e-4):
                return False
        except (RuntimeError, IndexError):
            return False
    return True


def never_moves_on(q, k, v, rope, cache, mask=None):
    """Stores each new key in the place of the one before."""
    cache.length = 0
    return cached_attention(q, k, v, rope, cache, mask)


TEST = Exercise(
    id="generation.cache_test",
    chapter="09",
    title="Write the test: is this cache right?",
    difficulty=2,
    minutes=15,
    why="A wrong cache answers in whole sentences. The one thing that shows it is a comparison with the same "
    "computation without a cache, on the cuts of the text at which caches break.",
    hints=(
        "You have two ways to the same numbers: in_pieces, and without_cache. When should they agree, and for which "
        "cuts?",
        "Random q, k and v of six tokens. Compare in_pieces with without_cache for three cuts: all at once, one by one, "
        "and a prefix followed by several at once. Use a tolerance: a sum in another order has other last bits. A "
        "version that raises is wrong, too.",
        "q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)\n"
        "for sizes in three lists, each with the sum 6:\n"
        "    try:\n"
        "        same = torch.allclose(in_pieces(attention, q, k, v, sizes), …, atol=1e-4)\n"
        "    except RuntimeError:\n"
        "        same = False\n"
        "    if not same:\n"
        "        return False\n"
        "return True",
    ),
    reference=cache_is_right,
    cases=lambda: [
        Case(cached_attention, note="a right version"),
        Case(other_style, note="a right version whose last bits differ"),
        Case(_variant(before=False), note="a version that turns the stored keys again"),
        Case(_variant(masks="always"), note="a version in which a single query sees only the first key"),
        Case(_variant(masks="several"), note="a version that is wrong for several tokens after a prefix"),
        Case(_variant(masks="none"), note="a version in which the prompt sees its future"),
        Case(_variant(turn_v=True), note="a version that turns the values"),
        Case(never_moves_on, note="a version that stores each key in the place of the last"),
    ],
)


def _compare(sizes: Sequence[Sequence[int]], itself: bool = False, shape: bool = False):
    def test(attention) -> bool:
        q, k, v = tokens(2, 4, 2, 6)
        expected = in_pieces(attention, q, k, v, [6]) if itself else without_cache(q, k, v)
        for cut in sizes:
            try:
                out = in_pieces(attention, q, k, v, cut)
            except (RuntimeError, IndexError):
                return False
            same = torch.allclose(out, expected, atol=1e-4)
            if not (out.shape == expected.shape if shape else same):
                return False
        return True

    return test


ALL_CUTS = ([6], [1] * 6, [3, 1, 2])
TEST.mistake("It accepts every version, as a look at the shape alone does: return False where the numbers differ.")(
    lambda attention: True
)
TEST.mistake("It refuses every version, the right ones too: compare with a tolerance, not bit by bit.")(
    lambda attention: False
)
TEST.mistake("It looks at the shape only, and a wrong cache has the right shape: compare the numbers.")(
    _compare(ALL_CUTS, shape=True)
)
TEST.mistake("It reads all at once, where a cache has nothing to do: cut the tokens into pieces as well.")(
    _compare([[6]])
)
TEST.mistake(
    "It reads one by one only. Some caches are wrong for a prompt of several tokens, or for several later on."
)(_compare([[1] * 6]))
TEST.mistake(
    "It reads a prompt and then one by one. Some caches are wrong where several tokens follow a prefix: try [3, 1, 2]."
)(_compare([[6], [1] * 6, [3, 1, 1, 1]]))
TEST.mistake(
    "It compares the version with itself. What is wrong in the same way at every cut goes unseen: compare with "
    "without_cache."
)(_compare(ALL_CUTS, itself=True))
