"""Where a model is looked for: a directory, the local cache of the Hub, the Hub; and what is said if it is nowhere."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from nanovlm.files import find_directory
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.tiny import tiny_config, tiny_model

load = VisionLanguageModel.from_pretrained


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny_model().save_pretrained(tmp_path / "model")


def test_places_that_hold_no_model(tmp_path: Path, directory: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a model directory: it has no config\.json"):
        load(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        load(directory / "config.json")
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load(directory)
    for name in ("nowhere", "./no/where", str(tmp_path / "no"), "a/b/c", "C:\\models\\mine"):
        with pytest.raises(FileNotFoundError, match="does not look like a Hub id"):
            load(name)
    with pytest.raises(FileNotFoundError, match="the Hub has no model of that name"):
        load("owner/not a name")


@pytest.mark.parametrize("how", ["offline mode", "no connection"])
def test_a_hub_id_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", how == "offline mode")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        ConnectionError, match="owner/model is neither a directory here nor in the local cache"
    ) as error:
        find_directory("owner/model")
    assert "\n" not in str(error.value) and "HF_ENDPOINT" in str(error.value)


def test_a_hub_id_in_the_local_cache_needs_no_network(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    directory.rename(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load("owner/model").config == tiny_config()


@pytest.mark.parametrize(
    ("trouble", "kind", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "Cannot store owner/model: .*No space left"),
        (PermissionError(errno.EACCES, "Permission denied"), OSError, "Cannot store .* HF_HOME name another place"),
        (errors.GatedRepoError, PermissionError, "accepted its terms"),
        (errors.RepositoryNotFoundError, FileNotFoundError, "the Hub has no model of that name"),
        (TimeoutError("timed out"), ConnectionError, "the Hub cannot be reached"),
    ],
    ids=["full disk", "unwritable cache", "gated", "no such repository", "time-out"],
)
def test_each_trouble_with_the_hub_has_its_sentence(
    monkeypatch: pytest.MonkeyPatch, trouble: Exception | type, kind: type[Exception], sentence: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble if isinstance(trouble, Exception) else trouble.__new__(trouble)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(kind, match=sentence):
        find_directory("owner/model")


def told(**sizes: int) -> SimpleNamespace:
    """What the Hub tells of a repository's files."""
    files = [SimpleNamespace(rfilename=name, size=size, lfs=None, blob_id=name) for name, size in sizes.items()]
    return SimpleNamespace(siblings=files)


def test_a_disk_that_is_too_small_is_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("it was fetched"))
    files = {"model.safetensors": 4 * 10**18, "model.bin": 10**19}
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: told(**files))
    with pytest.raises(OSError, match=r"owner/model takes 4,000,000,000.0 GB, and the disk of .* has .* HF_HOME name"):
        find_directory("owner/model")
    blobs = tmp_path / "not" / "yet" / "models--owner--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "model.safetensors").touch()  # it is there
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert find_directory("owner/model") == tmp_path


def test_a_hub_id_may_name_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        if revision == "gone":
            raise errors.RevisionNotFoundError.__new__(errors.RevisionNotFoundError)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for name in ("owner/model", "owner/model@v2", "owner/model@refs/pr/3"):
        assert find_directory(name) == tmp_path
    assert asked == [("owner/model", None), ("owner/model", "v2"), ("owner/model", "refs/pr/3")]
    with pytest.raises(FileNotFoundError, match="The Hub's owner/model has no commit, tag or branch gone"):
        find_directory("owner/model@gone")
