"""The volume of a basin, by the largest eigenvalues."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from genlib.curvature.eigenvalues import top_eigenvalues
from genlib.estimates import Estimate
from genlib.network import Network
from genlib.network.losses import Loss

__all__ = ["LogVolume", "log_basin_volume"]


@dataclass(frozen=True, kw_only=True)
class LogVolume(Estimate):
    """An estimate with the eigenvalues that were looked at, how many of them counted, and how many were negative."""

    eigenvalues: Float[Tensor, "*models k"]
    counted: Int[Tensor, "..."]
    negative: Int[Tensor, "..."]


def log_basin_volume(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    k: int | None = None,
    *,
    floor: float = 1e-4,
    loss: Loss = "cross_entropy",
    tolerance: float = 1e-5,
    max_matvecs: int = 2000,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> LogVolume:
    """The log volume of the basin up to a constant, −Σ ln λ_i over the k largest eigenvalues of the Hessian.

    Only eigenvalues above `floor` times the largest count, for the logarithm of noise is noise; `counted` says how many
    did, `negative` how many of the k were below zero. Without k: all above the floor, for which k doubles from 16 until
    the last is below. Compare networks at equal k, equal loss and equal scale only: rescaled weights change it at will
    (Dinh et al. 2017), and it counts a quadratic bowl's half-axes twice, ln λ for ½ ln λ, as the paper does.
    No chance is in it but the start of Lanczos, so the standard error is 0. A stack gives one value a model.
    Cost and errors: as `top_eigenvalues`, about twice its last call without k. ValueError: besides, a floor that isn't
    from `tolerance` to 1; no positive eigenvalue. Wu, Zhu & E 2017.
    """
    if not tolerance <= floor < 1:
        raise ValueError(f"floor is {floor}; choose it from tolerance = {tolerance} to below 1")
    network = Network.of(network)
    start = 0 if network.size is None else 1
    parameters = sum(math.prod(w.shape[start:]) for w in network.params.values())
    options = {
        "loss": loss,
        "tolerance": tolerance,
        "max_matvecs": max_matvecs,
        "generator": generator,
        "chunk_size": chunk_size,
    }
    asked, passes = min(16, parameters) if k is None else k, 0.0
    while True:
        pairs = top_eigenvalues(network, inputs, labels, asked, **options)
        passes += pairs.passes
        values = pairs.values
        above = values > floor * values[..., :1]
        if k is not None or asked == parameters or not above[..., -1].any():
            break
        asked = min(2 * asked, parameters)
    if (values[..., 0] <= 0).any():
        raise ValueError("network: no eigenvalue of its Hessian on these data is positive; the volume has no bound")
    logs = torch.where(above, values, 1.0).log()
    value = -logs.sum(-1)
    return LogVolume(
        value,
        torch.zeros_like(value),
        passes,
        eigenvalues=values,
        counted=above.sum(-1),
        negative=(values < 0).sum(-1),
    )
