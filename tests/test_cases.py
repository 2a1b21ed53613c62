"""Fifteen inputs that once went wrong. What is not here has its test beside what it tests:

- decoders with Llama's tensors that are none:
  test_backbones.py::test_decoders_with_the_tensors_of_a_llama_that_are_none
- a padded vocabulary could not be joined: test_build.py::test_a_padded_vocabulary_keeps_its_rows
- test files were trained on: test_streaming.py::test_only_training_files_are_trained_on_wherever_the_split_is_named
- shards that do not divide by the workers, and workers without data, changed what was read and where a run went on:
  test_streaming.py::test_the_order_is_the_same_for_any_number_of_workers
  and test_streaming.py::test_resuming_goes_on_and_reads_no_more_than_the_buffer
- one of several end tokens was kept: formats/test_smolvlm.py::test_any_of_several_end_tokens_ends_an_answer
- a copy under the tracer, jit, threads, nested tensors: trace/test_left_out.py
- texts hidden from the chat template: test_chat.py::test_a_template_that_looks_into_the_text_sees_the_text
- draws depended on the batch size: test_batch_generate.py::test_what_is_drawn_does_not_depend_on_the_batch_size
"""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nanovlm.training.loop
from nanovlm.training.loop import train
from tests.tiny import tiny_model
from tests.training.tiny_run import new_model, recipe

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"


@pytest.mark.parametrize("later", [{"batch_size": 8}, {"batch_size": 2}, {"gradient_accumulation_steps": 2}])
def test_a_run_goes_on_behind_what_it_has_seen_with_another_batch_size(tmp_path, monkeypatch, later):
    """The place was a number of batches of the new size: half of what came next had been seen, or was jumped over."""
    shown: list[int] = []
    step = nanovlm.training.loop.train_step

    def watched(model, batches, *rest):
        batches = list(batches)
        shown.extend(i for batch in batches for i in batch["sample_indices"])
        return step(model, batches, *rest)

    monkeypatch.setattr(nanovlm.training.loop, "train_step", watched)
    first = recipe(tmp_path, dataset_size=28, max_steps=3, eval_every=100, accuracy_images=0)
    train(first, new_model())
    seen, per_step = len(shown), later.get("batch_size", 8)
    train(replace(first, resume=True, max_steps=3 + 12 // per_step, **later), new_model())
    assert seen == 12 < len(shown) and len(set(shown)) == len(shown)


def test_an_answer_can_be_edited_and_learnt_from():
    """It was an inference tensor: padding could not be masked in it, and no loss computed on it."""
    model = tiny_model()
    ids = model.generate(torch.tensor([[7, 8]]), max_new_tokens=4)
    model(ids + 0, targets=ids.masked_fill_(ids == 1, -100)).loss.backward()
    assert model.decoder.token_embedding.weight.grad.isfinite().all()


class Overwritten(ast.NodeVisitor):
    """Names that a cell reads first and gives another value afterwards: run again, it begins from its own result."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.given: set[str] = set()
        self.found: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.read |= {node.id} - self.given
        else:
            self.given.add(node.id)
            self.found |= {node.id} & self.read

    def visit_Assign(self, node: ast.Assign) -> None:
        for part in (node.value, *node.targets):
            self.visit(part)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.op, ast.BitOr):  # the same union again
            return
        if isinstance(node.target, ast.Name):
            self.visit(ast.Name(node.target.id, ast.Load()))
        self.visit(node.target)

    def visit_For(self, node: ast.For) -> None:
        for part in (node.iter, node.target, *node.body, *node.orelse):
            self.visit(part)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) != "use":  # of one's own function gives the function again
            self.generic_visit(node)

    def _of_its_own(self, node: ast.AST) -> None:
        """A function, class or comprehension has names of its own."""
        self.given |= {node.name} if hasattr(node, "name") else set()

    visit_FunctionDef = visit_ClassDef = visit_Lambda = _of_its_own
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _of_its_own


@pytest.mark.parametrize("path", sorted(CHAPTERS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_cell_run_twice_does_not_begin_from_its_own_result(path):
    """`scores = scores / 2`, run twice, made an assert without a word fail five cells later."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.startswith("!"):
            names = Overwritten()
            names.visit(ast.parse(source))
            assert not names.found, source
