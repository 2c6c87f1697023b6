"""How many units change their linear piece near a sample."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib.network import Network
from genlib.network.objective import seeded_generator
from genlib.network.precision import full_precision, upcast
from genlib.sensitivity.pieces import changing_units, require_pieces
from genlib.sensitivity.samples import at_once, measurable_inputs

__all__ = ["local_complexity", "typical_radius"]

_SHARE = 0.05  # of the median distance between two samples
_COMPARED = 2000  # samples, all pairs of which take 8 MB


@full_precision()
@torch.no_grad()
def local_complexity(
    network: nn.Module | Network,
    inputs: Tensor,
    *,
    radius: float | None = None,
    directions: int = 25,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Int[Tensor, "*models samples"]:
    """How many hidden units are not on one linear piece at all of x ± r v_i, v_i orthonormal and drawn for each sample.

    Humayun, Balestriero & Baraniuk 2024. `radius` r: without one, .05 of the median distance between two of the inputs.
    `directions`, or as many as an input has numbers where these are fewer. Units and pieces are those of `transitions`.
    Without a generator the directions are always the same; a stack shares them. `chunk_size` points at a time.
    Cost: 2 forward passes a direction. ValueError: as `transitions`; a radius that isn't positive, as that of inputs
    which are all the same.
    """
    if directions < 1:
        raise ValueError(f"directions is {directions}; give at least 1")
    network = Network.of(network)
    network.require_eval()
    require_pieces(network)
    network, inputs = measurable_inputs(network, inputs, chunk_size)
    network.require_known()  # the look at the inputs may have found its graph wrong
    radius = typical_radius(inputs) if radius is None else radius
    if not 0 < radius < torch.inf:
        raise ValueError(f"radius is {radius:.4g}; give a positive number, as inputs that differ have one of their own")
    generator = seeded_generator(generator, inputs.device)
    sample = inputs[0].numel()
    directions = min(directions, sample)
    modules, counts = [(one, one.shared_copy()) for one in network.each], []
    for x in inputs.split(max(1, (chunk_size or at_once(network, inputs)) // (2 * directions))):
        shape = {"size": (sample, directions), "dtype": x.dtype, "device": x.device}
        drawn = torch.stack([torch.randn(**shape, generator=generator) for _ in x])  # whatever the chunks
        steps = radius * torch.linalg.qr(drawn).Q.mT.unflatten(-1, x.shape[1:])
        points = x.unsqueeze(1) + torch.cat([steps, -steps], 1)
        counts.append(torch.stack([changing_units(one, module, points) for one, module in modules]))
    found = torch.cat(counts, -1).long()
    return found[0] if network.size is None else found


def typical_radius(inputs: Float[Tensor, "samples ..."]) -> float:
    """.05 of the median distance between two samples, of 2,000 spread over them where there are more.

    Cost: one host read; memory: the distances of all pairs. ValueError: one sample alone.
    """
    if len(inputs) < 2:
        raise ValueError("inputs holds one sample, and no distance between two; give the radius")
    spread = inputs[:: -(-len(inputs) // _COMPARED)]
    return _SHARE * torch.nn.functional.pdist(upcast(spread).flatten(1)).median().item()
