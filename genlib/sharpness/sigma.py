"""The search for the noise that a network bears."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from genlib.estimates import Estimate
from genlib.network import Network
from genlib.network.losses import Loss
from genlib.network.objective import Objective
from genlib.network.precision import full_precision
from genlib.sharpness.noise import Noise, mean_of_pairs, require_pairs, same_draws

__all__ = ["SLOPES", "STEPS", "Found", "SigmaSearch", "largest_sigma", "search"]

STEPS = 15
SLOPES = {"error": 3.0, "loss": 2.0}  # d ln rise / d ln σ until two steps tell: the loss rises with σ², errors later
_FAR = 64.0  # ratios beyond tell a step of the search no more than this
_NARROW = 1e-3  # relative width at which a bracket is an answer


@dataclass(frozen=True, kw_only=True)
class SigmaSearch(Estimate):
    """The deviation that a search found, its Monte-Carlo error, and what the search knows.

    `lower` and `upper` are the largest deviation tried at which the rise stayed below what was asked for and the
    smallest at which it did not (0 and infinite where there was none). Where the limits of the search hold no such
    deviation, `converged` is False, `value` is the limit it ended at, and the error is infinite. `not_finite` counts
    the draws of all steps whose loss was not finite, each taken for a rise too large.
    """

    lower: Float[Tensor, "..."]
    upper: Float[Tensor, "..."]
    converged: Bool[Tensor, "..."]
    not_finite: Int[Tensor, "..."]


@full_precision()
def largest_sigma(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    of: str = "error",
    loss: Loss = "cross_entropy",
    increase: float = 0.1,
    noise: Noise = "isotropic",
    draws: int = 10,
    start: float | Float[Tensor, "..."] = 0.05,
    limits: tuple[float, float] = (1e-5, 10.0),
    tolerance: float = 0.1,
    generator: torch.Generator | None = None,
    sampling: str = "auto",
    chunk_size: int | None = None,
) -> SigmaSearch:
    """The standard deviation σ of weight noise at which the mean error, or the loss, has risen by `increase`.

    E R(w + ν) − R(w) = increase, ν_i ~ N(0, σ_i²), σ_i as in `deviations`; `of`: `error`, or the `loss`.
    The same draws at every σ make it one root of a function: one pair ±ν finds its neighbourhood, then all `draws`
    by secants and bisection in ln σ, until the rise is within `tolerance` × increase; the last secant is added.
    `start`: the first σ tried; √(2 increase / tr H) is a good one for the loss. The error is the draws', by the slope.
    Cost: 1 + 2 forward passes a step near by + draws a step after + at most 4, 20 to 40 as a rule. ValueError: as
    `expected_sharpness`, an increase, start, tolerance or limits that aren't positive. Dziugaite et al. 2020.
    """
    if of not in ("error", "loss"):
        raise ValueError(f"of is {of!r}; choose error or loss")
    require_pairs(draws)
    if not (increase > 0 and tolerance > 0 and 0 < limits[0] < limits[1] < math.inf):
        raise ValueError(
            f"increase is {increase}, tolerance {tolerance}, limits {limits}; all must be positive, the limits in order"
        )
    objective = Objective.of(network, inputs, labels, "error" if of == "error" else loss, chunk_size)
    losses, at_rest = same_draws(objective, noise, generator, sampling), objective.at_rest()
    first = torch.as_tensor(start, dtype=at_rest.dtype, device=at_rest.device).expand_as(at_rest)
    if not (first > 0).all():
        raise ValueError(f"start is {start}; it must be positive")

    def rise(sigma: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        return mean_of_pairs((losses(sigma, draws) - at_rest) / increase)

    slope = torch.full_like(first, SLOPES[of])
    near = search(lambda sigma: rise(sigma, 2), first.clamp(*limits), limits, 0.25, slope)
    found = search(lambda sigma: rise(sigma, draws), near.ahead().clamp(*limits), limits, tolerance, near.slope)
    slope, passes = found.slope, 1.0 + 2 * near.steps + draws * found.steps
    measured = near.measured | found.measured
    if not measured.all():  # the error hangs on the slope: a pair on either side gives it
        left, right = (rise(found.sigma * factor, 2)[0].clamp(1 / _FAR, _FAR).log() for factor in (2**-0.5, 2**0.5))
        slope = torch.where(measured, slope, ((right - left) / math.log(2)).clamp(0.5, 20))
        passes += 4
    value, ratio = found.ahead(slope), found.ratio.clamp(1 / _FAR, _FAR)
    return SigmaSearch(
        value=torch.where(found.converged, value, found.sigma),
        standard_error=torch.where(found.converged, value * found.error / (ratio * slope), torch.inf),
        passes=passes,
        lower=found.low,
        upper=found.high,
        converged=found.converged,
        not_finite=near.not_finite + found.not_finite,
    )


@dataclass(frozen=True)
class Found:
    """Where a search ended: σ, the ratio there with its error, the slope of ln ratio in ln σ, if it was measured."""

    sigma: Tensor
    ratio: Tensor
    error: Tensor
    slope: Tensor
    measured: Tensor
    low: Tensor
    high: Tensor
    converged: Tensor
    not_finite: Tensor
    steps: int

    def ahead(self, slope: Tensor | None = None) -> Tensor:
        """Where the last secant meets a ratio of 1, between the bounds."""
        ratio = self.ratio.clamp(1 / _FAR, _FAR)
        return (self.sigma * ratio ** (-1 / (self.slope if slope is None else slope))).clamp(self.low, self.high)


def search(
    rise: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    sigma: Float[Tensor, "..."],
    limits: tuple[float, float],
    tolerance: float,
    slope: Float[Tensor, "..."],
) -> Found:
    """Where the rise, as a ratio to what was asked for, is 1: safeguarded secants in ln σ and ln ratio."""
    low, high = torch.zeros_like(sigma), torch.full_like(sigma, torch.inf)
    done, not_finite = torch.zeros_like(sigma, dtype=torch.bool), torch.zeros_like(sigma, dtype=torch.long)
    measured, last = done, None
    for step in range(1, STEPS + 1):
        ratio, error, bad = rise(sigma)
        not_finite = not_finite + torch.where(done, 0, bad)
        below, level = ratio < 1, ratio.clamp(1 / _FAR, _FAR).log()
        low, high = torch.where(below, sigma, low), torch.where(below, high, sigma)
        if last is not None:
            apart = (sigma / last[0]).log()
            slope = torch.where(apart.abs() > 0.02, ((level - last[1]) / apart).clamp(0.5, 20), slope)
            measured = measured | (apart.abs() > 0.02)
        close, both = (ratio - 1).abs() <= tolerance, (low > 0) & high.isfinite()
        at_limit = torch.where(below, sigma >= limits[1], sigma <= limits[0])
        done = close | (high <= low * (1 + _NARROW)) | at_limit
        if done.all() or step == STEPS:  # the one host read of a step
            break
        last = sigma, level
        ahead = sigma * (-level / slope).clamp(-math.log(8), math.log(8)).exp()
        halve = both if step % 3 == 0 else both & ((ahead <= low) | (ahead >= high))
        sigma = torch.where(done, sigma, torch.where(halve, (low * high).sqrt(), ahead).clamp(*limits))
    return Found(sigma, ratio, error, slope, measured, low, high, close | both, not_finite, step)
