"""The benchmark command measures; how fast a machine is, is no matter of a test."""

import sys

import torch

from nanovlm.trace import bench, trace


def test_it_compares_with_torchinfo_in_one_run():
    found = bench.compare(bench.Stack(1, 16, 2, 20).eval(), torch.zeros(1, 4, dtype=torch.long), repeats=2)
    assert {"plain", "nanovlm.trace"} <= set(found)
    assert all(cost.wall > 0 for cost in found.values())


def test_the_command_prints_both_models(monkeypatch, capsys):
    monkeypatch.setattr(bench, "Stack", lambda *sizes: _Tiny())
    monkeypatch.setattr(sys, "argv", ["bench", "--repeats", "1", "--layers", "1"])
    bench.main()
    out = capsys.readouterr().out
    assert "large:" in out and "tiny:" in out and out.count("nanovlm.trace") == 2


class _Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(49152, 2)

    def forward(self, ids):
        return self.embedding(ids)


def test_a_row_costs_little():
    """A model of 2 ms has about 150 steps: 5x of it is 50 microseconds a step, in processor time."""
    model, ids = bench.Stack(8, 64, 4, 512).eval(), torch.zeros(2, 32, dtype=torch.long)
    with torch.no_grad():
        steps = len(trace(model, ids).rows)
        found = bench.compare(model, ids, repeats=9)
    assert (found["nanovlm.trace"].processor - found["plain"].processor) / steps < 100e-6
