"""PAC-Bayes: divergences, bounds that hold, and the noise that a network bears."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from genlib.estimates import Estimate
from genlib.network import Network, Params
from genlib.sharpness import (
    Objective,
    deviations,
    mean_of_pairs,
    perturbed_losses,
    seeded_generator,
    upcast,
)

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

Value = float | Float[Tensor, "..."]

_NEWTON_STEPS = 8  # 4 reach the last digit wherever it was tried
_SEARCH_STEPS = 15
_PRIORS = 2048  # deviations on the prior's grid, 0.6 % apart: the nearest costs P 1e-5 nats, the union bound ln 2048
_FAR = 64.0  # ratios beyond tell a step of the search no more than this
_NARROW = 1e-3  # relative width at which a bracket is an answer
_DRAWS_SHARE = 0.2  # of δ, spent on the draws of the Gibbs risk


def gaussian_kl(mean: Value, std: Value, prior_mean: Value, prior_std: Value) -> Float[Tensor, "..."]:
    """KL(Q‖P) of diagonal Gaussians, ½ Σ [(σ² + (μ − μ₀)²)/σ₀² − 1 − ln(σ²/σ₀²)], in nats.

    Tensors [..., parameters], which broadcast; the sum is over the last axis, in float64.
    ValueError: a deviation that isn't positive, a number that isn't finite.
    """
    mean, std, prior_mean, prior_std = torch.broadcast_tensors(*_doubles(mean, std, prior_mean, prior_std))
    good = (std > 0) & (prior_std > 0)
    if not (good & (mean + std).isfinite() & (prior_mean + prior_std).isfinite()).all():
        raise ValueError("std and prior_std must be positive, and all means and deviations finite")
    ratio = (std / prior_std).square()
    log = torch.where((ratio - 1).abs() < 0.5, (ratio - 1).log1p(), 2 * (std.log() - prior_std.log()))
    terms = ratio - 1 - log + ((mean - prior_mean) / prior_std).square()
    return terms.sum(-1) / 2 if terms.dim() else terms / 2


def kl_inverse(risk: Value, bound: Value) -> Float[Tensor, "..."]:
    """The largest p with kl(q‖p) ≤ B, kl(q‖p) = q ln(q/p) + (1 − q) ln((1 − q)/(1 − p)), the upper root.

    `risk` q in [0, 1] and `bound` B ≥ 0 (infinite: 1) broadcast; float64, within 1e-10. Newton's method in
    t = −ln(1 − p), in which the function is convex: after one step it falls to the root.
    ValueError: a risk outside [0, 1], a bound below zero, NaN. Langford & Seeger 2001.
    """
    q, bound = torch.broadcast_tensors(*_doubles(risk, bound))
    _require_risk(q)
    if not (bound >= 0).all():
        raise ValueError("bound must be at least 0, and not NaN")
    inside = (q > 1e-290) & (q < 1) & bound.isfinite()
    p = torch.where(q == 1, 1.0, -torch.expm1(-bound))  # at q = 0 the root is 1 − exp(−B)
    p[inside] = _upper_root(q[inside], bound[inside])
    return torch.maximum(p, q)


def _upper_root(q: Float[Tensor, " n"], bound: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    rest = 1 - q
    # τ = ln((1 − q)/(1 − p)); from the root of the parabola at q, or from where the function is above B for sure
    above = (bound - torch.xlogy(q, q)) / rest
    tau = torch.minimum((2 * q / rest).sqrt() * bound.sqrt(), above)
    for _ in range(_NEWTON_STEPS):
        distance = rest * -torch.expm1(-tau)  # p − q, without loss of digits where it is small
        excess = rest * tau - q * torch.log1p(distance / q) - bound
        slope = (distance / (q + distance)).clamp_min(torch.finfo(q.dtype).tiny)
        # the brackets matter where B is so small that the excess is nothing but rounding
        tau = torch.clamp(tau - excess / slope, tau / 2, above)
    return q + rest * -torch.expm1(-tau)


def mcallester_bound(risk: Value, kl: Value, *, samples: int, delta: float) -> Float[Tensor, "..."]:
    """A bound on the risk of the Gibbs classifier, R̂ + √((KL + ln(2√m/δ)) / 2m), with probability 1 − δ.

    `risk` R̂ is the mean training risk of a network drawn from the posterior, in [0, 1]; `kl` in nats from a prior
    chosen without the m `samples`. Float64; vacuous from 1 on. McAllester 1999, with Maurer's constant (2004).
    ValueError: a risk outside [0, 1], a negative kl, no samples, δ outside (0, 1).
    """
    risk, complexity = _complexity(risk, kl, samples, delta)
    return risk + (complexity / 2).sqrt()


def seeger_bound(risk: Value, kl: Value, *, samples: int, delta: float) -> Float[Tensor, "..."]:
    """A bound on the risk of the Gibbs classifier, kl⁻¹(R̂, (KL + ln(2√m/δ)) / m), with probability 1 − δ.

    Arguments and errors as `mcallester_bound`, which is never smaller. Seeger 2002, with Maurer's constant (2004).
    """
    return kl_inverse(*_complexity(risk, kl, samples, delta))


def _complexity(risk: Value, kl: Value, samples: int, delta: float) -> tuple[Tensor, Tensor]:
    risk, kl = _doubles(risk, kl)
    _require_risk(risk)
    if not (kl >= 0).all():
        raise ValueError("kl must be at least 0, and not NaN")
    if samples < 1:
        raise ValueError(f"samples is {samples}; give the number of training samples, at least 1")
    _require_delta(delta)
    return risk, (kl + math.log(2 * math.sqrt(samples) / delta)) / samples


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
    _require_delta(delta)
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    objective = Objective.of(network, inputs, labels, "error", chunk_size)
    weights, size = objective.network.params, objective.network.size
    noise, scale = (std, 1.0) if isinstance(std, Mapping) else ("isotropic", std)
    spread = deviations(weights, scale, noise)
    prior_scales = _grid(prior_scales, objective.inputs.device)
    kls = _kl_by_scale(weights, spread, _center(initial, objective.network), prior, prior_scales, size)
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
    _require_pairs(draws)
    objective = Objective.of(network, inputs, labels, chunk_size=chunk_size)
    weights, size = objective.network.params, objective.network.size
    center = None if initial is None else _center(initial, objective.network)
    losses = _common_losses(objective, noise, generator, sampling)
    at_rest = _at_rest(objective)
    measured = [mean_of_pairs(losses(scale, draws) - at_rest) for scale in scales]
    kls = []
    for scale in scales:
        spread = deviations(weights, scale, noise)
        ratios = ((w if center is None else w - center[name]) / spread[name] for name, w in weights.items())
        kls.append(sum(_total(ratio.double().square(), size) for ratio in ratios) / 2)
    return SharpnessKL(
        scales=torch.as_tensor([float(scale) for scale in scales], device=inputs.device),
        sharpness=torch.stack([mean for mean, _, _ in measured]),
        standard_error=torch.stack([error for _, error, _ in measured]),
        kl=torch.stack(kls),
        passes=1.0 + draws * len(scales),
    )


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


def largest_sigma(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    of: str = "error",
    increase: float = 0.1,
    noise: str = "isotropic",
    draws: int = 10,
    start: float | Float[Tensor, "..."] = 0.05,
    limits: tuple[float, float] = (1e-5, 10.0),
    tolerance: float = 0.1,
    generator: torch.Generator | None = None,
    sampling: str = "auto",
    chunk_size: int | None = None,
) -> SigmaSearch:
    """The standard deviation σ of weight noise at which the mean error, or the loss, has risen by `increase`.

    E R(w + ν) − R(w) = increase, ν_i ~ N(0, σ_i²), σ_i as in `deviations`; `of`: `error` or `loss` (cross-entropy).
    The same draws at every σ make it one root of a function: one pair ±ν finds its neighbourhood, then all `draws`
    by secants and bisection in ln σ, until the rise is within `tolerance` × increase; the last secant is added.
    `start`: the first σ tried; √(2 increase / tr H) is a good one for the loss. The error is the draws', by the slope.
    Cost: 1 + 2 forward passes a step near by + draws a step after + at most 4, 20 to 40 as a rule. ValueError: as
    `expected_sharpness`, an increase, start, tolerance or limits that aren't positive. Dziugaite et al. 2020.
    """
    if of not in ("error", "loss"):
        raise ValueError(f"of is {of!r}; choose error or loss")
    _require_pairs(draws)
    if not (increase > 0 and tolerance > 0 and 0 < limits[0] < limits[1] < math.inf):
        raise ValueError(
            f"increase is {increase}, tolerance {tolerance}, limits {limits}; all must be positive, the limits in order"
        )
    objective = Objective.of(network, inputs, labels, "error" if of == "error" else "cross_entropy", chunk_size)
    losses, at_rest = _common_losses(objective, noise, generator, sampling), _at_rest(objective)
    first = torch.as_tensor(start, dtype=at_rest.dtype, device=at_rest.device).expand_as(at_rest)
    if not (first > 0).all():
        raise ValueError(f"start is {start}; it must be positive")

    def rise(sigma: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        return mean_of_pairs((losses(sigma, draws) - at_rest) / increase)

    near = _search(lambda sigma: rise(sigma, 2), first.clamp(*limits), limits, 0.5)
    found = _search(lambda sigma: rise(sigma, draws), near.sigma, limits, tolerance, near.slope)
    slope, passes = found.slope, 1.0 + 2 * near.steps + draws * found.steps
    if not found.measured.all():  # the error hangs on the slope: a pair on either side gives it
        left, right = (rise(found.sigma * factor, 2)[0].clamp(1 / _FAR, _FAR).log() for factor in (2**-0.5, 2**0.5))
        slope = torch.where(found.measured, slope, ((right - left) / math.log(2)).clamp(0.5, 20))
        passes += 4
    ratio = found.ratio.clamp(1 / _FAR, _FAR)
    value = (found.sigma * ratio ** (-1 / slope)).clamp(found.low, found.high)
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
class _Found:
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


def _search(
    rise: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    sigma: Float[Tensor, "..."],
    limits: tuple[float, float],
    tolerance: float,
    slope: float | Float[Tensor, "..."] = 2.0,
) -> _Found:
    """Where the rise, as a ratio to what was asked for, is 1: safeguarded secants in ln σ and ln ratio."""
    low, high = torch.zeros_like(sigma), torch.full_like(sigma, torch.inf)
    done, not_finite = torch.zeros_like(sigma, dtype=torch.bool), torch.zeros_like(sigma, dtype=torch.long)
    slope, measured, last = torch.as_tensor(slope).to(sigma).expand_as(sigma), done, None
    for step in range(1, _SEARCH_STEPS + 1):
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
        if done.all() or step == _SEARCH_STEPS:  # the one host read of a step
            break
        last = sigma, level
        ahead = sigma * (-level / slope).clamp(-math.log(8), math.log(8)).exp()
        halve = both if step % 3 == 0 else both & ((ahead <= low) | (ahead >= high))
        sigma = torch.where(done, sigma, torch.where(halve, (low * high).sqrt(), ahead).clamp(*limits))
    return _Found(sigma, ratio, error, slope, measured, low, high, close | both, not_finite, step)


def _common_losses(
    objective: Objective, noise: str, generator: torch.Generator | None, sampling: str
) -> Callable[[float | Tensor, int], Float[Tensor, "draws ..."]]:
    """The losses at a scale by the same draws whatever the scale."""
    generator = seeded_generator(generator, objective.inputs.device)
    state = generator.get_state()

    def losses(scale: float | Tensor, draws: int) -> Float[Tensor, "draws ..."]:
        generator.set_state(state)
        return perturbed_losses(
            objective, scale=scale, noise=noise, draws=draws, generator=generator, sampling=sampling
        )

    return losses


@torch.no_grad()
def _at_rest(objective: Objective) -> Float[Tensor, "..."]:
    return objective.finite(objective(objective.network.params))


def _total(terms: Float[Tensor, "..."], size: int | None) -> Float[Tensor, "..."]:
    """The sum over a tensor's weights, one a model of a stack."""
    return terms.flatten(int(size is not None)).sum(-1)


