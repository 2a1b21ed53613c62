"""The ONNX graphs beside the model that they were written from, and what `--to gguf` needs.

An export takes half a minute. `make test` makes one, in chapter 16's notebook: the export itself compares logits, and
the notebook the answers. Here, `make test-long` makes two more.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nanovlm.inference.onnx_graphs import _write_graph, export_onnx
from nanovlm.inference.onnx_model import OnnxModel
from nanovlm.inference.prompts import prepare_prompt
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.weights.gguf import export_gguf
from tests.formats.test_export import TILES, own_model

WHY = 'needs the extra onnx: pip install "nanovlm[onnx]"'


@pytest.fixture(scope="module")
def write_graph() -> Iterator[Callable[[VisionLanguageModel, str, Path], None]]:
    """Both models have equal weights, so that only `prefill` differs: the other graphs are written once and copied. The
    export compares what it wrote with its model, whoever wrote it."""
    written: dict[str, Path] = {}

    def write(model: VisionLanguageModel, name: str, path: Path) -> None:
        if name in written:
            shutil.copy(written[name], path)
        else:
            _write_graph(model, name, path)
            if name != "prefill":
                written[name] = Path(shutil.copy(path, kept))

    with tempfile.TemporaryDirectory() as kept:
        yield write


@pytest.fixture(scope="module", params=[False, True], ids=["placeholders", "in front"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_graph: Callable) -> tuple:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=WHY)
    model = own_model(num_prefix=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nanovlm.inference.onnx_graphs._write_graph", write_graph)
        directory = export_onnx(model, tmp_path_factory.mktemp("onnx") / "model")
    return model, OnnxModel.from_pretrained(directory, threads=1)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.mark.long
@torch.no_grad()
@pytest.mark.parametrize("shown", [0, 1, 2])
def test_prefill_and_decode_give_the_logits_of_torch(pair: tuple, shown: int) -> None:
    model, theirs = pair
    if shown == 2 and model.config.image_token_id is None:
        shown = 1
    ids, pixels = prepare_prompt(model, "a cat", [picture(i) for i in range(shown)])
    logits, cache = theirs.prefill(ids, pixels)
    found, written = [logits], [7, 3, 9]
    for token in written:
        logits, cache = theirs.decode(token, cache)
        found.append(logits)
    expected = model(torch.tensor([[*ids, *written]]), pixels).logits[0, -4:]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.long
def test_greedy_text_is_the_same(pair: tuple) -> None:
    model, theirs = pair
    answers = []
    for number, question in enumerate(("a cat", "is it red?", "how many of them are there in all?")):
        answers.append(theirs.generate(question, picture(number), 8))
        assert answers[-1] == model.generate(image=picture(number), prompt=question, max_new_tokens=8)
    assert any(answers)


@pytest.mark.long
def test_a_prompt_beyond_the_positions_and_a_missing_graph_are_sentences(pair: tuple, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exceed the model's 1024 positions"):
        pair[1].generate("a cat", None, 5000)
    with pytest.raises(FileNotFoundError, match=r"no vision.onnx: write the directory with"):
        OnnxModel.from_pretrained(tmp_path)


def test_a_missing_package_is_told_before_anything_is_written(tmp_path: Path, monkeypatch, capsys) -> None:
    from nanovlm.cli import main

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "nanovlm[onnx]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_gguf_refuses_other_decoders_and_layouts(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="only models on SmolLM2's decoder"):
        export_gguf(own_model(), tmp_path, None)
    monkeypatch.setattr("nanovlm.weights.gguf.SMOLLM2_VOCABULARY", 1)
    with pytest.raises(ValueError, match="SmolVLM's tiles"):
        export_gguf(own_model("characters"), tmp_path, None)
    assert not any(tmp_path.iterdir())


def test_gguf_calls_the_converter_for_both_files(tmp_path: Path, monkeypatch) -> None:
    # What is refused is tested above; here any model with tiles will do.
    monkeypatch.setattr("nanovlm.weights.gguf.check_servable", lambda model: None)
    model = own_model(tiling=TILES)
    with pytest.raises(FileNotFoundError, match=r"git clone https://github.com/ggml-org/llama.cpp"):
        export_gguf(model, tmp_path / "out", None)
    converter = tmp_path / "convert.py"
    for number, prefix in enumerate(("", "mmproj-")):  # versions of llama.cpp differ
        converter.write_text(
            "import pathlib, sys\n"
            "assert (pathlib.Path(sys.argv[1]) / 'config.json').is_file()\n"
            "out = pathlib.Path(sys.argv[3])\n"
            f"out = out.with_name({prefix!r} * ('--mmproj' in sys.argv) + out.name)\n"
            "out.write_text(' '.join(sys.argv[4:]))\n"
        )
        out = export_gguf(model, tmp_path / f"out{number}", converter)
        assert {path.name: path.read_text() for path in out.glob("*.gguf")} == {
            "text.gguf": "",
            "mmproj.gguf": "--mmproj",
        }
    converter.write_text("raise SystemExit('no such architecture')")
    with pytest.raises(ValueError, match=r"wrote no text.gguf: no such architecture"):
        export_gguf(model, tmp_path / "again", converter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["convert.py", "out0", "out1"], (
        "nothing is left of the other"
    )


def test_graphs_that_differ_from_the_model_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=WHY)
    monkeypatch.setattr("nanovlm.inference.onnx_graphs._write_graph", lambda model, name, path: path.touch())
    monkeypatch.setattr("nanovlm.inference.onnx_graphs.difference", lambda model, directory: float("nan"))
    with pytest.raises(ValueError, match=r"out are wrong, so nothing was written: .* differ from the model's by nan"):
        export_onnx(own_model(), tmp_path / "out")
    assert not any(tmp_path.iterdir())
