"""The loss away from a network: on lines and planes through several, on random planes, and how far its basin goes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib._losses import Loss
from genlib._objective import (
    Objective,
    parameter_norm,
    random_params,
    require_finite,
    seeded_generator,
    side_by_side,
)
from genlib._precision import full_precision, upcast_network
from genlib._weights import TRANSPOSED
from genlib.network import Network, Params, dense_steps, layout

__all__ = [
    "BasinRadius",
    "Line",
    "Surface",
    "basin_radius",
    "filter_normalized_directions",
    "line",
    "plane",
    "surface",
]

_ROWS = 2048  # samples that pass at a time: 2 to 4 times as fast for small dense networks on a CPU, slower for none
_LARGEST = 10.0  # times the weights' norm, where a search for a radius ends
_START = 1 / 128  # of the largest radius, the first tried
_STEPS = 40
_ROUNDING = 16  # in units of the last place, what may be lost in the loss or in the weights' differences


@dataclass(frozen=True)
class Line:
    """The loss at each position on a line, 0 at its start and 1 at its end; infinite where it is not finite."""

    positions: Float[Tensor, " points"]
    losses: Float[Tensor, "*models points"]


@dataclass(frozen=True)
class Surface:
    """The loss on a grid, a row for each y, and the places (x, y) of the networks; infinite where it is not finite."""

    x: Float[Tensor, " columns"]
    y: Float[Tensor, " rows"]
    losses: Float[Tensor, "*models rows columns"]
    networks: Float[Tensor, "networks 2"]


@dataclass(frozen=True)
class BasinRadius:
    """The radius of a basin in each direction, infinite where the loss has not risen enough at `largest`.

    `unbounded` counts these directions; `passes` is the cost in forward passes over the data.
    """

    radii: Float[Tensor, "*models directions"]
    largest: Float[Tensor, "*models"]
    unbounded: Int[Tensor, "*models"]
    passes: float


# ------------------------------------------------------------------------------------------------- several networks


@full_precision()
@torch.no_grad()
def line(
    start: nn.Module | Network,
    end: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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
    _require_points(points)
    if not -torch.inf < limits[0] < limits[1] < torch.inf:
        raise ValueError(f"limits are {limits}; give two finite positions, the smaller first, such as (0.0, 1.0)")
    objective = _with_statistics(_objective(start, inputs, labels, loss, chunk_size))
    starts, ends = objective.network.params, _tensors_of(end, objective.network, "end")
    t = _equal_steps(*limits, points, next(iter(starts.values())))

    def at(i: int | slice) -> Params:
        return {name: torch.lerp(w, ends[name], _over(t[i], w, objective)) for name, w in starts.items()}

    return Line(t, _somewhere_finite(_losses(objective, points, at)).movedim(0, -1))


@full_precision()
@torch.no_grad()
def plane(
    origin: nn.Module | Network,
    first: nn.Module | Network,
    second: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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
    _require_points(points)
    if not 0 <= margin < torch.inf:
        raise ValueError(f"margin is {margin}; it must be finite and at least 0, a share of the width of the triangle")
    objective = _objective(origin, inputs, labels, loss, chunk_size)
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
    x, y = low + (high - low) * _equal_steps(-margin, 1 + margin, points, networks)
    s = (x - y[:, None] * along / height) / width  # w = w_origin + s (w_first − w_origin) + t (w_second − w_origin)
    t = (y[:, None] / height).expand_as(s)
    losses = _on_grid(objective, (to_first, to_second), s, t)
    return Surface(*(tensor.to(losses) for tensor in (x, y)), losses, networks.to(losses))


# ------------------------------------------------------------------------------------------------------- one network


@full_precision()
@torch.no_grad()
def surface(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    directions: Sequence[Params] | None = None,
    radius: float = 1.0,
    points: int = 21,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Surface:
    """The loss at w + x d₁ + y d₂, x and y at `points` equal steps from −radius to radius each.

    `directions` are d₁ and d₂, two filter-normalized ones if none are given: at x = 1 each filter has moved by its own
    norm. BatchNorm's statistics stay. A stack gives one surface a model. `loss` as in `line`.
    Cost: points² forward passes; memory: four times max(64 MB, the parameters) and one chunk.
    ValueError: as `Objective.of`, fewer than 2 points, a radius that isn't positive, directions of another shape.
    Li et al. 2018.
    """
    _require_points(points)
    if not 0 < radius < torch.inf:
        raise ValueError(f"radius is {radius}; it must be positive and finite")
    objective = _objective(network, inputs, labels, loss, chunk_size)
    if directions is None:
        directions = filter_normalized_directions(objective.network, 2, generator=generator)
    shapes = {name: w.shape for name, w in objective.network.params.items()}
    if [{name: d.shape for name, d in one.items()} for one in directions] != [shapes, shapes]:
        raise ValueError("directions are not two of the network's shape; give a tensor for each parameter in each")
    side = _equal_steps(-radius, radius, points, next(iter(objective.network.params.values())))
    directions = [{name: d.to(objective.network.params[name]) for name, d in one.items()} for one in directions]
    y, x = torch.meshgrid(side, side, indexing="ij")
    return Surface(side, side, _on_grid(objective, directions, x, y), side.new_zeros(1, 2))


@torch.no_grad()
def filter_normalized_directions(
    network: nn.Module | Network, count: int = 2, *, generator: torch.Generator | None = None
) -> list[Params]:
    """Random directions d in weight space with ‖d_f‖ = ‖w_f‖ for each filter f, d_f ∝ N(0, 1).

    A filter is what leads to one unit or channel: a row of a dense layer, the kernel of an output channel. Parameters
    of one axis, the biases and those of BatchNorm, have the direction zero. The networks of a stack share their draws.
    ValueError: no parameter with two axes; a count below 1. Li et al. 2018.
    """
    network = upcast_network(Network.of(network))
    if count < 1:
        raise ValueError(f"count is {count}; draw at least 1 direction")
    if not any(w.dim() - (network.size is not None) > 1 for w in network.params.values()):
        raise ValueError("network has no weights of two axes, so it has no filters to normalize by")
    generator = seeded_generator(generator, next(iter(network.params.values())).device)
    return [_by_filters(network, random_params(network.params, network.size, generator)) for _ in range(count)]


@full_precision()
@torch.no_grad()
def basin_radius(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    increase: float,
    directions: int = 100,
    filter_normalized: bool = False,
    largest: float | None = None,
    tolerance: float = 0.01,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> BasinRadius:
    """The distance r at which the loss has risen by `increase`, L(w + r d) = L(w) + increase, in random directions d.

    d is uniform on the unit sphere, or `filter_normalized`: r is then the share of its norm that each filter moves. The
    models of a stack share their draws. All directions at once: r doubles from `largest`/128 until the loss has risen,
    then the bracket is halved down to `tolerance`, relative; a rise and fall between two doublings stays unseen.
    `largest`, 10 ‖w‖ unless given (10 if filter-normalized), ends the search: r is infinite beyond. A loss that isn't
    finite counts as risen. `loss` as in `line`; BatchNorm's statistics stay.
    Cost: 1 + directions × steps forward passes, 8 to 14 steps as a rule; memory: twice max(64 MB, the parameters) and
    one chunk. ValueError: as `Objective.of`, a loss that isn't finite; increase, directions, largest or tolerance out
    of range. Huang et al. 2020.
    """
    for name, value in {"increase": increase, "directions": directions, "largest": largest}.items():
        if value is not None and not 0 < value < torch.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; it must lie between 0 and 1")
    objective = _objective(network, inputs, labels, loss, chunk_size)
    params, size = objective.network.params, objective.network.size
    generator = seeded_generator(generator, objective.inputs.device)
    at_rest = objective.at_rest()
    if not (increase > _ROUNDING * torch.finfo(at_rest.dtype).eps * at_rest.abs()).all():
        raise ValueError(
            f"increase is {increase}, lost in the rounding of the loss; give more, or a network in float64"
        )
    threshold = at_rest + increase
    limit = torch.full_like(threshold, _LARGEST if largest is None else largest)
    if largest is None and not filter_normalized:
        limit = limit * parameter_norm(params.values(), size)
        if not (limit > 0).all():
            raise ValueError("largest is not given, and the network's weights, its unit, are all zero; give a radius")
    together = side_by_side(params)
    found, passes = [], 1.0
    for first in range(0, directions, together):
        count = min(together, directions - first)
        drawn = _directions(objective.network, count, filter_normalized, generator)
        radii, steps = _search(objective, drawn, threshold, limit, tolerance)
        del drawn  # else two groups of them are held while the next is drawn
        found.append(radii)
        passes += count * steps
    radii = torch.cat(found)
    return BasinRadius(radii.movedim(0, -1), limit, radii.isinf().sum(0), passes)


def _directions(network: Network, count: int, filter_normalized: bool, generator: torch.Generator) -> Params:
    """So many directions along a leading axis."""
    if filter_normalized:
        drawn = filter_normalized_directions(network, count, generator=generator)
    else:
        drawn = [random_params(network.params, network.size, generator) for _ in range(count)]
        for direction in drawn:
            length = parameter_norm(direction.values(), None)
            for d in direction.values():
                d /= length
    return {name: torch.stack([direction.pop(name) for direction in drawn]) for name in network.params}


def _search(
    objective: Objective,
    directions: Params,
    threshold: Float[Tensor, "*models"],
    limit: Float[Tensor, "*models"],
    tolerance: float,
) -> tuple[Float[Tensor, "count *models"], int]:
    """The radius in each direction, infinite beyond the limit, and the number of steps."""
    weights, count = objective.network.params, len(next(iter(directions.values())))
    radius = (_START * limit).expand(count, *limit.shape)
    low, high = torch.zeros_like(radius), torch.full_like(radius, torch.inf)
    done = torch.zeros_like(radius, dtype=torch.bool)  # stays as it is, for no radius may hang on those beside it

    def at(i: int | slice) -> Params:
        return {
            name: torch.addcmul(w, _over(radius[i], w, objective), directions[name][i]) for name, w in weights.items()
        }

    for step in range(1, _STEPS + 1):
        risen = _losses(objective, count, at) >= threshold
        low, high = torch.where(risen | done, low, radius), torch.where(risen & ~done, radius, high)
        bracketed = high.isfinite()
        done = torch.where(bracketed, high - low <= tolerance * high, low >= limit)
        if step == _STEPS or done.all():  # the one host read of a step
            return torch.where(bracketed, (low + high) / 2, torch.inf), step
        radius = torch.where(bracketed, (low + high) / 2, torch.minimum(2 * low, limit))


# ------------------------------------------------------------------------------------------------------ their pieces


def _objective(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, loss: Loss, chunk_size: int | None
) -> Objective:
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    whole = objective.samples <= objective.chunk_size
    if chunk_size is None and whole and dense_steps(objective.network.module) is not None:
        return replace(objective, chunk_size=max(objective.chunk_size, _ROWS))
    return objective


def _losses(objective: Objective, points: int, at: Callable[[int | slice], Params]) -> Float[Tensor, "points *models"]:
    """The loss at each of the points, infinite where it isn't finite, as many side by side as one chunk holds."""
    together = objective.together
    if together == 1:
        losses = torch.stack([objective(at(i)) for i in range(points)])
    else:
        parts = [slice(i, min(i + together, points)) for i in range(0, points, together)]
        losses = torch.cat([objective(at(part), part.stop - part.start) for part in parts])
    return torch.where(losses.isfinite(), losses, torch.inf)


