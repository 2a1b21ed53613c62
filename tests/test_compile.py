"""torch.compile as a switch: the same numbers, one graph for each part, no new graph for what was seen."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from tests.tiny import FIRST_WORD, IMAGE, VOCAB_SIZE, random_images, tiny_model

compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++") or shutil.which("cl")


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Makes compile_parts trace for real, but run the graphs as Python; counts them."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=counter))
    torch._dynamo.utils.counters.clear()
    yield counter
    torch._dynamo.reset()


def loss_of(model: VisionLanguageModel, length: int, batch_size: int = 2, with_images: bool = True) -> float:
    """Forward and backward of a batch that depends on its shape only."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(FIRST_WORD, VOCAB_SIZE, (batch_size, length), generator=generator)
    targets = torch.where(ids % 2 == 0, ids, IGNORE)
    if with_images:
        ids[:, : model.config.num_image_tokens] = IMAGE
    model.zero_grad()
    loss = model(ids, random_images(batch_size) if with_images else None, targets=targets).loss
    loss.backward()
    return loss.item()


def gradient_norm(model: VisionLanguageModel) -> float:
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()


def test_the_encoder_and_the_decoder_are_one_graph_each_and_reused(counter: CompileCounterWithBackend) -> None:
    plain, compiled = tiny_model(num_blocks=3), tiny_model(num_blocks=3)
    compiled.compile_parts()
    for length in (10, 10):
        assert loss_of(compiled, length) == pytest.approx(loss_of(plain, length), abs=1e-4)
        assert gradient_norm(compiled) == pytest.approx(gradient_norm(plain), rel=1e-4)
    assert counter.frame_count == 2, "one graph for the encoder, one for the decoder"
    assert loss_of(compiled, 12) == pytest.approx(loss_of(plain, 12), abs=1e-4)
    assert counter.frame_count == 3, "a second length makes one graph for any length"
    for length in (14, 11, 17):
        assert loss_of(compiled, length) == pytest.approx(loss_of(plain, length), abs=1e-4)
    assert counter.frame_count == 3
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.long
def test_generation_with_compiled_parts(counter: CompileCounterWithBackend) -> None:
    plain, compiled = tiny_model(num_blocks=1), tiny_model(num_blocks=1)
    compiled.compile_parts()
    for model in (plain, compiled):
        model.config.eos_token_id = 0
    for prompt_length in (5, 9):
        ids = torch.arange(FIRST_WORD, FIRST_WORD + prompt_length)[None]
        assert compiled.generate(ids, max_new_tokens=20).tolist() == plain.generate(ids, max_new_tokens=20).tolist()
    assert counter.frame_count <= 8, "a graph for every new token would be a storm"
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.long
def test_compiled_with_padding_packing_and_checkpointing(counter: CompileCounterWithBackend) -> None:
    plain, compiled = tiny_model(num_blocks=1), tiny_model(num_blocks=1)
    compiled.compile_parts()
    ids = torch.arange(FIRST_WORD, FIRST_WORD + 12).view(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    documents = torch.tensor([[0, 0, 0, 1, 1, -1], [0] * 6])
    for options in ({"attention_mask": mask}, {"document_ids": documents}):
        losses = [model.train()(ids, targets=ids.roll(-1, 1), **options).loss.item() for model in (plain, compiled)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for model in (plain, compiled):
        model.gradient_checkpointing()
    assert loss_of(compiled, 10) == pytest.approx(loss_of(plain, 10), abs=1e-4)
    assert gradient_norm(compiled) == pytest.approx(gradient_norm(plain), rel=1e-4)
    answers = [model.eval().generate(ids, None, mask, max_new_tokens=8).tolist() for model in (plain, compiled)]
    assert answers[0] == answers[1]


@pytest.mark.skipif(compiler is None, reason="torch.compile's default backend needs a C++ compiler; none was found")
@pytest.mark.long
def test_inductor_gives_the_same_loss_and_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C++ takes its time: one decoder block, forward and backward, is all of it that is tried here."""
    # Kernels that another processor compiled may be cached on this disk; they end the process here.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # Whether the compiler knows the processor's vectors is found out by compiling; plain C++ does as well.
    monkeypatch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", lambda: [])
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no processes that import torch once more
    torch._dynamo.reset()
    plain, compiled = tiny_model(num_blocks=1), tiny_model(num_blocks=1)
    compiled.compile_parts()
    losses = [loss_of(model, 10, with_images=False) for model in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert gradient_norm(compiled) == pytest.approx(gradient_norm(plain), rel=1e-4)
    assert compiled.state_dict().keys() == plain.state_dict().keys(), "a compiled model saves under the same names"
    torch._dynamo.reset()
