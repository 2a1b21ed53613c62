"""The dtype follows the device, says why, and refuses what cannot work."""

from __future__ import annotations

import pytest
import torch

from nanovlm import device as precision
from nanovlm.device import choose_precision, find_device

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Pretends that the GPU has the compute capability that the test asks for."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "Some GPU")


@pytest.mark.parametrize(("gpu", "name"), [((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp16")], indirect=["gpu"])
def test_auto_on_a_gpu(gpu: None, name: str) -> None:
    chosen = choose_precision("auto", CUDA)
    assert chosen.name == name
    assert chosen.reason.startswith("Some GPU")
    if name == "fp16":  # a T4: float32 weights, products in float16, and a scaler, or small gradients become 0
        assert chosen.weights == torch.float32 and chosen.autocast == torch.float16
        assert "scaler" in chosen.reason
    else:
        assert chosen.weights == torch.bfloat16 and chosen.autocast is None


@pytest.mark.parametrize(("multiplies", "name"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, multiplies: bool, name: str) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: multiplies)
    chosen = choose_precision("auto", CPU)
    assert (chosen.name, chosen.autocast) == (name, None)
    assert len(chosen.reason) > 10


@pytest.mark.parametrize("machine", ["arm64", "aarch64"])
def test_a_cpu_of_another_family_computes_in_float32(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert choose_precision("auto", CPU).name == "fp32"


def test_auto_on_a_mac_is_float32() -> None:
    assert choose_precision("auto", MPS).name == "fp32"


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_what_you_ask_for_is_what_you_get(wanted: str) -> None:
    chosen = choose_precision(wanted, CPU)
    assert chosen.name == wanted and "you asked" in chosen.reason


def test_float16_needs_a_gpu() -> None:
    assert choose_precision("fp16", CUDA).autocast == torch.float16
    with pytest.raises(ValueError, match="fp16 training needs a CUDA GPU; this is cpu"):
        choose_precision("fp16", CPU)


def test_a_format_that_nobody_knows_is_refused() -> None:
    for device in (CPU, CUDA):
        with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, fp16; it is 'fp8'"):
            choose_precision("fp8", device)


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_without_autocast_the_context_and_the_scaler_do_nothing(wanted: str) -> None:
    chosen = choose_precision(wanted, CPU)
    with chosen.context(CPU):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
    scaler = chosen.scaler(CPU)
    assert not scaler.is_enabled() and scaler.scale(torch.tensor(3.0)).item() == 3.0


def test_the_float16_context_casts_products() -> None:
    chosen = choose_precision("fp16", CUDA)
    with chosen.context(CPU):  # autocast exists for both; no GPU is needed to see it work
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float16


def test_find_device_gives_one_that_works() -> None:
    device = find_device()
    assert torch.ones(2, device=device).sum().item() == 2
    assert device.type == "cuda" or not torch.cuda.is_available()
