"""Chapter 09 once more, written in other ways."""

from __future__ import annotations

import math

import torch

from nanovlm.course.exercises.ch09.cache import in_pieces, without_cache
from nanovlm.models.language_model import apply_rope


def loop_by_rows(logits, step, choose, ends, max_new_tokens):
    """Plain lists, a row at a time."""
    answers = [[] for _ in range(len(logits))]
    for place in range(max_new_tokens):
        chosen = choose(logits).tolist()
        for answer, token in zip(answers, chosen, strict=True):
            ended = any(old in ends for old in answer)
            answer.append(ends[0] if ended else token)
        if all(any(token in ends for token in answer) for answer in answers) or place == max_new_tokens - 1:
            break
        logits = step(torch.tensor([answer[-1] for answer in answers]))
    return torch.tensor(answers)


def loop_for(logits, step, choose, ends, max_new_tokens):
    """A for loop into a tensor that is full of ends from the start."""
    out = torch.full((logits.shape[0], max_new_tokens), ends[0])
    running = torch.ones(logits.shape[0], dtype=torch.bool)
    for i in range(max_new_tokens):
        if i:
            logits = step(out[:, i - 1])
        tokens = choose(logits)
        out[running, i] = tokens[running]
        for end in ends:
            running = running & (out[:, i] != end)
        if not running.any():
            break
    return out[:, : i + 1]


def head_by_head(q, k, v, rope, cache, mask=None):
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    keys, values = cache.update(k, v)
    new, seen = q.shape[2], keys.shape[2]
    if mask is None:
        mask = (torch.arange(seen)[None] <= torch.arange(seen - new, seen)[:, None])[None, None]
    outs = []
    for head in range(q.shape[1]):
        shared = head * keys.shape[1] // q.shape[1]
        scores = q[:, head] @ keys[:, shared].mT / math.sqrt(q.shape[3])
        outs.append(scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1) @ values[:, shared])
    return torch.stack(outs, dim=1)


def grouped(q, k, v, rope, cache, mask=None):
    """The query heads of a group as one axis; a single new query needs no mask at all."""
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    k, v = cache.update(k, v)
    batch, heads, new, dim = q.shape
    q = q.view(batch, k.shape[1], -1, new, dim)
    scores = torch.einsum("bgqnd,bgsd->bgqns", q, k) / dim**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, None], -torch.inf)
    elif new > 1:
        scores = scores + torch.full((new, k.shape[2]), -torch.inf).triu(k.shape[2] - new + 1)
    return torch.einsum("bgqns,bgsd->bgqnd", scores.softmax(-1), v).reshape(batch, heads, new, dim)


def many_cuts(attention):
    torch.manual_seed(1)
    for length, sizes in ((4, (4,)), (5, (1,) * 5), (6, (2, 3, 1)), (7, (3, 1, 1, 2))):
        q, k, v = torch.randn(1, 2, length, 4), torch.randn(1, 1, length, 4), torch.randn(1, 1, length, 4)
        try:
            error = (in_pieces(attention, q, k, v, sizes) - without_cache(q, k, v)).norm()
        except Exception:
            return False
        if error > 1e-4:
            return False
    return True


def worst_error(attention):
    q, k, v = torch.randn(3, 6, 8, 8), torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8)
    try:
        outs = [in_pieces(attention, q, k, v, cut) for cut in ([8], [1] * 8, [2, 6], [5, 1, 2])]
    except RuntimeError:
        return False
    return max(float((out - without_cache(q, k, v)).abs().max()) for out in outs) < 1e-3


def min_p_in_log_space(logits, p):
    """A ratio of probabilities is a difference of logits."""
    return torch.where(logits - logits.amax(-1, keepdim=True) >= math.log(p) - 1e-6, logits, -torch.inf)


def min_p_by_rows(logits, p):
    out = logits.clone()
    for row in out:
        chances = row.softmax(0)
        row[chances < p * chances.max()] = -torch.inf
    return out


def top_p_shifted(logits, p):
    """As transformers does it: from the least likely on, the last one always kept."""
    if p == 1.0:
        return logits.clone()
    ordered, order = torch.sort(logits, descending=False)
    out = ordered.softmax(-1).cumsum(-1) <= 1 - p
    out[..., -1:] = False
    return logits.masked_fill(out.scatter(1, order, out), -torch.inf)


def top_p_by_rows(logits, p):
    out = torch.full_like(logits, -torch.inf)
    for row, (values, chances) in enumerate(zip(logits, logits.softmax(-1), strict=True)):
        total = 0.0
        for token in chances.argsort(descending=True).tolist():
            out[row, token] = values[token]
            total += float(chances[token])
            if total >= p and p < 1:
                break
    return out


