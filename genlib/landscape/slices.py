"""The loss around one network, on a plane of random, filter-normalized directions."""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from genlib.landscape.grids import Surface, equal_steps, objective_of, on_grid, require_points
from genlib.network import Network, Params
from genlib.network.losses import Loss
from genlib.network.objective import random_params, seeded_generator
from genlib.network.precision import full_precision, upcast_network
from genlib.network.weights import TRANSPOSED

__all__ = ["filter_normalized_directions", "surface"]


@full_precision()
@torch.no_grad()
def surface(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
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
    require_points(points)
    if not 0 < radius < torch.inf:
        raise ValueError(f"radius is {radius}; it must be positive and finite")
    objective = objective_of(network, inputs, labels, loss, chunk_size)
    if directions is None:
        directions = filter_normalized_directions(objective.network, 2, generator=generator)
    shapes = {name: w.shape for name, w in objective.network.params.items()}
    if [{name: d.shape for name, d in one.items()} for one in directions] != [shapes, shapes]:
        raise ValueError("directions are not two of the network's shape; give a tensor for each parameter in each")
    side = equal_steps(-radius, radius, points, next(iter(objective.network.params.values())))
    directions = [{name: d.to(objective.network.params[name]) for name, d in one.items()} for one in directions]
    y, x = torch.meshgrid(side, side, indexing="ij")
    return Surface(side, side, on_grid(objective, directions, x, y), side.new_zeros(1, 2))


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
