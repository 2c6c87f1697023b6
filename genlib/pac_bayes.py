"""PAC-Bayes: divergences, bounds that hold, and the noise that a network bears."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from genlib._divergences import gaussian_kl, kl_inverse, mcallester_bound, require_delta, seeger_bound
from genlib._noise import deviations, mean_of_pairs, perturbed_losses, require_pairs, same_draws
from genlib._objective import Objective, start_of
from genlib._precision import full_precision
from genlib._sigma import SigmaSearch, largest_sigma
from genlib.network import Network, Params

__all__ = [
    "PacBayesBound",
    "SharpnessKL",
    "SigmaSearch",
    "gaussian_kl",
    "kl_inverse",
    "largest_sigma",
    "mcallester_bound",
    "pac_bayes_bound",
    "seeger_bound",
    "sharpness_kl",
]

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
    prior_scales = _grid(prior_scales, objective.inputs.device)
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
        square = square + _total((std.square() + (w - start).square()) / unit.square(), size)
        logs = logs + _total(2 * (unit / std).log().expand_as(w), size)
    if not (square.isfinite() & logs.isfinite()).all():
        raise ValueError("std must be positive and finite for every parameter, or its divergence is infinite")
    count = sum(w.numel() for w in weights.values()) // (size or 1)
    scales = scales.view(-1, *[1] * square.dim())
    return ((square / scales.square() + count * (2 * scales.log() - 1) + logs) / 2).clamp_min(0)


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


def kl_of_means(moved: Params, spread: Params, size: int | None) -> Float[Tensor, "..."]:
    """½ Σ (d_i/σ_i)², the divergence of Gaussians of equal deviations σ whose means lie d apart; one a model."""
    return sum(_total((d / spread[name]).double().square(), size) for name, d in moved.items()) / 2


def _total(terms: Float[Tensor, "..."], size: int | None) -> Float[Tensor, "..."]:
    """The sum over a tensor's weights, one a model of a stack."""
    return terms.flatten(int(size is not None)).sum(-1)


def _grid(scales: Float[Tensor, " priors"] | None, device: torch.device) -> Float[Tensor, " priors"]:
    if scales is None:
        return torch.logspace(-4, 1, _PRIORS, dtype=torch.float64, device=device)
    if not len(scales) or not (scales.isfinite() & (scales > 0)).all():
        raise ValueError("prior_scales is empty or holds a number that isn't positive and finite")
    return scales.to(device, torch.float64)
