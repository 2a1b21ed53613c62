"""What the exercises of several chapters need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanovlm.course.judge.exercise import expect


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers that depend on the seed only."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_wide_as(x: Tensor, out: Any) -> Any:
    """Who computes in float64 is not wrong: what came back, a tensor or several, is compared in the dtype of x."""
    if isinstance(out, (tuple, list)):
        return tuple(as_wide_as(x, part) for part in out)
    return out.to(x.dtype) if isinstance(out, Tensor) and out.dtype == torch.float64 else out


def learns(out: Tensor, module: nn.Module | None = None) -> None:
    """A gradient flows from this output, and, with `module`, reaches each of its parameters."""
    expect(
        out.requires_grad,
        "The output is cut off from what it was computed from (no_grad, detach or item), so no gradient can flow.",
    )
    if module is not None:
        out.square().sum().backward(retain_graph=True)
        idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
        expect(not idle, f"No gradient reaches {', '.join(idle)}: it is cut off on the way (detach or no_grad).")


def optimizers_ready() -> None:
    """The first optimizer of a process imports a good part of torch. That is not the learner's work."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def expect_gradients(
    run: Callable[[Any, Tensor], Tensor], module: Any, reference: Any, x: Tensor, what: str = "the input x"
) -> None:
    """The gradients of run(module, x) to x and to every parameter are those of run(reference, x)."""
    wanted, found = _gradients(run, reference, x, what), None
    try:
        found = _gradients(run, module, x, what)
    except RuntimeError as error:
        expect("does not require grad" not in str(error) and "grad_fn" not in str(error), NO_GRADIENT)
        raise
    cut = "torch.no_grad, .detach(), .data or .item() cuts the way that training needs"
    for name, right in wanted.items():
        own = found[name]
        expect(own is not None and (own.any() or not right.any()), f"No gradient reaches {name}: {cut}.")
        expect(
            own.isfinite().all(), f"The gradient that reaches {name} holds NaN or infinity, though the result is fine."
        )
        close = torch.allclose(own, right, rtol=1e-3, atol=1e-4 * max(1.0, float(right.abs().max())))
        expect(close, f"The gradient that reaches {name} is only a part of the right one: somewhere {cut}.")


NO_GRADIENT = "No gradient comes back from the result: torch.no_grad, .detach(), .data or .item() cuts the way."


def _gradients(run: Callable[[Any, Tensor], Tensor], module: Any, x: Tensor, what: str) -> dict[str, Tensor | None]:
    x = x.clone().requires_grad_()
    inputs = {what: x} | (dict(module.named_parameters()) if isinstance(module, nn.Module) else {})
    out = run(module, x)
    weights = noise(*out.shape, seed=9).to(out.dtype)  # a plain sum is blind behind a LayerNorm
    return dict(
        zip(inputs, torch.autograd.grad((out * weights).sum(), list(inputs.values()), allow_unused=True), strict=True)
    )


def expect_one_mask(run: Callable[[], Any]) -> None:
    """torch's plain kernel refuses attn_mask together with is_causal; the fused ones are silent about it."""
    try:
        with sdpa_kernel(SDPBackend.MATH):
            run()
    except RuntimeError as error:
        expect(
            "is_causal" not in str(error),
            "scaled_dot_product_attention gets attn_mask and is_causal=True together. Some kernels accept that in "
            "silence and others raise an error: give one of the two.",
        )
        raise


def caught(test: Callable[[Any], None], right: Any, planted: dict[str, Any], what: str) -> int:
    """How many planted versions make the learner's test fail, after it has passed with a right one."""
    try:
        result = test(right)
    except BaseException as error:
        if isinstance(error, NotImplementedError) or not (_failed(error) or isinstance(error, Exception)):
            raise
        words = str(error).splitlines()[0][:120] if str(error) else ""
        if _failed(error):
            said = f" ({words})" if words else ""
            expect(
                False, f"Your test fails with a {what} that is right{said}. What does it ask for that nobody promised?"
            )
        expect(False, f"With a {what} that is right, your test raises {type(error).__name__}: {words}.")
    expect(
        result is None,
        f"Your test returns {type(result).__name__}. A test speaks by assert: it returns nothing, and raises "
        "AssertionError where something is wrong.",
    )
    missed = []
    for sentence, wrong in planted.items():
        try:
            test(wrong)
        except BaseException as error:
            if not (_failed(error) or isinstance(error, Exception)):
                raise
            continue
        missed.append(sentence.rstrip("."))
    count = f"Your test catches {len(planted) - len(missed)} of {len(planted)} wrong versions."
    expect(len(missed) < len(planted), f"{count} It asserts nothing that a wrong {what} does not do as well.")
    expect(not missed, f"{count} What gets through: {'; '.join(missed)}.")
    return len(planted)


def _failed(error: BaseException) -> bool:
    """A test failed. What pytest.raises and pytest.fail raise is neither an Exception nor an AssertionError."""
    pytest = sys.modules.get("pytest")
    return isinstance(error, AssertionError) or (pytest is not None and isinstance(error, pytest.fail.Exception))


def expect_same_gradients(yours: Callable[..., Any], reference: Callable[..., Any], *inputs: Tensor) -> None:
    """A Complaint where a gradient, to an input or a parameter, is missing or another than the reference's.

    Both compute the same outputs; a detach or a no_grad on the way shows in the gradients alone.
    """
    ours, theirs = _by_name(yours, inputs), _by_name(reference, inputs)
    idle = [name for name, right in theirs.items() if right.any() and not ours[name].any()]
    expect(
        not idle,
        f"No gradient reaches {', '.join(idle)}, so it could never be trained: the result is cut off from it by "
        "no_grad, detach, .data or a way through numpy.",
    )
    off = [name for name, right in theirs.items() if not torch.allclose(ours[name], right, rtol=1e-3, atol=1e-5)]
    expect(
        not off,
        f"The results are right, and the gradient of {', '.join(off)} is not: one of the ways back is cut, by a detach "
        "or a no_grad inside.",
    )


def _by_name(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """By name; zeros where none arrives."""
    given = {f"input {i}" if len(inputs) > 1 else "the input": x.clone().requires_grad_() for i, x in enumerate(inputs)}
    out = function(*given.values())
    flat = torch.cat([part.flatten() for part in (out if isinstance(out, (list, tuple)) else [out])])
    if flat.requires_grad:
        (flat * noise(len(flat), seed=7)).sum().backward()
    leaves = given | (dict(function.named_parameters()) if isinstance(function, nn.Module) else {})
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