def _on_grid(
    objective: Objective, directions: Sequence[Params], x: Float[Tensor, "rows columns"], y: Tensor
) -> Float[Tensor, "*models rows columns"]:
    """The loss at w + x d₁ + y d₂."""
    weights, (first, second) = objective.network.params, directions
    a, b = x.flatten(), y.flatten()

    def at(i: int | slice) -> Params:
        return {
            name: torch.addcmul(w, _over(a[i], w, objective), first[name]).addcmul(
                _over(b[i], w, objective), second[name]
            )
            for name, w in weights.items()
        }

    losses = _somewhere_finite(_losses(objective, x.numel(), at))
    return losses.movedim(0, -1).unflatten(-1, x.shape)


def _somewhere_finite(losses: Float[Tensor, "points *models"]) -> Float[Tensor, "points *models"]:
    require_finite(losses.amin(0), "loss")
    return losses


def _over(values: Tensor, w: Tensor, objective: Objective) -> Tensor:
    """One value for all of a weight tensor, or one a point or a model, each over its whole tensor."""
    axes = w.dim() - (objective.network.size is not None)
    return values.to(w.dtype).reshape(*values.shape, *[1] * axes)


def _equal_steps(low: float, high: float, points: int, like: Tensor) -> Float[Tensor, " points"]:
    return torch.linspace(low, high, points, dtype=like.dtype, device=like.device)


