"""Kullback-Leibler divergences, and the bounds that follow from one."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from genlib.network import Params

__all__ = [
    "gaussian_kl",
    "kl_inverse",
    "kl_of_means",
    "mcallester_bound",
    "require_delta",
    "seeger_bound",
    "total_of_each",
]

Value = float | Float[Tensor, "..."]
_NEWTON_STEPS = 8  # 4 reach the last digit wherever it was tried


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
    require_delta(delta)
    return risk, (kl + math.log(2 * math.sqrt(samples) / delta)) / samples


def _doubles(*values: Value) -> list[Float[Tensor, "..."]]:
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    return [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]


def _require_risk(risk: Float[Tensor, "..."]) -> None:
    if not ((risk >= 0) & (risk <= 1)).all():
        raise ValueError("risk must lie in [0, 1], and not be NaN; it is a share of errors")


def require_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it is the probability of failing, between 0 and 1")


def kl_of_means(moved: Params, spread: Params, size: int | None) -> Float[Tensor, "..."]:
    """½ Σ (d_i/σ_i)², the divergence of Gaussians of equal deviations σ whose means lie d apart; one a model."""
    return sum(total_of_each((d / spread[name]).double().square(), size) for name, d in moved.items()) / 2


def total_of_each(terms: Float[Tensor, "..."], size: int | None) -> Float[Tensor, "..."]:
    """The sum over a tensor's weights, one a model of a stack."""
    return terms.flatten(int(size is not None)).sum(-1)
