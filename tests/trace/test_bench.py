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


def calls_of_a_trace(num_layers: int) -> tuple[int, int]:
    """How many functions a trace calls beyond those that the model calls without it, and its rows."""
    model, ids, calls = bench.Stack(num_layers, 16, 2, 32).eval(), torch.zeros(1, 8, dtype=torch.long), []

    def count(frame, event, arg):
        calls[-1] += event in ("call", "c_call")

    rows = len(trace(model, ids).rows)  # what is made once is there now
    for run in (lambda: model(ids), lambda: trace(model, ids)):
        calls.append(0)
        sys.setprofile(count)
        try:
            run()
        finally:
            sys.setprofile(None)
    return calls[1] - calls[0], rows


def test_a_row_costs_little_however_deep_the_model():
    """Calls of functions are counted, of which every machine makes as many."""
    (few, few_rows), (many, many_rows) = calls_of_a_trace(4), calls_of_a_trace(16)
    assert many_rows > 3 * few_rows
    assert many / many_rows < 1.2 * few / few_rows, "a row costs as much in a deep model as in a flat one"
    assert many / many_rows < 300
