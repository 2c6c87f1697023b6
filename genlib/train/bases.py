"""The optimizers that `fit` knows by name, and how one is made for some parameters."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["OPTIMIZERS", "Fused", "build"]


class Fused:
    """An optimizer by torch's fused kernel, with what of torch.optim the engines use; real, of one precision.

    The hooks around torch.optim's `step` cost as much as a small network's forward pass, and its first use in a process
    imports a compiler, which takes a second or two.
    """

    averages: tuple[str, ...]

    def __init__(self, params: Sequence[Tensor], *, lr: float, momentum: float, weight_decay: float):
        self.param_groups = [{"params": list(params), "lr": lr}]
        self.state = {param: {name: torch.zeros_like(param) for name in self.averages} for param in params}
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def update(self, grads: Sequence[Tensor | None]) -> None:
        (group,) = self.param_groups
        dense = [g.to_dense() if g is not None and g.is_sparse else g for g in grads]
        used = [(p, g) for p, g in zip(group["params"], dense, strict=True) if g is not None]
        if not used:
            return
        params, states = [p for p, _ in used], [self.state[p] for p, _ in used]
        # The fused kernel walks through memory: a gradient laid out otherwise than its parameter would be misread.
        grads = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for p, g in used]
        averages = [[state[name] for state in states] for name in self.averages]
        self.kernel(params, grads, *averages, lr=group["lr"], weight_decay=self.weight_decay)

    def state_dict(self) -> dict:
        return {"state": [self.state[param] for param in self.param_groups[0]["params"]]}

    def load_state_dict(self, saved: dict) -> None:
        for param, tensors in zip(self.param_groups[0]["params"], saved["state"], strict=True):
            for name, tensor in tensors.items():
                self.state[param][name].copy_(tensor)


class SGD(Fused):
    averages = ("momentum_buffer",)

    def kernel(self, params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], **rest: float) -> None:
        plain = {"dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
        torch._fused_sgd_(params, grads, buffers if self.momentum else [], momentum=self.momentum, **plain, **rest)


class Adam(Fused):
    averages = ("exp_avg", "exp_avg_sq")

    def __init__(self, params: Sequence[Tensor], **options: float):
        super().__init__(params, **options)
        for param, state in self.state.items():
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)

    def kernel(self, params: list[Tensor], grads: list[Tensor], *moments: list[Tensor], **rest: float) -> None:
        steps = [self.state[param]["step"] for param in params]
        torch._foreach_add_(steps, 1)
        plain = {"beta2": 0.999, "eps": 1e-8, "amsgrad": False, "maximize": False}
        torch._fused_adam_(params, grads, *moments, [], steps, beta1=self.momentum, **plain, **rest)


FUSED = {"sgd": SGD, "adam": Adam}
OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": lambda params, momentum, **rest: torch.optim.Adam(params, betas=(momentum, 0.999), **rest),
    "rmsprop": lambda params, momentum, **rest: torch.optim.RMSprop(params, momentum=momentum, **rest),
    "lbfgs": lambda params, lr, **_: torch.optim.LBFGS(params, lr=lr, line_search_fn="strong_wolfe"),
}


def build(base: str | type, params: list[Tensor], **options: float) -> Fused | torch.optim.Optimizer:
    """A base optimizer; a class of torch's own is given those of lr, momentum and weight decay that it takes."""
    if isinstance(base, str):
        fusible = len({p.dtype for p in params}) == 1 and not params[0].is_complex()
        known = OPTIMIZERS | FUSED if fusible else OPTIMIZERS
        return known[base](params, **options)
    known = inspect.signature(base).parameters
    return base(params, **{name: value for name, value in options.items() if name in known})
