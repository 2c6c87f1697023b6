"""How far a basin goes: the radius at which the loss has risen."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from genlib.landscape.grids import ROUNDING, losses_at, objective_of, over
from genlib.landscape.slices import filter_normalized_directions
from genlib.network import Network, Params
from genlib.network.chunks import side_by_side
from genlib.network.losses import Loss
from genlib.network.objective import Objective, parameter_norm, random_params, seeded_generator
from genlib.network.precision import full_precision

__all__ = ["BasinRadius", "basin_radius"]

_LARGEST = 10.0  # times the weights' norm, where a search for a radius ends
_START = 1 / 128  # of the largest radius, the first tried
_STEPS = 40


@dataclass(frozen=True)
class BasinRadius:
    """The radius of a basin in each direction, infinite where the loss has not risen enough at `largest`.

    `unbounded` counts these directions; `passes` is the cost in forward passes over the data.
    """

    radii: Float[Tensor, "*models directions"]
    largest: Float[Tensor, "*models"]
    unbounded: Int[Tensor, "*models"]
    passes: float


@full_precision()
@torch.no_grad()
def basin_radius(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
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
    objective = objective_of(network, inputs, labels, loss, chunk_size)
    params, size = objective.network.params, objective.network.size
    generator = seeded_generator(generator, objective.device)
    at_rest = objective.at_rest()
    if not (increase > ROUNDING * torch.finfo(at_rest.dtype).eps * at_rest.abs()).all():
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
            name: torch.addcmul(w, over(radius[i], w, objective), directions[name][i]) for name, w in weights.items()
        }

    for step in range(1, _STEPS + 1):
        risen = losses_at(objective, count, at) >= threshold
        low, high = torch.where(risen | done, low, radius), torch.where(risen & ~done, radius, high)
        bracketed = high.isfinite()
        done = torch.where(bracketed, high - low <= tolerance * high, low >= limit)
        if step == _STEPS or done.all():  # the one host read of a step
            return torch.where(bracketed, (low + high) / 2, torch.inf), step
        radius = torch.where(bracketed, (low + high) / 2, torch.minimum(2 * low, limit))
