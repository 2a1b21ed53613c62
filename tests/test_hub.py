"""Model directories: what is saved comes back bit for bit, and what does not fit is refused by name."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from nanovlm.data.processors import ImageProcessor
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.tiny import ONE_IMAGE, ids_of, max_difference, random_images, tiny_model
from tests.tiny_tokenizer import tiny_tokenizer

load = VisionLanguageModel.from_pretrained
EMBEDDING = "decoder.token_embedding.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny_model().save_pretrained(tmp_path / "model")


def test_who_may_read_the_config_may_read_the_weights(directory: Path) -> None:
    """The library writes files that the owner alone can read; a model in a shared folder is for all who can look in."""
    modes = {path.stat().st_mode & 0o444 for path in directory.iterdir()}
    assert modes == {(directory / "config.json").stat().st_mode & 0o444}


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Read into memory: `load_file` maps the file, and these tests write over it."""
    return safetensors.torch.load((directory / "model.safetensors").read_bytes())


def edit_config(directory: Path, change: Callable[[dict], object]) -> None:
    values = json.loads((directory / "config.json").read_text())
    change(values)
    (directory / "config.json").write_text(json.dumps(values))


def edit_weights(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = read_weights(directory)
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


# -- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("image_token_id", [4, None], ids=["placeholders", "in front"])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path, tied: bool, image_token_id: int | None) -> None:
    model = tiny_model(image_token_id, tie_weights=tied)
    again = load(model.save_pretrained(tmp_path))
    assert again.config == model.config
    saved, loaded = model.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    ids = torch.tensor([ids_of([ONE_IMAGE, 7, 8]) if image_token_id else [7, 8]])
    assert torch.equal(again.eval()(ids, random_images(1)).logits, model(ids, random_images(1)).logits)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_tied_head_is_stored_once_and_stays_tied(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tie_weights=tied)
    stored = read_weights(model.save_pretrained(tmp_path))
    assert ("decoder.head.weight" in stored) is not tied
    again = load(tmp_path)
    assert (again.decoder.head.weight is again.decoder.token_embedding.weight) is tied
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_loaded_model_trains(directory: Path) -> None:
    model = load(directory)
    model(torch.tensor([[7, 8, 9]]), targets=torch.tensor([[8, 9, 7]])).loss.backward()
    assert model.decoder.token_embedding.weight.grad.isfinite().all()


def test_bfloat16_weights_keep_their_bits(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert read_weights(tmp_path)[EMBEDDING].dtype == torch.bfloat16
    again = load(tmp_path, dtype=torch.bfloat16)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert load(tmp_path).decoder.token_embedding.weight.dtype == torch.float32, "float32 unless asked otherwise"


def test_tokenizer_and_image_settings_come_along(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    model.tokenizer, model.image_processor = tokenizer, ImageProcessor(16, "unit")
    again = load(model.save_pretrained(tmp_path))
    assert again.image_processor == model.image_processor
    assert again.generate(prompt="Why?", max_new_tokens=4) == model.generate(prompt="Why?", max_new_tokens=4)


def test_saving_over_an_older_model_replaces_it(directory: Path) -> None:
    other = tiny_model(seed=1)
    other.save_pretrained(directory)
    assert torch.equal(load(directory).projector.proj.weight, other.projector.proj.weight)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]


def shard(directory: Path, number: int = 2) -> None:
    tensors = read_weights(directory)
    (directory / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(number):
        file = f"model-{i + 1:05}-of-{number:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::number]}, directory / file)
        weight_map |= dict.fromkeys(names[i::number], file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_sharded_weights(directory: Path) -> None:
    whole = load(directory)
    shard(directory)
    again = load(directory)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model-00002-of-00002\.safetensors"):
        load(directory)
    (directory / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weight_map"):
        load(directory)


def test_saving_over_shards_replaces_them(directory: Path) -> None:
    shard(directory)
    other = tiny_model(seed=1)
    other.save_pretrained(directory)
    assert torch.equal(load(directory).projector.proj.weight, other.projector.proj.weight)


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("decoder.norm.weight"), r"missing decoder\.norm\.weight \[32\]"),
        (lambda t: t.pop(EMBEDDING), r"missing decoder\.token_embedding\.weight \[48, 32\]"),
        (lambda t: t.update(extra=torch.zeros(2, 3)), r"unexpected extra \[2, 3\]"),
        (
            lambda t: t.update({"projector.proj.weight": torch.zeros(32, 64)}),
            r"projector\.proj\.weight has shape \[32, 64\], expected \[32, 128\]",
        ),
        (lambda t: t.update({EMBEDDING: torch.zeros(50, 32)}), r"has shape \[50, 32\], expected \[48, 32\]"),
        (
            lambda t: t.update({"decoder.norm.weight": torch.ones(32, dtype=torch.int32)}),
            r"decoder\.norm\.weight holds torch\.int32, expected floating point",
        ),
        (lambda t: t.update({"decoder.head.weight": torch.ones(48, 32)}), "the weights of the two differ"),
        (lambda t: t.clear(), r"The config asks for 2 encoder blocks; the weights in .* have 0 tensors"),
    ],
    ids=["missing", "embedding missing", "unexpected", "mis-shaped", "rows", "int", "untied in a tied model", "empty"],
)
def test_a_tensor_that_does_not_fit_is_named(directory: Path, change: Callable, sentence: str) -> None:
    edit_weights(directory, change)
    with pytest.raises(ValueError, match=sentence) as error:
        load(directory)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 400, 0.5, 0.999], ids=str)
