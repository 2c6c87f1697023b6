"""The search for the box in which the worst case has risen by so much."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from genlib.estimates import Estimate
from genlib.network import Network, Params
from genlib.network.derivatives import require_derivatives
from genlib.network.losses import Loss
from genlib.network.objective import Objective
from genlib.network.precision import full_precision
from genlib.sharpness.noise import Noise, deviations
from genlib.sharpness.sigma import SLOPES, search

__all__ = ["RadiusSearch", "largest_radius"]


@dataclass(frozen=True, kw_only=True)
class RadiusSearch(Estimate):
    """The radius that a search found; `lower` is the largest tried that stayed below the rise, `upper` the smallest
    above it. Where the limits of the search hold no such radius, `converged` is False and `value` the limit.
    """

    lower: Float[Tensor, "..."]
    upper: Float[Tensor, "..."]
    converged: Bool[Tensor, "..."]


_STRIDE = 0.5  # of the box, a step of the ascent in `largest_radius`


@full_precision()
@torch.no_grad()
def largest_radius(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    of: str = "error",
    loss: Loss = "cross_entropy",
    increase: float = 0.1,
    noise: Noise = "isotropic",
    steps: int = 5,
    start: float = 0.01,
    limits: tuple[float, float] = (1e-6, 10.0),
    tolerance: float = 0.1,
    chunk_size: int | None = None,
) -> RadiusSearch:
    """The box radius α at which the worst case of the error, or of the loss, has risen by `increase`.

    max R(w + ν) − R(w) = increase over |ν_i| ≤ α (`isotropic`), or |ν_i| ≤ σ_i as `deviations` makes it of α and
    another `noise`; `of`: `error`, or the `loss`. At each radius the loss is climbed from w, in
    `steps` of half the box along the gradient's sign; secants and bisection in ln α go on until the rise is within
    `tolerance` × increase. No chance is in it; α comes out too large by what the ascent misses of the rise, with 5
    steps by a tenth as a rule. A stack gives one value a model.
    Cost: 4 + (3 `steps` − 2) × radii in forward passes, 30 to 120 as a rule. Memory: 7 times the parameters and a
    chunk's graph. ValueError: as `Objective.of`, an increase, start, tolerance or limits that aren't positive, no
    steps. Jiang et al. 2020.
    """
    if of not in ("error", "loss"):
        raise ValueError(f"of is {of!r}; choose error or loss")
    if steps < 1:
        raise ValueError(f"steps is {steps}; take at least 1")
    if not (increase > 0 and tolerance > 0 and start > 0 and 0 < limits[0] < limits[1] < torch.inf):
        raise ValueError(
            f"increase is {increase}, tolerance {tolerance}, start {start}, limits {limits}; all must be positive, the "
            "limits in order"
        )
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    require_derivatives(objective, twice=False)
    risk = Objective.of(objective.network, inputs, labels, "error", chunk_size) if of == "error" else objective
    weights = objective.network.params
    loss, gradient = objective.gradient(weights)
    at_rest = risk.at_rest() if of == "error" else objective.finite(loss)
    uphill = {name: g.sign() for name, g in gradient.items()}
    nothing = torch.zeros_like(at_rest)

    def rise(radius: Float[Tensor, "..."]) -> tuple[Tensor, Tensor, Tensor]:
        room = deviations(weights, radius, noise)
        place = {name: _STRIDE * sign for name, sign in uphill.items()}  # in the box, from -1 to 1
        for _ in range(steps - 1):
            _, gradient = objective.gradient(_moved(weights, room, place))
            for name, g in gradient.items():
                place[name].add_(g.sign_(), alpha=_STRIDE).clamp_(-1, 1)
        found = (risk(_moved(weights, room, place)) - at_rest) / increase
        return torch.where(found.isfinite(), found, torch.inf), nothing, (~found.isfinite()).long()

    first = torch.full_like(at_rest, start).clamp(*limits)
    found = search(rise, first, limits, tolerance, torch.full_like(first, SLOPES[of]))
    return RadiusSearch(
        value=torch.where(found.converged, found.ahead(), found.sigma),
        standard_error=torch.where(found.converged, 0.0, torch.inf),
        passes=4.0 + (3 * steps - 2) * found.steps,
        lower=found.low,
        upper=found.high,
        converged=found.converged,
    )


def _moved(weights: Params, room: Params, place: Params) -> Params:
    return {name: torch.addcmul(w, room[name], place[name]) for name, w in weights.items()}
