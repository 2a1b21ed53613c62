"""Packed rows in blocks: what flex attention computes is what the mask computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import nanovlm.models.attention
from nanovlm.models.flex import attend_in_blocks, blocks_pay
from nanovlm.models.language_model import attention_layout
from tests.tiny import max_difference, tiny_model

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def documents(*rows: list[int]) -> torch.Tensor:
    """Lengths of the documents of each row -> ids [B, T]; a negative length is padding."""
    ids = [[n if length > 0 else -1 for n, length in enumerate(row) for _ in range(abs(length))] for row in rows]
    return torch.tensor(ids)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_blocks_see_what_the_mask_shows(num_kv_heads: int) -> None:
    """Rows of more than one block of 128, with documents that end inside of blocks and at their ends."""
    _, mask = attention_layout(None, documents([128, 3, 150, -19], [299, 1]), 300, CPU)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 300, 16) for heads in (4, num_kv_heads, num_kv_heads))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    assert max_difference(attend_in_blocks(q, k, v, mask), expected) < 1e-5
    _, other = attention_layout(None, documents([300], [299, 1]), 300, CPU)
    apart = (attend_in_blocks(q, k, v, other) - expected).abs().amax(dim=(1, 2, 3))
    assert apart[0] > 0.1 and apart[1] < 1e-5, "another mask is not taken for the one before"


@pytest.mark.long
def test_blocks_are_traced_without_a_break() -> None:
    """As part of a decoder that is compiled as a whole: what holds masks between calls stays outside."""
    _, mask = attention_layout(None, documents([5, 3]), 8, CPU)
    q, k, v = (torch.randn(1, heads, 8, 16) for heads in (4, 2, 2))
    traced = torch.compile(attend_in_blocks, backend="eager", fullgraph=True)
    assert max_difference(traced(q, k, v, mask), attend_in_blocks(q, k, v, mask)) < 1e-6


@torch.no_grad()
def test_a_model_whose_rows_go_in_blocks_has_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().eval()
    ids = torch.randint(6, 40, (2, 24))
    ids[ids == model.config.image_token_id] = 6
    packed, calls = documents([10, 9, -5], [24]), 0

    def counted(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return attend_in_blocks(*arguments)

    expected = model(ids, document_ids=packed).logits
    monkeypatch.setattr(nanovlm.models.attention, "blocks_pay", lambda *_: True)
    monkeypatch.setattr(nanovlm.models.attention, "attend_in_blocks", counted)
    found = model(ids, document_ids=packed).logits
    assert calls == model.config.language.num_blocks
    assert max_difference(found[packed >= 0], expected[packed >= 0]) < 1e-5


def test_a_cpu_and_short_rows_keep_the_mask() -> None:
    q = torch.randn(1, 2, 2048, 4, requires_grad=True)
    assert not blocks_pay(q, torch.ones(1, 1, 2048, 2048, dtype=torch.bool))
