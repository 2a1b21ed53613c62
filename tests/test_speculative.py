"""Speculative decoding: the text is the model's own, whatever the draft is."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanovlm.inference.speculative import accept, early_exit, generate_speculatively
from tests.tiny import END, tiny_model

chances = st.lists(st.floats(-4, 4), min_size=5, max_size=5).map(
    lambda x: torch.tensor(x, dtype=torch.float64).softmax(0)
)


@given(draft=chances, target=chances)
def test_over_guesses_and_coins_the_next_token_follows_the_target_exactly(draft, target) -> None:
    """A guess stays below a coin of target / draft, so that two coins a guess, just below and just above, say all."""
    total = torch.zeros(5, dtype=torch.float64)
    rows = torch.stack([target, target])
    for guess in range(5):
        ratio = min(1.0, float(target[guess] / draft[guess]))
        tokens = torch.tensor([guess])
        count, _ = accept(draft[None], rows, tokens, torch.tensor([0.999999 * ratio], dtype=torch.float64))
        assert count == 1
        total[guess] += draft[guess] * ratio
        if ratio < 0.999:
            count, rest = accept(draft[None], rows, tokens, torch.tensor([1.000001 * ratio], dtype=torch.float64))
            assert count == 0
            total += draft[guess] * (1 - ratio) * rest
        else:
            total += draft[guess] * (1 - ratio) * target
    torch.testing.assert_close(total, target, atol=1e-2, rtol=0)


def test_guesses_behind_a_rejected_one_are_dropped() -> None:
    draft, target = torch.full((3, 2), 0.5), torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.2, 0.8]])
    count, rest = accept(draft, target, torch.tensor([0, 0, 0]), torch.tensor([0.5, 0.9, 0.1]))
    assert count == 1 and torch.allclose(rest, torch.tensor([0.0, 1.0]))
    count, rest = accept(draft, target, torch.tensor([0, 1, 0]), torch.tensor([0.5, 0.9, 0.1]))
    assert count == 3 and rest.equal(target[3])


@pytest.mark.parametrize("lookahead", [1, 3, 6])
@pytest.mark.parametrize("max_new_tokens", [1, 4, 20])
def test_greedy_speculation_writes_what_generate_writes(lookahead: int, max_new_tokens: int) -> None:
    model = tiny_model(None, num_blocks=3)
    for seed in range(4):
        ids = torch.randint(7, 20, (1, 5), generator=torch.Generator().manual_seed(seed))
        plain = model.generate(ids, max_new_tokens=max_new_tokens)
        result = generate_speculatively(
            model, early_exit(model.decoder, 1), ids, lookahead=lookahead, max_new_tokens=max_new_tokens
        )
        assert result.tokens.tolist() == plain.tolist()
        assert result.passes <= plain.shape[1] and result.accepted <= result.proposed


def test_a_draft_that_is_the_model_itself_saves_all_passes_but_one_in_four() -> None:
    model = tiny_model(None)
    model.config.eos_token_id = END
    ids = torch.tensor([[7, 8, 9]])
    result = generate_speculatively(model, model.decoder, ids, lookahead=3, max_new_tokens=12)
    assert result.accepted == result.proposed
    assert result.passes == 1 + math.ceil((result.tokens.shape[1] - 1) / 4)


@pytest.mark.long
def test_drawn_pairs_have_the_probabilities_of_the_model() -> None:
    model = tiny_model(None, vocab_size=8, num_blocks=2)
    with torch.no_grad():
        model.decoder.token_embedding.weight *= 0.5  # closer to even, so that guesses are rejected often
        ids, wanted = torch.tensor([[2, 5, 3]]), Counter()
        for first in range(8):
            p = model(ids).logits[0, -1].softmax(-1)[first].item()
            if first == END:
                wanted[(first,)] = p
                continue
            after = model(torch.cat([ids, torch.tensor([[first]])], 1)).logits[0, -1].softmax(-1)
            wanted.update({(first, second): p * after[second].item() for second in range(8)})
    draft, draws, seen, rejected = early_exit(model.decoder, 1), 400, Counter(), 0
    for seed in range(draws):
        result = generate_speculatively(model, draft, ids, max_new_tokens=2, temperature=1.0, seed=seed)
        seen[tuple(result.tokens[0].tolist())] += 1
        rejected += result.proposed - result.accepted
    assert rejected > draws / 20, "a draft that is always right tests nothing"
    assert set(seen) <= set(wanted)
    for pair, p in wanted.items():
        assert abs(seen[pair] / draws - p) < 5 * math.sqrt(p * (1 - p) / draws) + 2e-3, pair


def test_bad_settings_get_a_sentence() -> None:
    model = tiny_model(None)
    for blocks in (0, len(model.decoder.blocks)):
        with pytest.raises(ValueError, match="A draft has at least one block"):
            early_exit(model.decoder, blocks)
    with pytest.raises(ValueError, match="one answer at a time; got 2 prompts"):
        generate_speculatively(model, model.decoder, torch.tensor([[7], [8]]))
    with pytest.raises(ValueError, match="lookahead and max_new_tokens"):
        generate_speculatively(model, model.decoder, torch.tensor([[7]]), lookahead=0)
