"""Fifteen inputs that once went wrong. What is not here has its test beside what it tests:

- decoders with Llama's tensors that are none: test_backbones.py::test_decoders_with_the_tensors_of_a_llama_that_are_none
- a padded vocabulary could not be joined: test_build.py::test_a_padded_vocabulary_keeps_its_rows
- test files were trained on: test_streaming.py::test_only_training_files_are_trained_on_wherever_the_split_is_named
- shards that do not divide by the workers, and workers without data, changed what was read and where a run went on:
  test_streaming.py::test_the_order_is_the_same_for_any_number_of_workers and ::test_resuming_goes_on_and_reads_no_more_...
- one of several end tokens was kept: formats/test_smolvlm.py::test_any_of_several_end_tokens_ends_an_answer
- a copy under the tracer, jit, threads, nested tensors: trace/test_left_out.py
- texts hidden from the chat template: test_chat.py::test_a_template_that_looks_into_the_text_sees_the_text
- draws depended on the batch size: test_batch_generate.py::test_what_is_drawn_does_not_depend_on_the_batch_size
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nanovlm.training.loop
from nanovlm.training.loop import train
from tests.tiny import tiny_model
from tests.training.tiny_run import new_model, recipe


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
