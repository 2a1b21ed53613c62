"""FLOP formulas against torch's own counter, on meta (on the CPU it counts attention as nothing)."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nanovlm.trace import trace


def meta(*shape):
    return torch.empty(*shape, device="meta")


def recurrent(kind, **options):
    return lambda: kind(4, 5, device="meta", **options)(meta(7, 2, 4))


CASES = {
    "linear": lambda: F.linear(meta(2, 3, 4), meta(5, 4), meta(5)),
    "linear 1d": lambda: F.linear(meta(7, 4), meta(5, 4)),
    "matmul 2d": lambda: meta(3, 4) @ meta(4, 5),
    "matmul broadcast": lambda: meta(2, 1, 3, 4) @ meta(6, 4, 5),
    "matmul batch": lambda: torch.matmul(meta(2, 3, 4), meta(2, 4, 5)),
    "matmul shared right": lambda: torch.matmul(meta(2, 3, 4), meta(4, 5)),
    "mm": lambda: torch.mm(meta(3, 4), meta(4, 5)),
    "bmm": lambda: torch.bmm(meta(2, 3, 4), meta(2, 4, 5)),
    "addmm": lambda: torch.addmm(meta(5), meta(3, 4), meta(4, 5)),
    "baddbmm": lambda: torch.baddbmm(meta(2, 3, 5), meta(2, 3, 4), meta(2, 4, 5)),
    "conv1d": lambda: F.conv1d(meta(2, 4, 9), meta(6, 4, 3), padding=1),
    "conv2d": lambda: F.conv2d(meta(2, 4, 9, 9), meta(6, 4, 3, 3), meta(6), stride=2),
    "conv2d groups": lambda: F.conv2d(meta(2, 4, 9, 9), meta(6, 2, 3, 3), groups=2),
    "conv3d": lambda: F.conv3d(meta(1, 2, 5, 5, 5), meta(3, 2, 2, 2, 2)),
    "conv transpose": lambda: F.conv_transpose2d(meta(2, 4, 5, 5), meta(4, 6, 3, 3), stride=2),
    "sdpa": lambda: F.scaled_dot_product_attention(meta(2, 3, 5, 8), meta(2, 3, 7, 8), meta(2, 3, 7, 8)),
    "sdpa causal": lambda: F.scaled_dot_product_attention(*(meta(2, 3, 5, 8) for _ in range(3)), is_causal=True),
    "sdpa mask": lambda: F.scaled_dot_product_attention(*(meta(2, 3, 5, 8) for _ in range(3)), attn_mask=meta(5, 5)),
    "sdpa grouped": lambda: F.scaled_dot_product_attention(
        meta(2, 6, 5, 8), meta(2, 2, 5, 8), meta(2, 2, 5, 8), enable_gqa=True
    ),
    "einsum": lambda: torch.einsum("bqd,bkd->bqk", meta(2, 3, 4), meta(2, 5, 4)),
    "einsum heads": lambda: torch.einsum("bqhd,bkhd->bhqk", meta(2, 3, 6, 4), meta(2, 5, 6, 4)),
    "einsum ellipsis": lambda: torch.einsum("...id,dj->...ij", meta(2, 3, 4, 5), meta(5, 6)),
    "einsum implicit": lambda: torch.einsum("ij,jk", meta(3, 4), meta(4, 5)),
    "tensordot": lambda: torch.tensordot(meta(3, 4, 5), meta(4, 5, 6), dims=2),
    "lstm": recurrent(nn.LSTM, num_layers=2),
    "lstm both ways": recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
    "lstm projected": recurrent(nn.LSTM, proj_size=3),
    "gru": recurrent(nn.GRU, num_layers=2),
    "gru without bias": recurrent(nn.GRU, bias=False, bidirectional=True),
    "rnn": recurrent(nn.RNN, nonlinearity="relu"),
    "lstm cell": lambda: nn.LSTMCell(4, 5, device="meta")(meta(7, 4)),
    "gru cell": lambda: nn.GRUCell(4, 5, device="meta")(meta(7, 4)),
    "rnn cell": lambda: nn.RNNCell(4, 5, device="meta")(meta(7, 4)),
    "no product": lambda: (meta(3, 4) + 1).softmax(-1).sum(),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_counter(name):
    with FlopCounterMode(display=False) as counter:
        CASES[name]()
    assert trace(CASES[name]).flops == counter.get_total_flops()


def test_matrix_times_vector_is_counted_though_the_counter_does_not():
    with FlopCounterMode(display=False) as counter:
        meta(3, 4) @ meta(4)
    assert counter.get_total_flops() == 0
    assert trace(lambda: meta(3, 4) @ meta(4)).flops == 2 * 3 * 4


def test_bilinear():
    assert trace(lambda: F.bilinear(meta(7, 3), meta(7, 4), meta(5, 3, 4))).flops == 2 * 7 * 5 * (3 * 4 + 3)


def test_packed_sequences_count_their_tokens_without_padding():
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(7, 2, 4), [7, 3])
    lstm = nn.LSTM(4, 5)
    assert trace(lstm, packed).flops == trace(lstm, torch.zeros(10, 1, 4)).flops > 0


def test_a_failed_step_costs_nothing():
    def model():
        try:
            return meta(3, 4) @ meta(3, 4)
        except RuntimeError:
            return meta(3, 4) @ meta(4, 3)

    assert trace(model).flops == 2 * 3 * 3 * 4
