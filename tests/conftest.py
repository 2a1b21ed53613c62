"""What all tests share: few threads, reproducible hypothesis runs, two tiny models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.tiny import tiny_model

torch.set_num_threads(1)  # tiny tensors, and the tests run in several processes
settings.register_profile("nanovlm", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("nanovlm")


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> VisionLanguageModel:
    """Pictures stand where their placeholders are. Shared: leave its weights and mode alone."""
    return tiny_model()


@pytest.fixture(scope="session")
def model_in_front() -> VisionLanguageModel:
    """No placeholders: each row's picture comes before its text. Shared: leave its weights and mode alone."""
    return tiny_model(image_token_id=None)