def draw_by_race(logits, temperature, keep, generator):
    """The exponential race: the smallest of exponential numbers over probabilities."""
    if temperature == 0.0:
        return logits.max(dim=1).indices
    chances = torch.softmax(keep(logits / temperature), dim=1)
    waits = torch.empty_like(chances).exponential_(generator=generator)
    return (chances / waits).argmax(dim=1)


def draw_by_sum(logits, temperature, keep, generator):
    """One uniform number a row, and where the running sum passes it."""
    if not temperature:
        return torch.argmax(logits, -1)
    sums = keep(logits / temperature).softmax(-1).cumsum(-1)
    place = torch.rand(len(logits), 1, generator=generator) * sums[:, -1:]
    return (sums <= place).sum(-1).clamp(max=logits.shape[1] - 1)


def beams_as_a_list(logits, totals, lengths, finished, end, length_penalty):
    options = []
    for beam, chances in enumerate(logits.log_softmax(-1).tolist()):
        total, length = float(totals[beam]), int(lengths[beam])
        if finished[beam]:
            options.append((total, length, end, beam))
        else:
            options += [(total + chance, length + 1, token, beam) for token, chance in enumerate(chances)]
    best = sorted(options, key=lambda o: o[0] / o[1] ** length_penalty, reverse=True)[: len(totals)]
    totals, lengths, tokens, beams = zip(*best, strict=True)
    return torch.tensor(tokens), torch.tensor(beams), torch.tensor(totals), torch.tensor(lengths)


def beams_sorted(logits, totals, lengths, finished, end, length_penalty):
    gains = torch.log_softmax(logits, -1)
    stay = torch.full_like(gains[0], -torch.inf)
    stay[end] = 0
    sums = totals.unsqueeze(1) + torch.where(finished.unsqueeze(1), stay, gains)
    grown = torch.where(finished, lengths, lengths + 1)
    order = (sums / grown.unsqueeze(1).pow(length_penalty)).flatten().argsort(descending=True)[: len(totals)]
    beams, tokens = torch.div(order, sums.shape[1], rounding_mode="floor"), order.remainder(sums.shape[1])
    return tokens, beams, sums[beams, tokens], grown[beams]


def cut_by_hand(ids, shown, decode):
    text = decode(ids)
    while text and (text[-1] == "\ufffd" or text[-1].isspace()):
        text = text[:-1]
    return text.lstrip().removeprefix(shown)


def split_at_shown(ids, shown, decode):
    text = decode(ids).strip().rstrip("\ufffd").rstrip().lstrip()
    return "" if len(text) <= len(shown) else text[len(shown) :]


def accept_at_once(draft, target, proposed, coins):
    index = torch.arange(len(proposed))
    stays = coins < (target[index, proposed] / draft[index, proposed]).clamp(max=1)
    count = int((~stays).nonzero()[0]) if not stays.all() else len(proposed)
    padded = torch.cat([draft, torch.zeros_like(draft[:1])])
    rest = torch.relu(target[count] - padded[count])  # behind the last guess the draft has nothing to subtract
    return count, rest / rest.sum()


def accept_with_for(draft, target, proposed, coins):
    for i, token in enumerate(proposed):
        if coins[i] * draft[i, token] >= target[i, token]:
            more = torch.maximum(target[i] - draft[i], torch.zeros(()))
            return i, torch.nn.functional.normalize(more, p=1, dim=0)
    return len(proposed), target[len(proposed)].clone()


def speed_row_by_row(generate, clock, end, repeats):
    generate()
    times = []
    for _ in range(repeats):
        began = clock()
        rows = generate().tolist()
        times.append(clock() - began)
    count = sum(row.index(end) + 1 if end in row else len(row) for row in rows)
    return count / sorted(times)[repeats // 2]


def speed_by_ticks(generate, clock, end, repeats):
    tokens, ticks = generate(), [clock()]
    for _ in range(repeats):
        generate()
        ticks.append(clock())
    times = torch.tensor(ticks, dtype=torch.float64).diff()
    filled = torch.nn.functional.pad((tokens == end).cummax(dim=1).values, (1, -1))  # behind an end
    return (~filled).sum() / times.median()


VERSIONS = {
    "generation.greedy": (loop_by_rows, loop_for),
    "generation.cached_attention": (head_by_head, grouped),
    "generation.cache_test": (many_cuts, worst_error),
    "generation.min_p": (min_p_in_log_space, min_p_by_rows),
    "generation.top_p": (top_p_shifted, top_p_by_rows),
    "generation.sample": (draw_by_race, draw_by_sum),
    "generation.beam_step": (beams_as_a_list, beams_sorted),
    "generation.stream_text": (cut_by_hand, split_at_shown),
    "generation.speculative_accept": (accept_at_once, accept_with_for),
    "generation.tokens_per_second": (speed_row_by_row, speed_by_ticks),
}
