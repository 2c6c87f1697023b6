"""A bound on the error that holds, every step of it counted in its probability."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from genlib.network import Network, Params
from genlib.network.objective import Objective, start_of
from genlib.network.precision import full_precision
from genlib.pac_bayes.divergences import kl_inverse, require_delta, seeger_bound, total_of_each
from genlib.sharpness import deviations, perturbed_losses

__all__ = ["PacBayesBound", "pac_bayes_bound"]

_PRIORS = 2048  # deviations on the prior's grid, 0.6 % apart: the nearest costs P 1e-5 nats, the union bound ln 2048
_DRAWS_SHARE = 0.2  # of δ, spent on the draws of the Gibbs risk


@dataclass(frozen=True)
class PacBayesBound:
    """A bound on the error of a network drawn from N(w, σ²), with what went into it.

    With probability 1 − `delta` the error on fresh data is at most `value`: `gibbs_risk`, the mean training error of
    `draws` networks, is at most `gibbs_bound` when drawn for ever (`delta_draws`), and the PAC-Bayes theorem does the
    rest for each of `priors` priors of deviations on a grid (`delta_prior` each), the best of which is `prior_scale`.
    """

    value: Float[Tensor, "..."]
    gibbs_risk: Float[Tensor, "..."]
    gibbs_bound: Float[Tensor, "..."]
    kl: Float[Tensor, "..."]
    prior_scale: Float[Tensor, "..."]
    priors: int
    samples: int
    draws: int
    delta: float
    delta_prior: float
    delta_draws: float
    guessing: float
    passes: float

    @property
    def vacuous(self) -> Bool[Tensor, "..."]:
        """Whether it says no more than that guessing a class, with error 1 − 1/classes, would do as well."""
        return self.value >= self.guessing

    def __str__(self) -> str:
        def show(tensor: Tensor) -> str:
            return ", ".join(f"{number:.4g}" for number in tensor.flatten().tolist())

        vacuous = self.vacuous.flatten().tolist()
        verdict = "vacuous" if all(vacuous) else "not vacuous" if not any(vacuous) else f"vacuous: {vacuous}"
        return (
            f"error at most {show(self.value)} with probability {1 - self.delta:g} ({verdict}): Gibbs risk at most "
            f"{show(self.gibbs_bound)} from {self.draws} draws (δ {self.delta_draws:g}), KL {show(self.kl)} nats, "
            f"{self.samples} samples, prior deviation {show(self.prior_scale)}, one of {self.priors} "
            f"(δ {self.delta_prior:.2g} each)"
        )


@full_precision()
def pac_bayes_bound(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    initial: nn.Module | Network,
    std: float | Float[Tensor, "..."] | Mapping[str, Tensor],
    prior: str = "isotropic",
    draws: int,
    delta: float = 0.05,
    prior_scales: Float[Tensor, " priors"] | None = None,
    generator: torch.Generator | None = None,
    sampling: str = "auto",
    chunk_size: int | None = None,
) -> PacBayesBound:
    """A PAC-Bayes bound on the error of a network drawn from N(w, std²), every step of it counted in δ.

    kl⁻¹(kl⁻¹(R̂, ln(2/δ')/K), (KL + ln(2√m J/δ″))/m), R̂ the mean error of K independent draws, δ' = δ/5, δ″ = 4δ/5.
    Prior N(w₀, λ²) (`isotropic`) or N(w₀, λ²(10|w₀| + 1)²) (`scaled`), w₀ the weights of `initial`, which must not
    depend on the data; the best λ of J `prior_scales`, fixed beforehand (2,048 from 1e-4 to 10). `std`: a number, one
    a model, or each parameter's deviations. The m samples must be independent. A stack: one bound a model.
    Cost: draws forward passes. ValueError: as `perturbed_losses`, an unknown prior, an `initial` of another shape,
    a deviation or a prior scale that isn't positive, δ outside (0, 1). Dziugaite & Roy 2017; Langford & Caruana 2001.
    """
    require_delta(delta)
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    objective = Objective.of(network, inputs, labels, "error", chunk_size)
    weights, size = objective.network.params, objective.network.size
    noise, scale = (std, 1.0) if isinstance(std, Mapping) else ("isotropic", std)
    spread = deviations(weights, scale, noise)
    prior_scales = _grid(prior_scales, objective.device)
    kls = _kl_by_scale(weights, spread, start_of(initial, objective.network), prior, prior_scales, size)
    kl, best = kls.min(0)

    delta_draws, delta_prior = _DRAWS_SHARE * delta, (1 - _DRAWS_SHARE) * delta / len(prior_scales)
    # Drawn by pre-activations too, these are independent numbers in [0, 1] whose mean is the Gibbs risk.
    errors = perturbed_losses(
        objective, scale=scale, noise=noise, draws=draws, generator=generator, sampling=sampling, antithetic=False
    )
    risk = errors.double().mean(0)
    gibbs = kl_inverse(risk, math.log(2 / delta_draws) / draws)
    return PacBayesBound(
        value=seeger_bound(gibbs, kl, samples=objective.samples, delta=delta_prior),
        gibbs_risk=risk,
        gibbs_bound=gibbs,
        kl=kl,
        prior_scale=prior_scales[best],
        priors=len(prior_scales),
        samples=objective.samples,
        draws=draws,
        delta=delta,
        delta_prior=delta_prior,
        delta_draws=delta_draws,
        guessing=1 - 1 / objective.classes,
        passes=float(draws),
    )


def _kl_by_scale(
    weights: Params, spread: Params, center: Params, prior: str, scales: Float[Tensor, " priors"], size: int | None
) -> Float[Tensor, "priors *models"]:
    """KL(N(w, σ²)‖N(w₀, λ²s²)) at every λ: ½ [A/λ² + P (2 ln λ − 1) + C] by two sums over the weights, A and C."""
    if prior not in ("isotropic", "scaled"):
        raise ValueError(f"prior is {prior!r}; choose isotropic or scaled")
    units = deviations(center, 1.0, prior)
    square, logs = 0.0, 0.0
    for name in weights:
        # in float64 from the start: a million weights add up what rounding leaves of each
        w, std, start, unit = (tensors[name].double() for tensors in (weights, spread, center, units))
        square = square + total_of_each((std.square() + (w - start).square()) / unit.square(), size)
        logs = logs + total_of_each(2 * (unit / std).log().expand_as(w), size)
    if not (square.isfinite() & logs.isfinite()).all():
        raise ValueError("std must be positive and finite for every parameter, or its divergence is infinite")
    count = sum(w.numel() for w in weights.values()) // (size or 1)
    scales = scales.view(-1, *[1] * square.dim())
    return ((square / scales.square() + count * (2 * scales.log() - 1) + logs) / 2).clamp_min(0)


def _grid(scales: Float[Tensor, " priors"] | None, device: torch.device) -> Float[Tensor, " priors"]:
    if scales is None:
        return torch.logspace(-4, 1, _PRIORS, dtype=torch.float64, device=device)
    if not len(scales) or not (scales.isfinite() & (scales > 0)).all():
        raise ValueError("prior_scales is empty or holds a number that isn't positive and finite")
    return scales.to(device, torch.float64)
