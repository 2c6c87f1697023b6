"""Linear regions: how often a network changes its linear piece along a path, and where on a line."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib.network import Network, dense_steps
from genlib.network.precision import full_precision
from genlib.sensitivity.pieces import flips_along, kinks, require_pieces
from genlib.sensitivity.samples import at_once, measurable_inputs

__all__ = ["breakpoints", "transitions"]


@full_precision()
@torch.no_grad()
def transitions(
    network: nn.Module | Network, path: Tensor, *, dim: int = 0, chunk_size: int | None = None
) -> Int[Tensor, "..."]:
    """How many hidden units change their linear piece at each step of a closed path, from point i to i + 1 mod k.

    `path` [points, …]; with `dim` = 1 many paths at once, [paths, points, …], with as many axes before the points as
    `dim` says. Returns [*models, *paths, points]. ReLU, LeakyReLU, PReLU and abs have two pieces; ReLU6, HardTanh,
    HardSigmoid and clamp three, a jump over one counting twice; a unit of a max-pool changes where its argmax does, a
    maximum or minimum of values, sorted ones included, likewise; a comparison, as in x (x > 0), where its outcome does.
    The sum over the steps grows with k up to the number of crossings: what is crossed twice within a step is missed.
    Take k so large that 2k points change the sum by less than 2 %. `chunk_size` points at a time.
    Cost: one forward pass over the points. Fewer than two points, an operation that isn't piecewise linear (named),
    BatchNorm or dropout in training mode: ValueError. Novak et al. 2018.
    """
    if not 0 <= dim <= path.dim() - 2:
        raise ValueError(f"dim is {dim} for a path of shape {tuple(path.shape)}; it must be the axis of the points")
    if path.shape[dim] < 2:
        raise ValueError(f"path has {path.shape[dim]} points along axis {dim}; give at least 2")
    network = Network.of(network)
    network.require_eval()
    require_pieces(network)
    network, points = measurable_inputs(network, path.flatten(0, dim), chunk_size, "path")
    network.require_known()  # the look at the inputs may have found its graph wrong
    if not torch.stack(points.aminmax()).isfinite().all():  # ten times as fast as a look at each
        raise ValueError("path is not finite; drop those points")
    chunk_size = chunk_size or at_once(network, points)
    points = points.unflatten(0, (-1, path.shape[dim]))
    counts = [_transitions(one, points, chunk_size) for one in network.each]
    counts = counts[0] if network.size is None else torch.stack(counts)
    return counts.view(*counts.shape[:-2], *path.shape[: dim + 1])


def _transitions(
    network: Network, points: Float[Tensor, "paths points ..."], chunk_size: int
) -> Int[Tensor, "paths points"]:
    module, k = network.shared_copy(), points.shape[1]
    rows = []
    for paths in points.split(max(1, chunk_size // k)):
        parts = paths.split(chunk_size, 1)
        following = [part[:, :1] for part in (*parts[1:], parts[0])]
        rows.append(
            torch.cat([flips_along(network, module, torch.cat(p, 1)) for p in zip(parts, following, strict=True)], 1)
        )
    return torch.cat(rows).long()


@torch.no_grad()
def breakpoints(
    network: nn.Module | Network, start: Float[Tensor, "..."], end: Float[Tensor, "..."]
) -> Float[Tensor, " n"]:
    """All t in (0, 1), sorted, where a hidden unit changes its linear piece on the line x(t) = (1 − t) start + t end.

    Exact: between neighbouring breakpoints of the layers before, a unit's input is affine in t, and its crossings of
    the activation's kinks are solved for. Computed and returned in float64; units that cross at the same t count once.
    `start` and `end` are single inputs. For Sequentials of dense layers with ReLU, LeakyReLU, ReLU6, HardTanh or
    HardSigmoid, and one network: what else there is, `transitions` counts along points.
    Cost: a forward pass over n points; one host read a layer. Another network, shapes that differ, start = end:
    ValueError.
    """
    network = Network.of(network)
    if network.size is not None:
        raise ValueError("network is a stack, whose networks differ in their number of breakpoints; take network.each")
    require_pieces(network)
    network.require_eval()
    steps = dense_steps(network.module)
    if steps is None:
        raise ValueError(
            "network is no Sequential of dense layers and elementwise activations; "
            "transitions counts along points of a path what breakpoints solves for"
        )
    if start.shape != end.shape or start.numel() == 0:
        raise ValueError(f"start has the shape {tuple(start.shape)} and end {tuple(end.shape)}; give two single inputs")
    ends = torch.stack([start, end]).detach().flatten(1).double()
    if torch.equal(*ends) or not ends.isfinite().all():
        raise ValueError("start and end are equal or not finite; there is no segment between them")
    t = torch.tensor([0.0, 1.0], dtype=torch.float64, device=ends.device)
    values = ends
    for name, layer in steps:
        if isinstance(layer, nn.Linear):
            bias = network.params.get(f"{name}.bias")
            values = values @ network.params[f"{name}.weight"].double().T
            values = values if bias is None else values + bias.double()
        elif not isinstance(layer, nn.Identity):
            for kink in kinks(layer):
                t, values = _split(t, values, kink)
            values = layer(values)
    return t[1:-1]


def _split(
    t: Float[Tensor, " knots"], values: Float[Tensor, "knots units"], kink: float | int
) -> tuple[Float[Tensor, " more"], Float[Tensor, "more units"]]:
    """The knots, and the units' values there, with those added where a unit crosses the kink between two of them."""
    z = values - kink
    piece, unit = torch.nonzero(z[:-1].sign() * z[1:].sign() < 0, as_tuple=True)
    below, above = z[piece, unit], z[piece + 1, unit]
    share = (below / (below - above)).unsqueeze(1)
    crossed = torch.lerp(values[piece], values[piece + 1], share)
    crossed[torch.arange(len(unit), device=t.device), unit] = kink
    found = torch.lerp(t[piece], t[piece + 1], share.squeeze(1))
    t, order = torch.cat([t, found]).sort(stable=True)
    kept = torch.cat([t.new_ones(1, dtype=torch.bool), t.diff() > 0])
    return t[kept], torch.cat([values, crossed])[order][kept]
