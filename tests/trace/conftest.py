import pytest
import torch


@pytest.fixture(autouse=True)
def _as_it_was():
    """Every test of the tracer leaves torch as it found it: no mode on the stack, no global hook."""
    from torch.nn.modules import module
    from torch.overrides import _get_current_function_mode_stack

    torch.manual_seed(0)
    before = len(_get_current_function_mode_stack())
    yield
    assert len(_get_current_function_mode_stack()) == before
    assert not module._global_forward_hooks and not module._global_forward_pre_hooks
