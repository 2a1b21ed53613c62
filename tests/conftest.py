"""What all tests share: few threads, reproducible hypothesis runs, two tiny models."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Generator

import pytest
import torch
from hypothesis import HealthCheck, settings

from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.tiny import tiny_model
from tests.transformers_version import OLD_SMOLVLM, WHY_OLD

torch.set_num_threads(1)  # tiny tensors, and the tests run in several processes
# No test fails because the machine is slow: neither by a deadline nor by the check that examples are made fast enough.
settings.register_profile(
    "nanovlm", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nanovlm")


def pytest_collection_finish() -> None:
    """What the imports made stays: the garbage collector need not look at half a million objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """An old transformers (the newest for Python 3.10) cannot do what it is compared with: its limit, not a fault."""
    try:
        return (yield)
    except (ValueError, RuntimeError) as error:
        if OLD_SMOLVLM and "inputs_merger" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]:
            pytest.skip(WHY_OLD)
        raise


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats the stack for each kind of GPU, too


@pytest.fixture(scope="session")
def model() -> VisionLanguageModel:
    """Pictures stand where their placeholders are. Shared: leave its weights and mode alone."""
    return tiny_model()


@pytest.fixture(scope="session")
def model_in_front() -> VisionLanguageModel:
    """No placeholders: each row's picture comes before its text. Shared: leave its weights and mode alone."""
    return tiny_model(image_token_id=None)
