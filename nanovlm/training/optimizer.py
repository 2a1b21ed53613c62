"""Which weight learns how fast, and by which rule: AdamW for all, or Muon for the hidden matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.config import TrainConfig
from nanovlm.files import check_tensors
from nanovlm.training.parallel import dealt_like, whole


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix to each of [N, rows, columns], roughly: all singular values come near 1.

    Newton-Schulz iteration with the quintic coefficients of Muon (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). Rows <= columns is cheaper, so tall matrices are turned over.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    if x.is_cuda:  # near 1 is near enough, at a sixteenth of the time
        x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT  # [N, rows, rows]
        # a x + (b gram + c gram gram) x; as two fused products it takes two thirds of the time.
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalised, so that every direction of a matrix moves by the same amount. Matrices only.

    Same-shaped matrices are orthogonalised together. The step is scaled by sqrt(rows / columns) for tall matrices.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    same_shape.setdefault(p.shape, []).append(p)
            for (rows, columns), params in same_shape.items():
                updates = []
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    momentum = self.state[p]["momentum"]
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov: look one step ahead
                update = orthogonalise(torch.stack(updates)).unbind()
                scale = max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, update, alpha=-group["lr"] * scale)


def param_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Every parameter once, by what it is. Projector and adapters start from nothing, so they learn faster than the
    backbones; vectors (norms, biases) and embeddings are not decayed."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: dict[str, dict[str, Any]] = {
        "muon": {"lr": config.lr_muon, "weight_decay": config.weight_decay},
        "projector": {"lr": config.lr_projector, "weight_decay": config.weight_decay},
        "backbones": {"lr": config.lr_backbones, "weight_decay": config.weight_decay},
        "backbones, not decayed": {"lr": config.lr_backbones, "weight_decay": 0.0},
    }
    if config.lr_vision is not None:
        groups["vision"] = {"lr": config.lr_vision, "weight_decay": config.weight_decay}
        groups["vision, not decayed"] = {"lr": config.lr_vision, "weight_decay": 0.0}
    members: dict[str, list[Tensor]] = {name: [] for name in groups}
    for name, p in named:
        matrix = p.ndim == 2 and ("blocks." in name or name.startswith("projector."))
        if name.endswith((".lora_a", ".lora_b")):
            members["projector"].append(p)
        elif config.optimizer == "muon" and matrix:
            members["muon"].append(p)
        elif name.startswith("projector."):
            members["projector"].append(p)
        else:
            part = "vision" if config.lr_vision is not None and name.startswith("vision_encoder.") else "backbones"
            members[part if matrix else f"{part}, not decayed"].append(p)
    return [{"name": name, "params": members[name], **groups[name]} for name in groups if members[name]]


class Optimizers:
    """AdamW, and Muon where the recipe asks for it, behind one step.

    When the model computes in bfloat16, the optimizers work on float32 copies ("master weights") and gradients are
    added up in float32: a bfloat16 weight is too coarse for a small step to change it.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []  # (the model's weight, the one that the optimizer moves)
        rules: dict[str, list[dict[str, Any]]] = {"muon": [], "adamw": []}
        for group in param_groups(model, config):
            masters = []
            for p in group["params"]:
                master = p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
                self.pairs.append((p, master))
                masters.append(master)
            rules["muon" if group["name"] == "muon" else "adamw"].append(
                {**group, "params": masters, "peak_lr": group["lr"]}
            )
        self.all: list[torch.optim.Optimizer] = []
        if rules["muon"]:
            self.all.append(Muon(rules["muon"], lr=config.lr_muon))
        if rules["adamw"]:
            self.all.append(torch.optim.AdamW(rules["adamw"], lr=config.lr_backbones, betas=(0.9, 0.95), fused=True))

    @property
    def masters(self) -> list[Tensor]:
        return [master for _, master in self.pairs]

    def collect_gradients(self) -> None:
        """Move the gradients of one backward pass to the master weights (in float32 they are the same)."""
        for p, master in self.pairs:
            if p is not master and p.grad is not None:
                gradient = p.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                p.grad = None

    def set_lr(self, scale: float) -> None:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * scale

    def zero_grad(self) -> None:
        for p, master in self.pairs:
            p.grad = master.grad = None

    def fill_gradients(self) -> None:
        """A weight that no batch reached (no picture in it) has a gradient of zero: momentum and decay go on."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)

    def clip(self, max_norm: float, scaler: torch.amp.GradScaler) -> Tensor:
        """Scale the gradients of all weights together to a norm of at most max_norm. Returns the norm before."""
        for optimizer in self.all:
            scaler.unscale_(optimizer)
        return whole(torch.nn.utils.clip_grad_norm_(self.masters, max_norm))

    def step(self, scaler: torch.amp.GradScaler, skip_step: bool = False) -> None:
        """`skip_step`: a float16 gradient overflowed. The scaler would hold back only the optimizer it belongs to."""
        for optimizer in self.all:
            if not skip_step:
                scaler.step(optimizer)
        scaler.update()
        self._copy_masters()
        self.zero_grad()

    @torch.no_grad()
    def _copy_masters(self) -> None:
        copied = [(p, master) for p, master in self.pairs if p is not master]
        if copied:
            torch._foreach_copy_(*map(list, zip(*copied, strict=True)))

    def _own_weights(self, model: nn.Module) -> dict[str, Tensor]:
        masters = {id(p): master.detach() for p, master in self.pairs}
        return {name: masters.get(id(p), p.detach()) for name, p in model.named_parameters()}

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's weights in float32, by name, whole. Where they are dealt out, every process has to ask."""
        return {name: whole(weight) for name, weight in self._own_weights(model).items()}

    def load_weights(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Take over what `weights` gave, in whatever dtype this model computes."""
        with torch.no_grad():
            for name, target in self._own_weights(model).items():
                target.copy_(dealt_like(weights[name], target))
        self._copy_masters()

    def state(self, model: nn.Module, scaler: torch.amp.GradScaler, dealt: bool = False) -> dict[str, Any]:
        """All that a checkpoint needs of weights, optimizers and scaler; dealt: as they are, this process's parts."""
        if dealt:
            weights, states = self._own_weights(model), [optimizer.state_dict() for optimizer in self.all]
        else:
            weights, states = self.weights(model), self.state_dict()
        return {"weights": weights, "optimizers": states, "scaler": scaler.state_dict()}

    def own_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """What the tensors of `state` are like, by the names that `sharded.py` has for them."""
        own = {f"weights/{name}": weight for name, weight in self._own_weights(model).items()}
        for number, optimizer in enumerate(self.all):
            parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
            own |= {f"optimizers/{number}/{place}": p for place, p in enumerate(parameters)}
        return own

    def restore(
        self, model: nn.Module, state: Mapping[str, Any], source: str | Path, scaler: torch.amp.GradScaler
    ) -> None:
        """Take over what `state` gave. Raises: ValueError if it is another model's or another optimizer's."""
        check_tensors({name: w.shape for name, w in self._own_weights(model).items()}, state["weights"], source)
        self.load_weights(model, state["weights"])
        self.load_state_dict(state["optimizers"])
        if state["scaler"]:  # empty where the run before needed none
            scaler.load_state_dict(state["scaler"])

    def state_dict(self) -> list[dict[str, Any]]:
        """Momenta and step counts, whole: they may be taken over by another number of processes."""
        states = [optimizer.state_dict() for optimizer in self.all]
        for state in states:
            state["state"] = {p: {k: whole(v) for k, v in values.items()} for p, values in state["state"].items()}
        return states

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take over momenta and step counts. Learning rates and decay stay as the recipe has them now.

        Raises: ValueError if the states are of another optimizer.
        """
        own = self.state_dict()
        members, saved = ([[(g["name"], g["params"]) for g in s["param_groups"]] for s in x] for x in (own, states))
        if members != saved:
            raise ValueError("These optimizer states belong to another optimizer or model.")
        for optimizer, now, state in zip(self.all, own, states, strict=True):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            dealt = {
                p: {k: dealt_like(v, params[p]) if v.ndim else v for k, v in values.items()}
                for p, values in state["state"].items()
            }
            optimizer.load_state_dict({"state": dealt, "param_groups": now["param_groups"]})
