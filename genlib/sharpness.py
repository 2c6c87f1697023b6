"""Sharpness: how much the training loss rises when the weights move, on average or at worst."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from genlib._ascent import Ball, ascent
from genlib._losses import Loss, zero_one_loss
from genlib._noise import Noise, deviations, mean_of_pairs, perturbed_losses, require_pairs, require_scale
from genlib._objective import Objective
from genlib._precision import full_precision
from genlib._sigma import SLOPES, search
from genlib.estimates import Estimate, Maximum
from genlib.network import Network, Params

__all__ = [
    "ExpectedSharpness",
    "Objective",
    "RadiusSearch",
    "deviations",
    "expected_sharpness",
    "keskar_sharpness",
    "largest_radius",
    "perturbed_losses",
    "sam_sharpness",
    "worst_case_sharpness",
]


@dataclass(frozen=True, kw_only=True)
class ExpectedSharpness(Estimate):
    """An estimate with the number of draws whose loss was not finite; where there is one, `value` is infinite."""

    not_finite: Int[Tensor, "..."]


@full_precision()
def expected_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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


@full_precision()
def worst_case_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    radius: float,
    ball: str = "box",
    steps: int,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Maximum:
    """The largest rise of the loss that projected ascent finds in a ball around the weights, max L(w + ν) − L(w).

    `ball`: `box`, |ν_i| ≤ r(|w_i| + 1) (Keskar et al. 2017), by the gradient's sign; `l2`, |ν| ≤ r; `adaptive`,
    |ν/|w|| ≤ r (Kwon et al. 2021). Steps of 0.2 r; a start a tenth of the ball away at random: the first run takes
    its first gradient at w itself, further restarts at their start. `history` is the best rise after each step, over
    all restarts. A loss that isn't finite counts as an infinite rise. No search certifies a maximum.
    Cost: restarts × (steps gradients and one forward), a gradient being three forward passes.
    ValueError: as `Objective.of`, an unknown ball, the loss `error`, a radius that isn't positive.
    """
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    return ascent(objective, Ball.around(objective, ball, radius), steps, restarts, generator)[1]


@full_precision()
def keskar_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    radius: float,
    steps: int,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Maximum:
    """Keskar's sharpness, 100 (max L(w + ν) − L(w)) / (1 + L(w)) over the box |ν_i| ≤ r(|w_i| + 1), in per cent.

    Search, cost and errors as `worst_case_sharpness`. Keskar et al. 2017.
    """
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    at_rest, found = ascent(objective, Ball.around(objective, "box", radius), steps, restarts, generator)
    factor = 100 / (1 + at_rest)
    return Maximum(factor * found.value, factor * found.history, found.passes)


@full_precision()
@torch.no_grad()
def sam_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    radius: float,
    ball: str = "l2",
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Float[Tensor, "*models"]:
    """The rise of the loss after one step to the edge of the ball along the gradient, L(w + r ∇L/|∇L|) − L(w).

    `ball` as in `worst_case_sharpness`. Zero where the gradient is. Cost: one gradient and one forward pass, four
    forward passes. ValueError: as `worst_case_sharpness`, a loss that isn't finite. Foret et al. 2021.
    """
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    within = Ball.around(objective, ball, radius)
    at_rest, gradient = objective.gradient(objective.network.params)
    objective.finite(at_rest)
    edge = within.center()
    within.climb(edge, gradient, 1.0)
    risen = objective(edge)
    if not risen.isfinite().all():
        raise ValueError(f"radius is {radius}; the loss there is not finite, take a smaller one")
    return risen - at_rest


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
    labels: Int[Tensor, "..."],
    *,
    of: str = "error",
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
    another `noise`; `of`: `error` or `loss` (cross-entropy). At each radius the cross-entropy is climbed from w, in
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
    objective = Objective.of(network, inputs, labels, chunk_size=chunk_size)
    risk = replace(objective, loss=zero_one_loss) if of == "error" else objective
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
