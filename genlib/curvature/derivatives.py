"""Whether torch's derivatives of a loss are its derivatives: a look at a few samples before curvature is measured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from genlib.network import Params
from genlib.network.objective import Objective, random_params, seeded_generator

__all__ = ["require_derivatives", "twice_differentiable"]

_SAMPLES, _TRIES = 8, 3
_MEND = "write its backward functions in operations that can be differentiated once more, and measure it uncompiled"


class _Look(NamedTuple):
    """How far two steps go, relative to the weights, and what of a difference quotient and of a value is noise."""

    step: float
    tolerance: float
    noise: float


_FINE = _Look(1e-9, 1e-4, 1e-14)  # in float64, so short that few units cross a kink on the way
_COARSE = _Look(1e-3, 3e-2, 5e-6)  # for a network that computes in float32 whatever it is given


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return x.add_(3).clamp_(0, 6).div_(6) if inplace else (x + 3).clamp(0, 6) / 6


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


_BY_OTHERS = {torch.nn.functional.hardsigmoid: _hardsigmoid, torch._weight_norm: _weight_norm}


class _Composed(TorchFunctionMode):
    """Functions whose second derivative torch lacks, or has wrong, by others of the same values."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        return _BY_OTHERS.get(function, function)(*arguments, **(keywords or {}))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Forward passes in here may be differentiated twice; attention takes the kernel for which torch knows how."""
    with sdpa_kernel(SDPBackend.MATH), _Composed():
        yield


def require_derivatives(
    objective: Objective, product: Callable[[Objective], Callable[[Params], Params]] | None
) -> None:
    """Refuse a network whose gradient is not that of its loss, or whose `product` v -> Hv isn't the gradient's slope.

    On at most 8 samples, in float64 where the network itself computes in it, near its weights: along random u and v the
    loss and the gradient of w ± hv against ∇L·v and u·Hv, and this against v·Hu. Two gradients, and two products;
    of a stack the first network stands for all. Once a network; nothing on the meta device.
    """
    network, check = objective.network, "derivatives" if product else "gradient"
    if check in network.passed or objective.inputs.device.type == "meta":
        return
    few = next(objective.each)
    few = replace(few, inputs=few.inputs[:_SAMPLES], labels=few.labels[:_SAMPLES], chunk_size=_SAMPLES)
    for seed in range(_TRIES):
        generator = seeded_generator(None, few.inputs.device, seed)
        try:
            slope, curvature = _disagreements(few.in_float64, product, generator, _FINE)
        except RuntimeError:
            slope = True  # as where something in the forward pass stays in float32
        if slope:
            slope, curvature = _disagreements(few, product, generator, _COARSE)
        if not slope and not curvature:
            network.passed.update(("gradient", check))
            return
    if slope:
        raise ValueError(
            "network: its gradient isn't that of its loss, so its curvature can't be measured; take detach, no_grad, "
            "rounding and its own backward functions out of its forward pass, and give checkpoint use_reentrant=False"
        )
    raise ValueError(f"network: torch's second derivative of its loss is wrong or incomplete; {_MEND}")


def _disagreements(
    objective: Objective, product: Callable | None, generator: torch.Generator, look: _Look
) -> tuple[bool, bool]:
    """Whether ∇L·v is not the slope of the loss along v, and whether u·Hv is not v·Hu, or not the gradient's slope."""
    weights = objective.network.params
    size = {name: w.square().mean().sqrt().clamp(min=1e-2) if w.numel() else 0.0 for name, w in weights.items()}
    start, u, v = (
        {name: size[name] * z for name, z in random_params(weights, None, generator).items()} for _ in range(3)
    )
    w = {name: weights[name] + 1e-3 * start[name] for name in weights}  # off the kinks that zeros lie on
    (up, uphill), (down, downhill) = (
        objective.gradient({name: w[name] + sign * look.step * v[name] for name in w}) for sign in (1, -1)
    )
    slopes = torch.stack([(up - down) / (2 * look.step), (_dot(uphill, v) + _dot(downhill, v)) / 2])
    floor = look.noise / look.step * up.abs()
    slope = _apart(slopes, look.tolerance, floor)
    if product is None:
        return bool(slope), False
    try:
        times = product(replace(objective, network=replace(objective.network, params=w)))
        curved, other = times(v), times(u)
    except RuntimeError as error:
        said = (str(error).strip() or "no message").splitlines()[0]
        raise ValueError(f"network: torch finds no second derivative of its loss ({said}); {_MEND}") from error
    bends = [_dot(u, curved), _dot(v, other)]
    if look is _FINE:
        bends.append((_dot(u, uphill) - _dot(u, downhill)) / (2 * look.step))
    terms = torch.cat([(u[name] * uphill[name]).flatten() for name in u])
    curvature = _apart(torch.stack(bends), 10 * look.tolerance, 10 * look.noise / look.step * terms.norm())
    return tuple(torch.stack([slope, curvature]).tolist())  # the one host read


def _apart(values: Tensor, tolerance: float, floor: Tensor) -> Bool[Tensor, ""]:
    """Whether finite values differ by more than a share of the largest and the noise."""
    spread = values.amax() - values.amin()
    return (spread > tolerance * values.abs().amax() + floor) & values.isfinite().all()


def _dot(one: Params, other: Params) -> Tensor:
    return sum((one[name] * other[name]).sum() for name in one)
