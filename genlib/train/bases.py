"""The optimizers that `fit` knows by name, and how one is made for some parameters."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["OPTIMIZERS", "LeanSGD", "build"]


class LeanSGD:
    """SGD by torch's fused kernel, with what of torch.optim the engines use.

    The hooks around torch.optim's `step` cost as much as a small network's forward pass, and its first use in a process
    imports a compiler, which takes a second or two.
    """

    def __init__(self, params: Sequence[Tensor], *, lr: float, momentum: float, weight_decay: float):
        self.param_groups = [{"params": list(params), "lr": lr}]
        self.state = {param: {"momentum_buffer": torch.zeros_like(param)} for param in params}
        self.constants = {"momentum": momentum, "weight_decay": weight_decay}

    @torch.no_grad()
    def update(self, grads: Sequence[Tensor | None]) -> None:
        (group,) = self.param_groups
        dense = [g.to_dense() if g is not None and g.is_sparse else g for g in grads]
        used = [(p, g) for p, g in zip(group["params"], dense, strict=True) if g is not None]
        params, buffers = [p for p, _ in used], [self.state[p]["momentum_buffer"] for p, _ in used]
        # The fused kernel walks through memory: a gradient laid out otherwise than its parameter would be misread.
        grads = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for p, g in used]
        rest = {"lr": group["lr"], "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
        torch._fused_sgd_(params, grads, buffers if self.constants["momentum"] else [], **self.constants, **rest)

    def state_dict(self) -> dict:
        return {"buffers": [self.state[param]["momentum_buffer"] for param in self.param_groups[0]["params"]]}

    def load_state_dict(self, saved: dict) -> None:
        for param, buffer in zip(self.param_groups[0]["params"], saved["buffers"], strict=True):
            self.state[param]["momentum_buffer"].copy_(buffer)


OPTIMIZERS = {
    "sgd": LeanSGD,
    "adam": lambda params, momentum, **rest: torch.optim.Adam(params, betas=(momentum, 0.999), **rest),
    "rmsprop": lambda params, momentum, **rest: torch.optim.RMSprop(params, momentum=momentum, **rest),
    "lbfgs": lambda params, lr, **_: torch.optim.LBFGS(params, lr=lr, line_search_fn="strong_wolfe"),
}


def build(base: str | type, params: list[Tensor], **options: float) -> "LeanSGD | torch.optim.Optimizer":
    """A base optimizer; a class of torch's own is given those of lr, momentum and weight decay that it takes."""
    if base == "sgd" and any(p.is_complex() for p in params):  # the fused kernel takes none
        return torch.optim.SGD(params, **options)
    if isinstance(base, str):
        return OPTIMIZERS[base](params, **options)
    known = inspect.signature(base).parameters
    return base(params, **{name: value for name, value in options.items() if name in known})