def _center(initial: nn.Module | Network, network: Network) -> Params:
    """The weights of `initial`, of the same names and shapes as the network's."""
    params = upcast(Network.of(initial)).params
    if {n: p.shape for n, p in params.items()} != {n: p.shape for n, p in network.params.items()}:
        raise ValueError("initial has other parameters than network; give the network's own start, a stack for a stack")
    return {name: param.to(network.params[name]) for name, param in params.items()}


def _grid(scales: Float[Tensor, " priors"] | None, device: torch.device) -> Float[Tensor, " priors"]:
    if scales is None:
        return torch.logspace(-4, 1, _PRIORS, dtype=torch.float64, device=device)
    if not len(scales) or not (scales.isfinite() & (scales > 0)).all():
        raise ValueError("prior_scales is empty or holds a number that isn't positive and finite")
    return scales.to(device, torch.float64)


def _doubles(*values: Value) -> list[Float[Tensor, "..."]]:
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    return [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]


def _require_risk(risk: Float[Tensor, "..."]) -> None:
    if not ((risk >= 0) & (risk <= 1)).all():
        raise ValueError("risk must lie in [0, 1], and not be NaN; it is a share of errors")


def _require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it is the probability of failing, between 0 and 1")


def _require_pairs(draws: int) -> None:
    if draws < 4 or draws % 2:
        raise ValueError(f"draws is {draws}; give an even number, at least 4, for the error comes from pairs ±ν")
