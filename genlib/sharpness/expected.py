"""How much the loss rises under noise on the weights, on average."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from genlib.estimates import Estimate
from genlib.network import Network
from genlib.network.losses import Loss
from genlib.network.objective import Objective
from genlib.network.precision import full_precision
from genlib.sharpness.noise import Noise, mean_of_pairs, perturbed_losses, require_pairs, require_scale

__all__ = ["ExpectedSharpness", "expected_sharpness"]


@dataclass(frozen=True, kw_only=True)
class ExpectedSharpness(Estimate):
    """An estimate with the number of draws whose loss was not finite; where there is one, `value` is infinite."""

    not_finite: Int[Tensor, "..."]


@full_precision()
def expected_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    scale: float | Float[Tensor, "..."],
    noise: Noise = "isotropic",
    draws: int,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    sampling: str = "auto",
    chunk_size: int | None = None,
) -> ExpectedSharpness:
    """The expected rise of the loss under Gaussian noise on the weights, E L(w + ν) − L(w), ν_i ~ N(0, σ_i²).

    `scale` is the standard deviation σ, `noise` how σ_i comes of it (`deviations`); `draws` is even, for they come in
    antithetic pairs, and the standard error is that of the pairs' mean. `loss`: `cross_entropy`, `mse` (to one-hot
    labels), `error` (the share of wrong labels), or a function to one loss a sample. A stack gives one value a model,
    from shared draws. Without a generator the draws are always the same. A draw whose loss isn't finite is counted in
    `not_finite` and makes the value infinite. `sampling` as in `perturbed_losses`.
    Cost: draws + 1 forward passes. ValueError: as `perturbed_losses`. Neyshabur et al. 2017.
    """
    require_pairs(draws)
    require_scale(scale)
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    at_rest = objective.at_rest()
    losses = perturbed_losses(objective, scale=scale, noise=noise, draws=draws, generator=generator, sampling=sampling)
    mean, error, not_finite = mean_of_pairs(losses - at_rest)
    return ExpectedSharpness(mean, error, draws + 1.0, not_finite=not_finite)