def test_a_file_that_is_cut_off(directory: Path, keep: float) -> None:
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: keep if keep > 1 else int(keep * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file .* fetch it again"):
        load(directory)


def test_pickles_are_refused(directory: Path) -> None:
    weights = read_weights(directory)
    torch.save(weights, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"not a whole safetensors file .* or a pickle"):
        load(directory)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"It has pytorch_model\.bin, a pickle, which could run any code"):
        load(directory)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(wings=2), "VLMConfig has no setting named 'wings'"),
        (lambda c: c["language"].update(num_experts=8), "LMConfig has no setting named 'num_experts'"),
        (lambda c: c["vision"].update(image_size=3), "A picture of 3 pixels holds no patch of 4"),
        (lambda c: c["vision"].update(num_heads=5), "does not divide into 5 heads"),
        (lambda c: c["vision"].update(num_heads=0), "num_heads must be a whole number, 1 to 16777216; it is 0"),
        (
            lambda c: c["language"].update(hidden_dim="32"),
            "hidden_dim must be a whole number, 1 to 16777216; it is '32'",
        ),
        (lambda c: c["language"].update(num_kv_heads=3), "cannot share 3 key/value heads"),
        (lambda c: c["projector"].update(pixel_shuffle_factor=3), "cannot be shuffled by 3"),
        (lambda c: c["projector"].update(vision_dim=64), "expects vision_dim 64, the ViT gives 32"),
        (lambda c: c.update(vision=7), "vision must be the settings of a ViTConfig; it is 7"),
        (lambda c: c.update(pixel_range="bright"), "pixel_range must be one of 'signed', 'unit'; it is 'bright'"),
        (lambda c: c.update(image_token_id=48), "image_token_id 48 is outside the vocabulary of 48"),
        (lambda c: c.update(model_type="bert"), "describes bert"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_that_makes_no_sense(directory: Path, change: Callable, sentence: str) -> None:
    edit_config(directory, change)
    with pytest.raises(ValueError, match=sentence) as error:
        load(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{", '{"model_type": ', "[1, 2]", "\udcff"], ids=repr)
def test_a_config_that_is_not_json(directory: Path, content: str) -> None:
    (directory / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|holds a JSON list)"):
        load(directory)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_model_whole(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def full(tensors: dict, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"the first half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"Could not write .*No space left on device.* Free some space"):
        tiny_model(seed=1, hidden_dim=64).save_pretrained(directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_an_output_directory_that_cannot_be(directory: Path) -> None:
    for place in (directory / "config.json", directory / "config.json" / "inside"):
        with pytest.raises(OSError, match=r"Cannot write to .*Choose another output directory"):
            tiny_model().save_pretrained(place)


def test_push_to_hub_uploads_a_whole_model_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, object] = {}

    class Api:
        def create_repo(self, repo_id: str, **options: object) -> None:
            uploaded.update(repo_id=repo_id, **options)

        def upload_folder(self, repo_id: str, folder_path: str, **_: object) -> str:
            uploaded.update(files=sorted(path.name for path in Path(folder_path).iterdir()), model=load(folder_path))
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    model = tiny_model()
    assert model.push_to_hub("me/mine", private=True) == "https://huggingface.co/me/mine"
    assert uploaded["private"] is True and uploaded["files"] == ["config.json", "model.safetensors"]
    assert max_difference(uploaded["model"].projector.proj.weight, model.projector.proj.weight) == 0
