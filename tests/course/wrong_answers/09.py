"""Chapter 09: answers that people write before they know better, and what the check should say of each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.models.language_model import apply_rope

# -- generation.greedy -------------------------------------------------------------------------------------------------


def never_looks_for_the_end(logits, step, choose, ends, max_new_tokens):
    answer = []
    for i in range(max_new_tokens):
        token = choose(logits)
        answer.append(token)
        if i < max_new_tokens - 1:
            logits = step(token)
    return torch.stack(answer).T


def stops_with_the_first_row(logits, step, choose, ends, max_new_tokens):
    answer = []
    for i in range(max_new_tokens):
        token = choose(logits)
        answer.append(token)
        if any(int(t) in ends for t in token) or i == max_new_tokens - 1:
            break
        logits = step(token)
    return torch.stack(answer, 1)


def rows_talk_on(logits, step, choose, ends, max_new_tokens):
    answer, done = [], torch.zeros(logits.shape[0]).bool()
    for i in range(max_new_tokens):
        token = choose(logits)
        answer.append(token)
        for end in ends:
            done = done | (token == end)
        if done.all() or i == max_new_tokens - 1:
            break
        logits = step(token)
    return torch.stack(answer, 1)


def knows_one_end(logits, step, choose, ends, max_new_tokens):
    answer, done = [], torch.zeros(logits.shape[0]).bool()
    for i in range(max_new_tokens):
        token = torch.where(done, torch.tensor(ends[0]), choose(logits))
        answer.append(token)
        done |= token == ends[0]
        if done.all() or i == max_new_tokens - 1:
            break
        logits = step(token)
    return torch.stack(answer, 1)


def one_pass_too_many(logits, step, choose, ends, max_new_tokens):
    answer, done = [], torch.zeros(logits.shape[0]).bool()
    for _ in range(max_new_tokens):
        token = torch.where(done, torch.tensor(ends[0]), choose(logits))
        answer.append(token)
        done |= torch.tensor([int(t) in ends for t in token])
        logits = step(token)
        if done.all():
            break
    return torch.stack(answer, 1)


def one_token_too_many(logits, step, choose, ends, max_new_tokens):
    token = choose(logits)
    answer, done = [token], torch.isin(token, torch.tensor(ends))
    for _ in range(max_new_tokens):
        if done.all():
            break
        token = choose(step(token)).masked_fill(done, ends[0])
        answer.append(token)
        done |= torch.isin(token, torch.tensor(ends))
    return torch.stack(answer, 1)


def the_end_is_left_out(logits, step, choose, ends, max_new_tokens):
    answer, done = [], torch.zeros(logits.shape[0]).bool()
    while len(answer) < max_new_tokens:
        token = choose(logits).masked_fill(done, ends[0])
        done |= torch.isin(token, torch.tensor(ends))
        if done.all():
            break
        answer.append(token)
        if len(answer) < max_new_tokens:
            logits = step(token)
    return torch.stack(answer, 1)


def always_the_likeliest(logits, step, choose, ends, max_new_tokens):
    answer, done = [], torch.zeros(logits.shape[0]).bool()
    for i in range(max_new_tokens):
        token = logits.argmax(-1)
        token[done] = ends[0]
        answer.append(token)
        done |= torch.isin(token, torch.tensor(ends))
        if done.all() or i + 1 == max_new_tokens:
            break
        logits = step(token)
    return torch.stack(answer, 1)


# -- generation.cached_attention ---------------------------------------------------------------------------------------


def shared(k: Tensor, q: Tensor) -> Tensor:
    return k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)


def turned_on_every_read(q, k, v, rope, cache, mask=None):
    k, v = cache.update(k, v)
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    new, seen = q.shape[2], k.shape[2]
    if mask is None:
        mask = torch.ones(new, seen).tril(seen - new).bool()
    return F.scaled_dot_product_attention(q, shared(k, q), shared(v, q), mask)


def causal_whatever_the_length(q, k, v, rope, cache, mask=None):
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    k, v = cache.update(k, v)
    return F.scaled_dot_product_attention(q, shared(k, q), shared(v, q), mask, is_causal=mask is None)


def causal_from_the_left(q, k, v, rope, cache, mask=None):
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    k, v = cache.update(k, v)
    scores = q @ shared(k, q).mT / q.shape[-1] ** 0.5
    if mask is None and q.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:]).tril().bool()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ shared(v, q)


def the_future_is_open(q, k, v, rope, cache, mask=None):
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    k, v = cache.update(k, v)
    return F.scaled_dot_product_attention(q, shared(k, q), shared(v, q), mask)


def only_the_new_ones(q, k, v, rope, cache, mask=None):
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    cache.update(k, v)
    if mask is not None:
        mask = mask[..., -k.shape[2] :]
    return F.scaled_dot_product_attention(q, shared(k, q), shared(v, q), mask, is_causal=mask is None)


def keys_without_rope(q, k, v, rope, cache, mask=None):
    q = apply_rope(q, *rope)
    k, v = cache.update(k, v)
    new, seen = q.shape[2], k.shape[2]
    causal = torch.ones(new, seen).tril(seen - new).bool()
    return F.scaled_dot_product_attention(q, shared(k, q), shared(v, q), causal if mask is None else mask)


def heads_dealt_in_turn(q, k, v, rope, cache, mask=None):
    q, k = apply_rope(q, *rope), apply_rope(k, *rope)
    k, v = (t.repeat(1, q.shape[1] // k.shape[1], 1, 1) for t in cache.update(k, v))
    new, seen = q.shape[2], k.shape[2]
    causal = torch.ones(new, seen).tril(seen - new).bool()
    return F.scaled_dot_product_attention(q, k, v, causal if mask is None else mask)


# -- generation.cache_test ---------------------------------------------------------------------------------------------


def tokens_of(seed: int = 0, length: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(1, 2, length, 8), torch.randn(1, 1, length, 8), torch.randn(1, 1, length, 8)


def in_pieces(attention, q, k, v, sizes) -> Tensor:
    from nanovlm.course.exercises.ch09.cache import in_pieces

    return in_pieces(attention, q, k, v, sizes)


def by_the_book(q, k, v) -> Tensor:
    from nanovlm.course.exercises.ch09.cache import without_cache

    return without_cache(q, k, v)


def believes_everybody(attention) -> bool:
    out = in_pieces(attention, *tokens_of(), [1] * 6)
    return out is not None


def looks_at_the_shape(attention) -> bool:
    q, k, v = tokens_of(1)
    try:
        return in_pieces(attention, q, k, v, [1] * 6).shape == q.shape
    except Exception:
        return False


def reads_all_at_once(attention) -> bool:
    q, k, v = tokens_of(2)
    return torch.allclose(in_pieces(attention, q, k, v, [6]), by_the_book(q, k, v), atol=1e-4)


def one_by_one_alone(attention) -> bool:
    q, k, v = tokens_of(3)
    return torch.allclose(in_pieces(attention, q, k, v, [1] * 6), by_the_book(q, k, v), atol=1e-4)


def against_itself(attention) -> bool:
    q, k, v = tokens_of(4)
    try:
        outs = [in_pieces(attention, q, k, v, sizes) for sizes in ([6], [1] * 6, [3, 1, 2])]
    except RuntimeError:
        return False
    return torch.allclose(outs[0], outs[1], atol=1e-4) and torch.allclose(outs[0], outs[2], atol=1e-4)


def to_the_last_bit(attention) -> bool:
    q, k, v = tokens_of(5)
    try:
        return torch.equal(in_pieces(attention, q, k, v, [3, 1, 2]), by_the_book(q, k, v).double())
    except RuntimeError:
        return False


# -- generation.min_p --------------------------------------------------------------------------------------------------


def a_fixed_threshold(logits, p):
    return torch.where(logits.softmax(-1) >= p, logits, -torch.inf)


def a_share_of_the_logit(logits, p):
    top = logits.max(-1, keepdim=True).values
    return torch.where(logits >= p * top, logits, -torch.inf)


def zero_for_never(logits, p):
    probs = torch.softmax(logits, -1)
    return logits * (probs >= p * probs.max(-1, keepdim=True).values)


def one_row_rules_all(logits, p):
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < p * probs.max(), -torch.inf)


def probabilities_come_back(logits, p):
    probs = logits.softmax(-1)
    kept = torch.where(probs >= p * probs.amax(-1, keepdim=True), probs, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def the_wrong_side(logits, p):
    probs = logits.softmax(-1)
    return torch.where(probs < p * probs.amax(-1, keepdim=True), logits, -torch.inf)


def strictly_above(logits, p):
    probs = logits.softmax(-1)
    return torch.where(probs > p * probs.amax(-1, keepdim=True), logits, -torch.inf)


# -- generation.top_p --------------------------------------------------------------------------------------------------


def drops_who_crosses(logits, p):
    values, order = torch.sort(logits, descending=True)
    out = values.softmax(-1).cumsum(-1) > p
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


def the_unlikely_ones(logits, p):
    values, order = torch.sort(logits)
    probs = values.softmax(-1)
    out = probs.cumsum(-1) - probs >= p
    return logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)


def left_in_order(logits, p):
    values, _ = torch.sort(logits, descending=True)
    probs = values.softmax(-1)
    return values.masked_fill(probs.cumsum(-1) - probs >= p, -torch.inf)


def flags_left_in_order(logits, p):
    values, _ = torch.sort(logits, descending=True)
    probs = values.softmax(-1)
    return logits.masked_fill(probs.cumsum(-1) - probs >= p, -torch.inf)


def never_sorted(logits, p):
    probs = logits.softmax(-1)
    return logits.masked_fill(probs.cumsum(-1) - probs >= p, -torch.inf)


def a_threshold_on_each(logits, p):
    return logits.masked_fill(logits.softmax(-1) < 1 - p, -torch.inf)


def nucleus_as_probabilities(logits, p):
    probs, order = logits.softmax(-1).sort(descending=True)
    probs = torch.where(probs.cumsum(-1) - probs >= p, 0.0, probs)
    probs = probs / probs.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, order, probs)


def zero_for_out(logits, p):
    values, order = torch.sort(logits, descending=True)
    probs = values.softmax(-1)
    values = torch.where(probs.cumsum(-1) - probs >= p, 0.0, values)
    return torch.empty_like(logits).scatter(-1, order, values)


# -- generation.sample -------------------------------------------------------------------------------------------------


def cut_then_cooled(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((keep(logits) / temperature).softmax(-1), 1, generator=generator)[:, 0]


def cooled_probabilities(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(keep(logits).softmax(-1) / temperature, 1, generator=generator)[:, 0]


def the_other_way_round(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(keep(logits * temperature).softmax(-1), 1, generator=generator)[:, 0]


def zero_is_divided_by(logits, temperature, keep, generator):
    return torch.multinomial(keep(logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def keeps_everything(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]


def the_likeliest_only(logits, temperature, keep, generator):
    return keep(logits / max(temperature, 1e-6)).argmax(-1)


def draws_from_the_world(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(keep(logits / temperature).softmax(-1), 1)[:, 0]


def one_row_for_all(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1)
    chances = keep(logits / temperature).softmax(-1)[0]
    return torch.multinomial(chances, len(logits), replacement=True, generator=generator)


def a_column(logits, temperature, keep, generator):
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(keep(logits / temperature).softmax(-1), 1, generator=generator)


# -- generation.beam_step ----------------------------------------------------------------------------------------------


def _best(scores, totals, lengths, beams, width):
    best = scores.flatten().topk(beams).indices
    return best % width, best // width, totals.flatten()[best], lengths[best // width]


def adds_up_logits(logits, totals, lengths, finished, end, length_penalty):
    gains = logits.clone()
    gains[finished] = -torch.inf
    gains[finished, end] = 0
    sums, grown = totals[:, None] + gains, lengths + (~finished).long()
    return _best(sums / grown[:, None] ** length_penalty, sums, grown, len(totals), logits.shape[1])


def adds_up_probabilities(logits, totals, lengths, finished, end, length_penalty):
    gains = logits.softmax(-1)
    gains[finished] = -torch.inf
    gains[finished, end] = 0
    sums, grown = totals[:, None] + gains, lengths + (~finished).long()
    return _best(sums / grown[:, None] ** length_penalty, sums, grown, len(totals), logits.shape[1])


def finished_beams_go_on(logits, totals, lengths, finished, end, length_penalty):
    sums, grown = totals[:, None] + logits.log_softmax(-1), lengths + 1
    return _best(sums / grown[:, None] ** length_penalty, sums, grown, len(totals), logits.shape[1])


def the_end_costs_again(logits, totals, lengths, finished, end, length_penalty):
    gains = logits.log_softmax(-1)
    only_end = torch.full_like(gains, -torch.inf)
    only_end[:, end] = gains[:, end]
    gains = torch.where(finished[:, None], only_end, gains)
    sums, grown = totals[:, None] + gains, lengths + (~finished).long()
    return _best(sums / grown[:, None] ** length_penalty, sums, grown, len(totals), logits.shape[1])


def finished_beams_grow(logits, totals, lengths, finished, end, length_penalty):
    gains = logits.log_softmax(-1)
    gains[finished] = -torch.inf
    gains[finished, end] = 0
    sums, grown = totals[:, None] + gains, lengths + 1
    return _best(sums / grown[:, None] ** length_penalty, sums, grown, len(totals), logits.shape[1])


def divides_by_the_beams(logits, totals, lengths, finished, end, length_penalty):
    gains = logits.log_softmax(-1)
    gains[finished] = -torch.inf
    gains[finished, end] = 0
    sums, grown = totals[:, None] + gains, lengths + (~finished).long()
    best = (sums / grown[:, None] ** length_penalty).flatten().topk(len(totals)).indices
    rows = (best // len(totals)).clamp(max=len(totals) - 1)
    return best % len(totals), rows, sums.flatten()[best], grown[rows]


def each_beam_its_own_best(logits, totals, lengths, finished, end, length_penalty):
    gains = logits.log_softmax(-1)
    gains[finished] = -torch.inf
    gains[finished, end] = 0
    values, tokens = gains.max(-1)
    return tokens, torch.arange(len(totals)), totals + values, lengths + (~finished).long()


def ranks_by_the_sum(logits, totals, lengths, finished, end, length_penalty):
    gains = logits.log_softmax(-1)
    gains[finished] = -torch.inf
    gains[finished, end] = 0
    sums, grown = totals[:, None] + gains, lengths + (~finished).long()
    return _best(sums, sums, grown, len(totals), logits.shape[1])


def keeps_the_scores(logits, totals, lengths, finished, end, length_penalty):
    gains = logits.log_softmax(-1)
    gains[finished] = -torch.inf
    gains[finished, end] = 0
    sums, grown = totals[:, None] + gains, lengths + (~finished).long()
    scores = sums / grown[:, None] ** length_penalty
    return _best(scores, scores, grown, len(totals), logits.shape[1])


# -- generation.stream_text --------------------------------------------------------------------------------------------


def half_characters(ids, shown, decode):
    return decode(ids).strip()[len(shown) :]


def the_last_token_alone(ids, shown, decode):
    return decode(ids[-1:])


def all_of_it_again(ids, shown, decode):
    return decode(ids).strip("\ufffd").strip()


def no_spaces(ids, shown, decode):
    return decode(ids).rstrip("\ufffd")[len(shown) :].strip()


def spaces_at_the_end(ids, shown, decode):
    return decode(ids).rstrip("\ufffd").lstrip()[len(shown) :]


def holes_are_cut_out(ids, shown, decode):
    return decode(ids).replace("\ufffd", "").strip()[len(shown) :]


def whole_words_only(ids, shown, decode):
    text = decode(ids).rstrip("\ufffd").strip()
    return text[: text.rfind(" ") + 1].strip()[len(shown) :]


def everything_at_once(ids, shown, decode):
    return decode(ids)[len(shown) :]


def spaces_before_holes(ids, shown, decode):
    return decode(ids).strip().rstrip("\ufffd")[len(shown) :]


def spaces_before_all_holes(ids, shown, decode):
    return decode(ids).strip().replace("\ufffd", "")[len(shown) :]


# -- generation.speculative_accept -------------------------------------------------------------------------------------


def _rest(draft, target, n):
    if n == len(draft):
        return n, target[n]
    left = (target[n] - draft[n]).clamp(min=0)
    return n, left / left.sum()


def agrees_with_the_best(draft, target, proposed, coins):
    n = 0
    while n < len(proposed) and int(target[n].argmax()) == int(proposed[n]):
        n += 1
    return _rest(draft, target, n)


def by_the_target_alone(draft, target, proposed, coins):
    n = 0
    while n < len(proposed) and coins[n] < target[n, proposed[n]]:
        n += 1
    return _rest(draft, target, n)


def upside_down(draft, target, proposed, coins):
    n = 0
    while n < len(proposed) and coins[n] < draft[n, proposed[n]] / target[n, proposed[n]]:
        n += 1
    return _rest(draft, target, n)


def counts_all_the_heads(draft, target, proposed, coins):
    n = sum(bool(coins[i] < target[i, token] / draft[i, token]) for i, token in enumerate(proposed.tolist()))
    return _rest(draft, target, n)


def draws_from_the_target(draft, target, proposed, coins):
    n = 0
    while n < len(proposed) and coins[n] < target[n, proposed[n]] / draft[n, proposed[n]]:
        n += 1
    return n, target[n]


def forgets_to_normalise(draft, target, proposed, coins):
    n = 0
    while n < len(proposed) and coins[n] < target[n, proposed[n]] / draft[n, proposed[n]]:
        n += 1
    return n, target[n] if n == len(draft) else (target[n] - draft[n]).clamp(min=0)


def one_further(draft, target, proposed, coins):
    n = 0
    while n < len(proposed) and coins[n] < target[n, proposed[n]] / draft[n, proposed[n]]:
        n += 1
    return n, target[-1]


def the_size_of_the_gap(draft, target, proposed, coins):
    n = 0
    while n < len(proposed) and coins[n] < target[n, proposed[n]] / draft[n, proposed[n]]:
        n += 1
    if n == len(draft):
        return n, target[n]
    gap = (target[n] - draft[n]).abs()
    return n, gap / gap.sum()


def times_of(generate, clock, repeats):
    times = []
    for _ in range(repeats):
        start = clock()
        tokens = generate()
        times.append(clock() - start)
    return tokens, times


def real_tokens(tokens, end):
    return sum(row.index(end) + 1 if end in row else len(row) for row in tokens.tolist())


def no_warm_up(generate, clock, end, repeats):
    tokens, times = times_of(generate, clock, repeats)
    return real_tokens(tokens, end) / sorted(times)[repeats // 2]


def every_place(generate, clock, end, repeats):
    generate()
    tokens, times = times_of(generate, clock, repeats)
    return tokens.numel() / sorted(times)[repeats // 2]


def all_but_the_ends(generate, clock, end, repeats):
    generate()
    tokens, times = times_of(generate, clock, repeats)
    return int((tokens != end).sum()) / sorted(times)[repeats // 2]


def on_average(generate, clock, end, repeats):
    generate()
    tokens, times = times_of(generate, clock, repeats)
    return real_tokens(tokens, end) * repeats / sum(times)


def the_best_time(generate, clock, end, repeats):
    generate()
    tokens, times = times_of(generate, clock, repeats)
    return real_tokens(tokens, end) / min(times)


def seconds_a_token(generate, clock, end, repeats):
    generate()
    tokens, times = times_of(generate, clock, repeats)
    return sorted(times)[repeats // 2] / real_tokens(tokens, end)


def the_columns(generate, clock, end, repeats):
    generate()
    tokens, times = times_of(generate, clock, repeats)
    return tokens.shape[1] / sorted(times)[repeats // 2]


def the_whole_time(generate, clock, end, repeats):
    generate()
    start = clock()
    for _ in range(repeats):
        tokens = generate()
    return real_tokens(tokens, end) / (clock() - start)


WRONG = {
    "generation.greedy": [
        (never_looks_for_the_end, "never stops"),
        (stops_with_the_first_row, "as soon as one row"),
        (rows_talk_on, "goes on talking"),
        (knows_one_end, "ends[0]"),
        (one_pass_too_many, "after the last token"),
        (one_token_too_many, "one token too many"),
        (the_end_is_left_out, "end token itself"),
        (always_the_likeliest, "choose"),
    ],
    "generation.cached_attention": [
        (turned_on_every_read, "turned again"),
        (causal_whatever_the_length, "is_causal"),
        (causal_from_the_left, "lined up"),
        (the_future_is_open, "future"),
        (only_the_new_ones, "only the new"),
        (keys_without_rope, "keys are not turned"),
        (heads_dealt_in_turn, "repeat_interleave"),
    ],
    "generation.cache_test": [
        (believes_everybody, "accepts every"),
        (looks_at_the_shape, "shape"),
        (reads_all_at_once, "all at once"),
        (one_by_one_alone, "one by one"),
        (against_itself, "with itself"),
        (to_the_last_bit, "tolerance"),
    ],
    "generation.min_p": [
        (a_fixed_threshold, "absolute"),
        (a_share_of_the_logit, "logits"),
        (zero_for_never, "0"),
        (one_row_rules_all, "whole batch"),
        (probabilities_come_back, "probabilities"),
        (the_wrong_side, "unlikely"),
        (strictly_above, "p = 1"),
    ],
    "generation.top_p": [
        (drops_who_crosses, "crosses"),
        (the_unlikely_ones, "least likely"),
        (left_in_order, "sorted order"),
        (flags_left_in_order, "sorted order"),
        (never_sorted, "without sorting"),
        (a_threshold_on_each, "each token on its own"),
        (nucleus_as_probabilities, "probabilities"),
        (zero_for_out, "-inf"),
    ],
    "generation.sample": [
        (cut_then_cooled, "before the temperature"),
        (cooled_probabilities, "probabilities are divided"),
        (the_other_way_round, "multiplied"),
        (zero_is_divided_by, "temperature 0"),
        (keeps_everything, "keep"),
        (the_likeliest_only, "draw"),
        (draws_from_the_world, "generator"),
        (one_row_for_all, "first row"),
        (a_column, "one token for each row"),
    ],
    "generation.beam_step": [
        (adds_up_logits, "log-probabilities"),
        (adds_up_probabilities, "log-probabilities"),
        (finished_beams_go_on, "finished beam"),
        (the_end_costs_again, "at no cost"),
        (finished_beams_grow, "grows"),
        (divides_by_the_beams, "vocabulary"),
        (each_beam_its_own_best, "all beams together"),
        (ranks_by_the_sum, "length"),
        (keeps_the_scores, "sum"),
    ],
    "generation.stream_text": [
        (half_characters, "half a character"),
        (the_last_token_alone, "last token alone"),
        (all_of_it_again, "again"),
        (no_spaces, "spaces between"),
        (spaces_at_the_end, "held back"),
        (holes_are_cut_out, "in the middle"),
        (whole_words_only, "whole words"),
        (everything_at_once, "at once"),
        (spaces_before_holes, "first"),
        (spaces_before_all_holes, "off the end"),
    ],
    "generation.speculative_accept": [
        (agrees_with_the_best, "argmax"),
        (by_the_target_alone, "target's probability alone"),
        (upside_down, "upside down"),
        (counts_all_the_heads, "first rejection"),
        (draws_from_the_target, "from the target"),
        (forgets_to_normalise, "sum to 1"),
        (one_further, "row"),
        (the_size_of_the_gap, "negative"),
    ],
    "generation.tokens_per_second": [
        (no_warm_up, "first call"),
        (every_place, "behind a row's end"),
        (all_but_the_ends, "end token is not counted"),
        (on_average, "mean"),
        (the_best_time, "fastest"),
        (seconds_a_token, "seconds for a token"),
        (the_columns, "steps of the loop"),
        (the_whole_time, "all repeats"),
    ],
}
