"""Whether torch's derivatives of a loss are its derivatives: a look at a few samples before they are used."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from genlib.network.calls import plainly_called
from genlib.network.door import spread
from genlib.network.errors import first_line, out_of_memory
from genlib.network.functional import Network, pulled_back, without_recomputation
from genlib.network.losses import LOSSES
from genlib.network.objective import Objective, seeded_generator, with_slope
from genlib.network.operations import dense_steps

__all__ = ["require_derivatives", "require_input_derivatives", "square", "twice_differentiable"]

_TRIES = 3
_MEND = "write its backward functions in operations that can be differentiated once more, and measure it uncompiled"


class _Look(NamedTuple):
    """How far two steps go, relative to the weights, and what of a difference quotient and of a value is noise."""

    step: float
    tolerance: float
    noise: float


_FINE = _Look(1e-9, 1e-4, 1e-14)  # in float64, so short that few units cross a kink on the way
_COARSE = _Look(3e-3, 2e-2, 1e-6)  # for a network that computes in float32 whatever it is given


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return x.add_(3).clamp_(0, 6).div_(6) if inplace else (x + 3).clamp(0, 6) / 6


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


_BY_OTHERS = {torch.nn.functional.hardsigmoid: _hardsigmoid, torch._weight_norm: _weight_norm}


class _Composed(TorchFunctionMode):
    """Functions whose second derivative torch lacks, or has wrong, by others of the same values."""

    rounds = False  # whether something came out with fewer digits than float64

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        found = _BY_OTHERS.get(function, function)(*arguments, **(keywords or {}))
        self.rounds |= isinstance(found, Tensor) and found.is_floating_point() and found.dtype is not torch.float64
        return found


@contextmanager
def twice_differentiable() -> Iterator[_Composed]:
    """Forward passes in here may be differentiated twice; attention takes the kernel for which torch knows how."""
    with sdpa_kernel(SDPBackend.MATH), _Composed() as composed:
        yield composed


def require_derivatives(objective: Objective, *, twice: bool) -> None:
    """Refuse a network whose gradient is not that of its loss, or if asked `twice` whose second derivative isn't.

    On at most 8 samples, in float64 where the network itself computes in it, near its weights: φ(s, t) = L(w + su + tv)
    for random u and v, its difference quotients along t against ∂φ/∂t and ∂²φ/∂s∂t, and this against ∂²φ/∂t∂s. For
    genlib's own losses, which flatten as they are fitted, a square of the logits stands. Cost: two gradients, and if
    asked a third that is differentiated twice more; of a stack the first network stands for all. Once a network;
    nothing on the meta device. Memory: 4 times the parameters, 7 if twice, for float64 takes two of each.
    """
    network, check = objective.network, "second derivative" if twice else "gradient"
    if check in network.passed or objective.device.type == "meta":
        return
    few = next(objective.each)
    few = replace(few, inputs=spread(few.inputs, 0), labels=spread(few.labels, 0), chunk_size=few.samples)
    if few.loss in LOSSES.values():
        few = replace(few, loss=square)
    for seed in range(_TRIES):  # a unit may cross its kink on the way
        generator = seeded_generator(None, few.device, seed)
        directions = {name: _Directions.of(w, generator) for name, w in few.network.params.items()}
        try:
            slope, curvature, in_single = _disagreements(few, directions, twice, _FINE)
        except Exception as error:  # as where something in the forward pass stays in float32
            if out_of_memory(error):
                raise
            slope, in_single = True, True
        if in_single and (slope or curvature):
            slope, curvature = _in_its_own_precision(few, directions, twice)
        if not slope and not curvature:
            break
    if not slope and not curvature:
        if few.loss is square:
            network.passed.update(("gradient", check))
        return
    if slope:
        raise ValueError(
            "network: its gradient isn't that of its loss; take detach, no_grad, rounding and own backward functions "
            "out of its forward pass, call module.eval() where it keeps a state, and give an Embedding padding_idx=None"
        )
    raise ValueError(f"network: torch's second derivative of its loss is wrong or incomplete; {_MEND}")


def require_input_derivatives(network: Network, inputs: Tensor) -> None:
    """Refuse a network whose gradient in its inputs is not that of its outputs, as where it detaches what it takes.

    On a few samples, in float64 where the network itself computes in it: along random v the difference quotient of a
    square of the logits at x ± tv against the mean of its slopes there. Cost: two gradients; of a stack the first
    network stands for all. Once a network, nothing on the meta device. Memory: twice the parameters of float32.
    """
    known = dense_steps(network.module) is not None and plainly_called(network.module)  # so torch's own derivatives
    if known or "input gradient" in network.passed or inputs.is_meta or not inputs.is_floating_point():
        return
    one, x = network.each[0], spread(inputs, 0)
    for seed in range(_TRIES):  # a unit may cross its kink on the way
        try:
            apart, rounds = _apart_along_inputs(one, x, seed, _FINE)
        except Exception as error:  # as where something in the forward pass stays in float32
            if out_of_memory(error):
                raise
            rounds = True
        if rounds:
            apart, _ = _apart_along_inputs(one, x, seed, _COARSE)
        if not apart:
            network.passed.add("input gradient")
            return
    raise ValueError(
        "network: its gradient in the inputs isn't that of its outputs; take detach, no_grad, rounding and own "
        "backward functions out of its forward"
    )


def _apart_along_inputs(network: Network, x: Tensor, seed: int, look: _Look) -> tuple[bool, bool]:
    """Whether the slope along v is not the difference quotient, and whether something is rounded to float32."""
    dtype = torch.float64 if look is _FINE else x.dtype
    params, buffers = ({n: _to(t, dtype) for n, t in ts.items()} for ts in (network.params, network.buffers))
    v = torch.randn(x.shape, generator=seeded_generator(None, x.device, seed), device=x.device, dtype=x.dtype)
    x, v = x.to(dtype), (x.square().mean().sqrt().clamp(min=1e-2) * v).to(dtype)
    found, rounds = [], False
    for at in (look.step, -look.step):
        t = torch.tensor(at, dtype=dtype, device=x.device, requires_grad=True)
        with torch.enable_grad(), twice_differentiable() as composed, without_recomputation():
            value = square(logits := network.apply(params, x + t * v, buffers=buffers), logits).mean()
        if not value.requires_grad:
            raise ValueError("network: its output has no derivative with respect to inputs; remove no_grad or detach")
        found.append((value.detach(), *pulled_back(value, [t])))
        rounds |= composed.rounds
    (up, uphill), (down, downhill) = found
    means = [(up - down) / (2 * look.step), (uphill + downhill) / 2]
    return bool(_apart(means, look.tolerance, look.noise / look.step * up.abs())), rounds


def square(logits: Tensor, labels: Tensor) -> Float[Tensor, " n"]:
    """½ Σ_c (f_c + 2 + cos c)²: every logit counts differently, and no term cancels another."""
    offsets = 2 + torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype).cos()
    return (logits + offsets).square().sum(-1) / 2


class _Directions(NamedTuple):
    """Random u, v and a small step off the kinks that zeros lie on, of the size of a weight and of rank one each.

    As columns [rows, 3] and rows [3, numbers], so that none takes memory of its own.
    """

    columns: Float[Tensor, "rows 3"]
    rows: Float[Tensor, "3 numbers"]

    @classmethod
    def of(cls, w: Tensor, generator: torch.Generator) -> "_Directions":
        size = w.square().mean().sqrt().clamp(min=1e-2) if w.numel() else torch.ones_like(w.sum())
        count = len(w) if w.dim() and w.numel() else 1
        normal = {"generator": generator, "device": w.device, "dtype": torch.float64}
        sizes = torch.stack([size, size, 1e-3 * size]).double()
        return cls(sizes * torch.randn(count, 3, **normal), torch.randn(3, w.numel() // count, **normal))

    def moved(self, w: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """w + su + tv, a little off."""
        columns = self.columns.to(s) * torch.stack([s, t, torch.ones_like(s)])
        return torch.addmm(w.reshape(len(columns), self.rows.shape[1]), columns, self.rows.to(s)).view_as(w)


def _disagreements(
    objective: Objective, directions: dict[str, _Directions], twice: bool, look: _Look
) -> tuple[bool, bool, bool]:
    """Whether ∂φ/∂t is not the slope of φ, whether ∂²φ/∂s∂t is not ∂²φ/∂t∂s or the slope of ∂φ/∂s, and whether
    something in φ is rounded to float32."""
    dtype = torch.float64 if look is _FINE else next(iter(objective.network.params.values())).dtype
    network = objective.network
    objective = replace(objective, inputs=_to(objective.inputs, dtype))

    rounds = False

    def slopes(at: float, create_graph: bool = False) -> tuple[Tensor, ...]:
        """φ, ∂φ/∂s and ∂φ/∂t at t = at, and s and t."""
        s, t = torch.tensor([0.0, at], dtype=dtype, device=objective.device).unbind()
        s.requires_grad_(), t.requires_grad_()
        nonlocal rounds
        with torch.enable_grad(), without_recomputation():
            moved = {name: directions[name].moved(_to(w, dtype), s, t) for name, w in network.params.items()}
            state = {name: _to(buffer, dtype, copy=True) for name, buffer in network.buffers.items()}
            with twice_differentiable() as composed:
                loss = with_slope(replace(objective, network=replace(network, buffers=state))(moved))
            del moved
        rounds |= composed.rounds
        found = torch.autograd.grad(loss, (s, t), create_graph=create_graph, materialize_grads=True)
        return loss.detach(), *found, s, t

    (up, s_up, t_up, *_), (down, s_down, t_down, *_) = slopes(look.step), slopes(-look.step)
    floor = look.noise / look.step
    # A loss of one's own may be small for the logits that it subtracts.
    rounding = up.abs() + (objective.loss is not square)
    slope = _apart([(up - down) / (2 * look.step), (t_up + t_down) / 2], look.tolerance, floor * rounding)
    if not twice:
        return bool(slope), False, rounds
    try:
        _, s_slope, t_slope, s, t = slopes(0.0, create_graph=True)
        bends = [_derivative(t_slope, s), _derivative(s_slope, t)]
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"network: torch finds no second derivative of its loss ({first_line(error)}); {_MEND}"
        ) from error
    floor = 100 * floor * (s_up.abs() + (objective.loss is not square))
    quotient = (s_up - s_down) / (2 * look.step)  # which a kink that is crossed changes
    curvature = _apart(bends, look.tolerance, floor) | _apart([*bends, quotient], 10 * look.tolerance, floor)
    return *torch.stack([slope, curvature]).tolist(), rounds  # the one host read


def _in_its_own_precision(objective: Objective, directions: dict[str, _Directions], twice: bool) -> tuple[bool, bool]:
    try:
        return _disagreements(objective, directions, twice, _COARSE)[:2]
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise ValueError(f"network: torch can't differentiate its loss ({first_line(error)}); {_MEND}") from error


def _derivative(value: Tensor, of: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(of)
    return torch.autograd.grad(value, of, retain_graph=True, materialize_grads=True)[0]


def _apart(values: list[Tensor], tolerance: float, floor: Tensor) -> Bool[Tensor, ""]:
    """Whether finite values differ by more than a share of the largest and the noise."""
    values = torch.stack([value.detach() for value in values])
    spread = values.amax() - values.amin()
    return (spread > tolerance * values.abs().amax() + floor) & values.isfinite().all()


def _to(tensor: Tensor, dtype: torch.dtype, *, copy: bool = False) -> Tensor:
    return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=copy)
