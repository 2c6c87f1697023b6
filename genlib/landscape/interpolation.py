"""The loss between networks: on the line through two, on the plane through three."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from genlib.landscape.grids import (
    ROUNDING,
    Surface,
    equal_steps,
    losses_at,
    objective_of,
    on_grid,
    over,
    require_points,
    somewhere_finite,
)
from genlib.network import Network, Params, layout
from genlib.network.losses import Loss
from genlib.network.objective import Objective
from genlib.network.precision import full_precision

__all__ = ["Line", "line", "plane"]


@dataclass(frozen=True)
class Line:
    """The loss at each position on a line, 0 at its start and 1 at its end; infinite where it is not finite."""

    positions: Float[Tensor, " points"]
    losses: Float[Tensor, "*models points"]


@full_precision()
@torch.no_grad()
def line(
    start: nn.Module | Network,
    end: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    points: int = 25,
    limits: tuple[float, float] = (0.0, 1.0),
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Line:
    """The loss at (1 − t) w_start + t w_end, t at `points` equal steps between `limits`.

    BatchNorm's statistics are interpolated along with the weights, not computed anew, so that both ends are the
    networks themselves. `loss`: `cross_entropy`, `mse`, `error` (the share of wrong labels), or a function to one loss
    a sample. Two stacks give one line for each pair of networks. Where the loss isn't finite it is infinite.
    Cost: `points` forward passes; memory: max(64 MB, the parameters) and one chunk.
    ValueError: as `Objective.of`, networks of different shapes, fewer than 2 points. Goodfellow et al. 2015.
    """
    require_points(points)
    if not -torch.inf < limits[0] < limits[1] < torch.inf:
        raise ValueError(f"limits are {limits}; give two finite positions, the smaller first, such as (0.0, 1.0)")
    objective = _with_statistics(objective_of(start, inputs, labels, loss, chunk_size))
    starts, ends = objective.network.params, _tensors_of(end, objective.network, "end")
    t = equal_steps(*limits, points, next(iter(starts.values())))

    def at(i: int | slice) -> Params:
        return {name: torch.lerp(w, ends[name], over(t[i], w, objective)) for name, w in starts.items()}

    return Line(t, somewhere_finite(losses_at(objective, points, at)).movedim(0, -1))


@full_precision()
@torch.no_grad()
def plane(
    origin: nn.Module | Network,
    first: nn.Module | Network,
    second: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    points: int = 21,
    margin: float = 0.2,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Surface:
    """The loss on the plane through the weights of three networks.

    x and y are distances in weight space: `origin` lies at (0, 0), `first` on the positive x axis, `second` above it.
    The grid of `points` × `points` goes beyond the triangle by `margin` of its width and height on each side.
    BatchNorm's statistics are those of the plane through the three networks' own, so that these are met exactly;
    beyond the triangle a variance may fall below zero, and the loss is infinite there. `loss` as in `line`.
    Cost: points² forward passes; memory: five times max(64 MB, the parameters) and one chunk.
    ValueError: as `line`, a stack, a margin below 0, three networks on one line. Garipov et al. 2018.
    """
    require_points(points)
    if not 0 <= margin < torch.inf:
        raise ValueError(f"margin is {margin}; it must be finite and at least 0, a share of the width of the triangle")
    objective = objective_of(origin, inputs, labels, loss, chunk_size)
    names = list(objective.network.params)
    objective = _with_statistics(objective)
    if objective.network.size is not None:
        raise ValueError("origin is a stack; a plane goes through three networks: take those of `stack.each`")
    weights = objective.network.params
    to_first, to_second = (
        {name: tensor - weights[name] for name, tensor in _tensors_of(other, objective.network, argument).items()}
        for other, argument in ((first, "first"), (second, "second"))
    )
    width, along, height = _frame(weights, to_first, to_second, names)
    zero = torch.zeros_like(width)
    networks = torch.stack([zero, zero, width, zero, along, height]).view(3, 2)
    low, high = networks.amin(0).unsqueeze(1), networks.amax(0).unsqueeze(1)
    x, y = low + (high - low) * equal_steps(-margin, 1 + margin, points, networks)
    s = (x - y[:, None] * along / height) / width  # w = w_origin + s (w_first − w_origin) + t (w_second − w_origin)
    t = (y[:, None] / height).expand_as(s)
    losses = on_grid(objective, (to_first, to_second), s, t)
    return Surface(*(tensor.to(losses) for tensor in (x, y)), losses, networks.to(losses))


def _moving(network: Network) -> Params:
    """The weights and the statistics of BatchNorm, but not the counts of batches."""
    return network.params | {name: b for name, b in network.buffers.items() if b.is_floating_point()}


def _with_statistics(objective: Objective) -> Objective:
    """The objective as a function of the weights and of the statistics of BatchNorm."""
    network = objective.network
    fixed = {name: b for name, b in network.buffers.items() if not b.is_floating_point()}
    return replace(objective, network=replace(network, params=_moving(network), buffers=fixed))


def _tensors_of(other: nn.Module | Network, network: Network, argument: str) -> Params:
    """The weights and statistics of a network of the same layers, in the precision of the first."""
    other = Network.of(other)
    other.require_eval()
    expected, found = (layout(one.module, one.params | one.buffers) for one in (network, other))
    if expected != found:
        odd = next(name for name in expected | found if expected.get(name) != found.get(name))
        raise ValueError(
            f"{argument} differs from the first network in {odd} ({found.get(odd)} against {expected.get(odd)}); "
            "give networks of the same layers and shapes, a stack beside a stack"
        )
    tensors = _moving(other)
    return {name: tensors[name].to(w) for name, w in network.params.items()}


def _frame(weights: Params, b: Params, c: Params, names: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """‖b‖, and the parts of c along b and across it, over the named tensors, the weights. One host read."""

    def dot(first: Params, second: Params) -> Tensor:
        return torch.stack([(first[name] * second[name]).sum(dtype=torch.float64) for name in names]).sum()

    width = dot(b, b).sqrt()
    along = dot(b, c) / width
    rest = (torch.addcmul(c[name], b[name], (-along / width).to(c[name])) for name in names)
    height = torch.stack([tensor.square().sum(dtype=torch.float64) for tensor in rest]).sum().sqrt()
    eps = torch.finfo(next(iter(weights.values())).dtype).eps
    rounding = ROUNDING * eps * (dot(weights, weights).sqrt() + width + dot(c, c).sqrt())
    if not torch.minimum(width, height) > rounding:
        raise ValueError("origin, first and second lie on one line; give three networks that span a plane, or use line")
    return width, along, height