def _require_points(points: int) -> None:
    if points < 2:
        raise ValueError(f"points is {points}; give at least 2, one for each end")


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
    rounding = _ROUNDING * eps * (dot(weights, weights).sqrt() + width + dot(c, c).sqrt())
    if not torch.minimum(width, height) > rounding:
        raise ValueError("origin, first and second lie on one line; give three networks that span a plane, or use line")
    return width, along, height


def _by_filters(network: Network, draw: Params) -> Params:
    lead = int(network.size is not None)
    direction = {}
    for name, w in network.params.items():
        d = draw.pop(name)
        if w.dim() - lead < 2:
            direction[name] = torch.zeros_like(w)
            continue
        layer = network.module.get_submodule(name.rpartition(".")[0])
        d /= _filter_norms(d, layer, 0).clamp_min(torch.finfo(w.dtype).tiny)
        direction[name] = d * _filter_norms(w, layer, lead)
    return direction


def _filter_norms(w: Tensor, layer: nn.Module, lead: int) -> Tensor:
    """The norm of each filter, to be broadcast over the weights, which have `lead` axes of models."""
    if not isinstance(layer, TRANSPOSED):
        return torch.linalg.vector_norm(w, dim=tuple(range(lead + 1, w.dim())), keepdim=True)
    grouped = w.unflatten(lead, (layer.groups, -1))  # groups, inputs, outputs, taps
    norms = torch.linalg.vector_norm(grouped, dim=(lead + 1, *range(lead + 3, grouped.dim())), keepdim=True)
    return norms.expand_as(grouped).flatten(lead, lead + 1)
