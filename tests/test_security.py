"""What strangers' files can do here: CONTRIBUTING has the list, and each of its lines names a test."""

from __future__ import annotations

import ast
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.config import TrainConfig
from nanovlm.course import progress
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.own_data import read_own_data
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.subsets import open_subsets
from nanovlm.training.checkpoint import load_checkpoint, save_checkpoint
from tests.test_streaming import tree
from tests.tiny import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def lines() -> list[str]:
    """The list of CONTRIBUTING's section, one entry a string."""
    section = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n## Security\n")[2].partition("\n## ")[0]
    )
    return [" ".join(entry.split()) for entry in re.split(r"^- ", section, flags=re.MULTILINE)[1:]]


def test_each_line_of_the_list_names_a_test_that_exists() -> None:
    assert len(lines()) >= 20
    for line in lines():
        assert re.match(r"(can|cannot) ", line), line
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line)
        assert named, f"names no test: {line}"
        for file, test in named:
            tree_ = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in ast.walk(tree_) if isinstance(node, ast.FunctionDef)}, (
                f"{file}::{test}"
            )


# -- what no other file of tests shows --------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """Python source that leaves a trace when it is run."""
    source = tmp_path / "trap.py"
    source.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Model: pass\n", encoding="utf-8")
    return source


def test_code_in_a_model_directory_is_not_run(tmp_path: Path, trap: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    model.tokenizer, model.image_processor = tokenizer, ImageProcessor(16)
    folder = model.save_pretrained(tmp_path / "model")
    for name in ("modeling.py", "__init__.py", "tokenization.py", "conftest.py"):
        (folder / name).write_text(trap.read_text(encoding="utf-8"), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    named = {"auto_map": {"AutoTokenizer": ["tokenization.Model", None]}, "tokenizer_class": "Model"}
    settings.write_text(json.dumps({**json.loads(settings.read_text(encoding="utf-8")), **named}), encoding="utf-8")
    VisionLanguageModel.from_pretrained(folder)
    config = folder / "config.json"
    named = {"auto_map": {"AutoModel": "modeling.Model"}, "trust_remote_code": True}
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), **named}), encoding="utf-8")
    with pytest.raises(ValueError, match="no setting named 'auto_map', 'trust_remote_code'"):
        VisionLanguageModel.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ self.__init__.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% set _ = messages.append(1) %}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}{{ os.getcwd() }}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_a_chat_template_reaches_neither_files_nor_pythons_insides(template: str) -> None:
    plain = tiny_tokenizer()
    tokenizer = ChatTokenizer(plain.tokenizer, {**plain.settings, "chat_template": template})
    with pytest.raises(ValueError, match="chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def test_code_beside_the_data_is_not_run(tmp_path: Path, trap: Path) -> None:
    config = tree(tmp_path, {"vqa": 3})
    for folder in (tmp_path, tmp_path / "vqa"):
        for name in (f"{folder.name}.py", "vqa.py", "dataset.py", "conftest.py"):
            (folder / name).write_text(trap.read_text(encoding="utf-8"), encoding="utf-8")
    for stream in (False, True):
        (subset,) = open_subsets(TrainConfig(**config, stream=stream))
        assert len(list(subset.data)) == 3
    assert not (tmp_path / "sprung").exists()


def test_a_row_may_name_any_image_that_you_can_read_and_nothing_on_the_web(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "private.png")
    folder = tmp_path / "data"
    folder.mkdir()
    question = {"question": "?", "answer": "red"}
    outside = [{"file_name": name, **question} for name in ("../private.png", str(tmp_path / "private.png"))]
    web = [{"file_name": name, **question} for name in ("https://example.org/a.png", "data:image/png;base64,AAAA")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, outside + web)), encoding="utf-8")
    with pytest.warns(UserWarning, match="2 of 4 rows .* is a link: download it"):
        samples = read_own_data(folder)
    assert len(samples) == 2


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"weights": {"w": torch.arange(4096.0)}})
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(100.0, 120.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step_000001\.pt cannot be read .*is damaged"):
        load_checkpoint(path)


class Sprung:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (self.trap.read_text(encoding="utf-8"),)


def test_a_checkpoint_in_parts_runs_no_code(tmp_path: Path, trap: Path) -> None:
    """torch.distributed.checkpoint unpickles its index."""
    parts = tmp_path / "step_000001"
    parts.mkdir()
    torch.save({"weights": {}, "optimizers": []}, parts / "rest.pt")
    (parts / ".metadata").write_bytes(pickle.dumps(Sprung(trap)))
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(parts, {"weights/w": torch.zeros(1)})
    assert not (tmp_path / "sprung").exists()


def test_a_progress_file_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: Path) -> None:
    monkeypatch.setenv("NANOVLM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    record = {"passed": True, "checks": 1, "hints": 0, "mistakes": {}, "name": "__import__('os').abort"}
    record["source"] = trap.read_text(encoding="utf-8")
    state = {"version": 1, "machines": [], "exercises": {"vit.mlp": record}, "quizzes": {}}
    (tmp_path / "home" / "progress.json").write_text(json.dumps(state), encoding="utf-8")
    assert progress.passed_ids() == {"vit.mlp"} and progress.is_from_elsewhere()
    assert not (tmp_path / "sprung").exists()


def test_make_lab_trusts_the_notebooks_of_its_folders_alone() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "NOTEBOOKS := chapters solutions exercises\n" in makefile
    assert re.findall(r"jupyter trust (.*?) >", makefile) == ["$(NOTEBOOKS:=/*.ipynb)"]


def test_an_image_beyond_the_limit_is_one_sentence_and_no_warning_beside_it() -> None:
    code = """
import io, PIL.Image
from nanovlm.data.images import open_image
PIL.Image.MAX_IMAGE_PIXELS = 50
PIL.Image.new("RGB", (10, 8)).save(file := io.BytesIO(), "PNG")
try:
    open_image(file.getvalue())
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "claims more than 50 pixels" in done.stdout and done.stderr == ""
