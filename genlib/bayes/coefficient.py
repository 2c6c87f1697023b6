"""The local learning coefficient: by how much the loss rises in the posterior around a network."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from genlib import curvature
from genlib.bayes.langevin import Chains
from genlib.estimates import Eigenpairs, Estimate
from genlib.network import Network, Params
from genlib.network.derivatives import require_derivatives
from genlib.network.losses import Loss
from genlib.network.objective import Objective, parameter_norm, seeded_generator
from genlib.network.precision import full_precision

__all__ = ["LearningCoefficient", "learning_coefficient"]

_STEP = 0.7  # of 1/√κ, κ the largest curvature that was seen; beyond 2/√κ there is no law, so it may be 8 times κ
_BURN_IN = 5.0  # times 1/√γ: then a direction that γ alone holds has all but 0.1 % of its variance
_LOOKS = 4  # chains at which the curvature is seen
_STAGES = (1 / 32, 1 / 8, 1 / 2, 1)  # of the burn-in: curvature grows tenfold away from a minimum, and steps shrink
_LOCALIZATION = 10.0  # times 1 / mean w²: the prior's deviation is a third of a weight
_SETTLED = 1.1  # R̂
_FALL = 0.5  # of nβL, what a direction that the data hold counts
_MEND = "give a larger localization"


@dataclass(frozen=True, kw_only=True)
class LearningCoefficient(Estimate):
    """The coefficient λ̂, its standard error by the spread of its chains, and how they went.

    `chains`: each chain's own λ̂; `disagreement`: R̂ of their halves (Gelman & Rubin 1992), which is 1 where all agree;
    `converged`: whether it is at most 1.1. `localization` γ, `inverse_temperature` nβ, `step` Δ and steps of `burn_in`
    are those that were taken.
    """

    chains: Float[Tensor, "*models chains"]
    disagreement: Float[Tensor, "*models"]
    converged: Bool[Tensor, "*models"]
    localization: Float[Tensor, "*models"]
    inverse_temperature: float
    step: Float[Tensor, "*models"]
    burn_in: Int[Tensor, "*models"]


@full_precision()
@torch.no_grad()
def learning_coefficient(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    draws: int = 500,
    chains: int = 4,
    inverse_temperature: float | None = None,
    localization: float | None = None,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> LearningCoefficient:
    """The local learning coefficient, λ̂ = nβ (E L(w) − L(w*)), w ~ exp(−nβ L(w) − γ/2 ‖w − w*‖²), w* the network.

    Half the number of directions that the data hold; one in which the loss rises by a higher power than the square
    counts less. Where the Hessian has the eigenvalues κ, and nothing else, λ̂ is ½ Σ nβκ/(nβκ + γ), half the soft rank:
    d/2 of d weights only where γ is small against every nβκ. To compare networks, give all of them the same γ.
    `inverse_temperature`, nβ: n / ln n of n samples. `localization`, γ: 10 d / ‖w*‖², by which weights go a third of
    their size where no data hold them; a smaller one finds flatter directions, and may lead out of the basin.
    Langevin dynamics with momenta (BAOAB of friction 1.5 √γ), gradients of all data, every step a draw; on a normal
    distribution its variance is exact, on w₁²w₂² λ̂ is ½ % too large. A step is 0.7/√(nβλ₁ + γ), λ₁ the largest
    eigenvalue of the Hessian at w* and, four times during the burn-in, at four chains, where it may be tenfold. The
    burn-in is 5/√γ of time, or 7 √(nβλ₁/γ + 1) steps. With γ small against all nβκ draws hang together as long.
    `standard_error` is that of the chains' mean, by their spread: t with chains − 1 degrees of freedom. The models of a
    stack, one after the other, share their draws.
    Cost in forward passes: 3 chains × (1 + burn-in + draws), and some 50 for each of these 17 eigenvalues. Memory:
    4 times the parameters and a chunk for each chain, and what `curvature.top_eigenvalues` takes.
    ValueError: as `curvature.top_eigenvalues`; draws, chains, inverse_temperature or localization out of range; fewer
    than 3 samples. No minimum: a step 1/(nβλ₁ + γ) along the gradient lowers nβL by more than ½, or λ̂ is below zero by
    more than twice its error. A chain that leaves the basin: its loss isn't finite, or (w − w*)·∇L(w) is on average
    less than half of L(w) − L(w*), where a convex function's is no less than the whole. Lau et al. 2023, Leimkuhler &
    Matthews 2013.
    """
    for name, value, least in (("draws", draws, 10), ("chains", chains, 2)):
        if value < least:
            raise ValueError(f"{name} is {value}; give at least {least}, for the error comes of their spread")
    for name, value in {"inverse_temperature": inverse_temperature, "localization": localization}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")
    if loss == "error":
        raise ValueError("loss is 'error', which has no gradient; choose cross_entropy or mse")
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    require_derivatives(objective, twice=True)
    objective.at_rest()
    if inverse_temperature is None:
        inverse_temperature = _inverse_temperature(objective.samples)
    generator = seeded_generator(generator, objective.device)
    before, found = generator.get_state(), []
    for i, one in enumerate(objective.each):
        generator.set_state(before)
        data = (inputs[i], labels[i]) if objective.of_each else (inputs, labels)
        top = partial(_top, one.network, *data, loss=loss, chunk_size=chunk_size)
        gamma = _localization(one.network.params) if localization is None else localization
        moving = Chains(
            one, loss, chains, inverse_temperature=inverse_temperature, localization=gamma, generator=generator
        )
        found.append(_estimate(moving, top, draws))
    return found[0] if objective.network.size is None else _stacked(found)


def _inverse_temperature(samples: int) -> float:
    if samples < 3:
        raise ValueError(f"inputs has {samples} samples, too few for n / ln n; give inverse_temperature, or more")
    return samples / math.log(samples)


def _localization(weights: Params) -> float:
    square = parameter_norm(weights.values(), None).item() ** 2
    if square == 0:
        raise ValueError("localization is not given, and the network's weights, its unit, are all zero; give one")
    return _LOCALIZATION * sum(w.numel() for w in weights.values()) / square


def _top(network: Network, inputs: Tensor, labels: Tensor, weights: Params, **options) -> Eigenpairs:
    """The largest eigenvalue of the Hessian at these weights, to a tenth."""
    return curvature.top_eigenvalues(replace(network, params=weights), inputs, labels, 1, tolerance=0.1, **options)


def _estimate(chains: Chains, top: Callable[[Params], Eigenpairs], draws: int) -> LearningCoefficient:
    nbeta, gamma, count = chains.inverse_temperature, chains.localization, len(chains.losses)
    at_rest, first = chains.losses[0], top(chains.center)
    steepest, passes = first.values.item(), first.passes
    _require_minimum(chains, steepest)
    burn_in, size = 0, _size(nbeta, steepest, gamma)
    for share in _STAGES:
        steps = math.ceil(share * _BURN_IN / (math.sqrt(gamma) * size))
        for _ in range(steps):
            chains.step(size)
        _require_finite(chains.losses)
        found = [top({name: w[i] for name, w in chains.weights.items()}) for i in range(min(count, _LOOKS))]
        steepest = max(steepest, *(pairs.values.item() for pairs in found))
        burn_in, size = burn_in + steps, _size(nbeta, steepest, gamma)
        passes += sum(pairs.passes for pairs in found)
    rises, slopes = [], []
    for _ in range(draws):
        chains.step(size)
        rises.append(chains.losses)
        slopes.append(chains.slopes)
    rises = torch.stack(rises).double() - at_rest
    of_each = nbeta * rises.mean(0)
    value, error = of_each.mean(), of_each.std() / math.sqrt(count)
    _require_basin(rises, torch.stack(slopes), value, error)
    disagreement = _disagreement(rises)
    tensors = [value, error, of_each, disagreement, value.new_tensor(gamma), value.new_tensor(size)]
    value, error, of_each, disagreement, gamma, size = (t.to(at_rest.dtype) for t in tensors)
    return LearningCoefficient(
        value,
        error,
        passes + 3.0 * count * (1 + burn_in + draws),
        chains=of_each,
        disagreement=disagreement,
        converged=disagreement <= _SETTLED,
        localization=gamma,
        inverse_temperature=nbeta,
        step=size,
        burn_in=at_rest.new_tensor(burn_in, dtype=torch.long),
    )


def _size(nbeta: float, steepest: float, gamma: float) -> float:
    return _STEP / math.sqrt(nbeta * max(steepest, 0.0) + gamma)


def _require_minimum(chains: Chains, steepest: float) -> None:
    """Refuse weights from which a short way down is worth as much as a direction that the data hold, ½."""
    square = parameter_norm((g[0] for g in chains.gradient.values()), None).item() ** 2
    nbeta = chains.inverse_temperature
    fall = nbeta**2 * square / (2 * (nbeta * max(steepest, 0.0) + chains.localization))
    if not fall <= _FALL:
        raise ValueError(
            f"network: it is near no minimum of its loss: nβL falls by {fall:.2g} in one step along its gradient, and "
            "a direction that the data hold counts ½; train it further, or give a smaller inverse_temperature"
        )


def _require_finite(losses: Tensor) -> None:
    if not losses.isfinite().all():
        raise ValueError(f"network: a chain left its basin, its loss is not finite there; {_MEND}")


def _require_basin(rises: Tensor, slopes: Tensor, value: Tensor, error: Tensor) -> None:
    """Refuse what was no minimum, and chains that are where the loss hardly rises any more on the way out."""
    _require_finite(rises)
    if value + 2 * error < 0:
        raise ValueError(
            f"network: it is no minimum of its loss, which is lower around it, λ̂ = {value:.3g} ± {error:.2g}; "
            f"train it further, or {_MEND}"
        )
    left = slopes.double().mean(0) < rises.mean(0) / 2
    if left.any():
        raise ValueError(
            f"network: {int(left.sum())} of {len(left)} chains left its basin, their loss no longer rises on the way "
            f"out; {_MEND}"
        )


def _disagreement(values: Float[Tensor, "draws chains"]) -> Float[Tensor, ""]:
    """R̂ of the halves of all chains: √((n−1)/n + B/W), B the variance of their means and W the mean of theirs."""
    halves = torch.cat(values[: len(values) // 2 * 2].chunk(2), 1)
    within, between = halves.var(0).mean(), halves.mean(0).var()
    n = len(halves)
    return ((n - 1) / n + torch.where(within > 0, between / within, 0.0)).sqrt()


def _stacked(found: list[LearningCoefficient]) -> LearningCoefficient:
    """Those of a stack's networks along a leading axis; the cost is that of the dearest."""
    tensors = [field.name for field in fields(LearningCoefficient) if isinstance(getattr(found[0], field.name), Tensor)]
    return replace(
        found[0],
        passes=max(one.passes for one in found),
        **{name: torch.stack([getattr(one, name) for one in found]) for name in tensors},
    )
