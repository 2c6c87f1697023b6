"""Expected sharpness against divergence: a picture, no bound."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib.network import Network
from genlib.network.objective import Objective, start_of
from genlib.network.precision import full_precision
from genlib.pac_bayes.divergences import kl_of_means
from genlib.sharpness import deviations
from genlib.sharpness.noise import mean_of_pairs, require_pairs, same_draws

__all__ = ["SharpnessKL", "sharpness_kl"]


@dataclass(frozen=True)
class SharpnessKL:
    """The expected sharpness and the divergence at each scale α of the noise, with the error of the former."""

    scales: Float[Tensor, " scales"]
    sharpness: Float[Tensor, "scales ..."]
    standard_error: Float[Tensor, "scales ..."]
    kl: Float[Tensor, "scales ..."]
    passes: float


@full_precision()
def sharpness_kl(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    scales: Sequence[float],
    noise: str = "scaled",
    initial: nn.Module | Network | None = None,
    draws: int,
    generator: torch.Generator | None = None,
    sampling: str = "auto",
    chunk_size: int | None = None,
) -> SharpnessKL:
    """The curve of expected sharpness against KL = ½ Σ ((w_i − c_i)/σ_i)², σ_i as in `deviations`, as the scale varies.

    c is 0, or the weights of `initial`. With the noise `scaled` (Neyshabur et al. 2017) or `magnitude` the prior's
    variance depends on the weights, which makes a picture but no bound. The same draws at every scale.
    Cost: 1 + draws forward passes a scale. ValueError: as `expected_sharpness`; a scale that isn't positive.
    """
    if not len(scales) or not min(scales) > 0:
        raise ValueError("scales is empty or holds a number that isn't positive; give the scales of the noise")
    require_pairs(draws)
    objective = Objective.of(network, inputs, labels, chunk_size=chunk_size)
    weights, size = objective.network.params, objective.network.size
    center = None if initial is None else start_of(initial, objective.network)
    moved = weights if center is None else {name: w - center[name] for name, w in weights.items()}
    losses, at_rest = same_draws(objective, noise, generator, sampling), objective.at_rest()
    measured = [mean_of_pairs(losses(scale, draws) - at_rest) for scale in scales]
    spreads = (deviations(weights, scale, noise) for scale in scales)
    return SharpnessKL(
        scales=torch.as_tensor([float(scale) for scale in scales], device=inputs.device),
        sharpness=torch.stack([mean for mean, _, _ in measured]),
        standard_error=torch.stack([error for _, error, _ in measured]),
        kl=torch.stack([kl_of_means(moved, spread, size) for spread in spreads]),
        passes=1.0 + draws * len(scales),
    )
