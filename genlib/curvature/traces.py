"""The Hessian's trace, exact or by random vectors, its norm, and what Gauss-Newton leaves out of it."""

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from genlib.curvature import sketches
from genlib.curvature.gauss_newton import exact_trace, obstacle, unlike_samples
from genlib.curvature.products import gauss_newton, hessian, objective_of
from genlib.curvature.stacks import joined_estimates, of_model
from genlib.estimates import Eigenpairs, Estimate
from genlib.network import Network
from genlib.network.derivatives import require_derivatives
from genlib.network.losses import Loss
from genlib.network.objective import seeded_generator
from genlib.network.precision import full_precision

__all__ = ["frobenius_norm", "gauss_newton_error", "trace"]


@full_precision()
def trace(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    method: str = "auto",
    cotangents: int | None = None,
    vectors: int = 30,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """tr ∇²L(w), L the mean loss, w all parameters; `by_layer` that of each layer's block, of gates one by one.

    `exact`: (1/N) Σ_n Σ_c |J_nᵀ s_nc|², Σ_c s_nc s_ncᵀ the Hessian of sample n's loss in its logits, J_n theirs in w:
    the Gauss-Newton trace, and the Hessian's where logits are piecewise linear in each parameter and no layer runs
    twice, for cross_entropy and mse (2/C each). Above 64 classes `cotangents` (16) random ones a sample stand for all,
    with a standard error; fewer classes draw them only if asked. `xtrace`: half of `vectors` test a subspace each that
    the others span, half sum over these (Epperly, Tropp and Webber 2024); any network, any loss; the value ± its error
    times t of 0.975 at `vectors`/2 − 1 degrees of freedom holds the trace in about 95 % of draws, so does each layer's.
    With as many `vectors` as parameters it is exact. `auto`: exact if it is. A stack gives one value a model, one after
    the other. Cost: exact 1 + cotangents forward passes, 1 + 2 cotangents with convolutions; xtrace 3 + 6 `vectors`,
    9 `vectors` in several chunks, memory `vectors` + 3 times the parameters. ValueError: as `Objective.of`; `exact`
    asked of another network or loss, which it names; the loss `error`.
    """
    if method not in ("auto", "exact", "xtrace"):
        raise ValueError(f"method is {method!r}; choose auto, exact or xtrace")
    if cotangents is not None and cotangents < 2:
        raise ValueError(f"cotangents is {cotangents}; draw at least 2 a sample, for the error comes from their spread")
    _require_vectors(vectors)
    objective = objective_of(network, inputs, labels, loss, chunk_size, twice=False)
    generator = seeded_generator(generator, objective.device)
    why = obstacle(objective.network, loss) or unlike_samples(objective)
    if method == "exact" and why:
        raise ValueError(f"{why}; method='xtrace' estimates the trace")
    if method == "xtrace" or why:
        require_derivatives(objective, twice=True)
        module = objective.network.module
        found = [sketches.xtrace(hessian(one), vectors, generator, module) for one in objective.each]
    else:
        found = [exact_trace(one, loss, cotangents, chunk_size, generator) for one in objective.each]
    return joined_estimates(found, objective.network.size, "trace")


@full_precision()
def frobenius_norm(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    vectors: int = 30,
    known: Eigenpairs | None = None,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """‖∇²L(w)‖_F = (Σ λ_i²)^½, L the mean loss, by random vectors, with its standard error.

    E|Hz|² = ‖H‖_F² for random signs z; as in Hutch++ a third of `vectors` finds a subspace, a third gives the part of
    the norm that touches it, a third estimates the rest, which scatters the less. With at least three times the
    parameters in `vectors` it is exact. `known`: eigenpairs from `top_eigenvalues` take the place of the subspace, at
    no cost, and all `vectors` estimate the rest. A stack gives one value a model, one after the other.
    Cost: 3 + 6 `vectors` forward passes, 9 `vectors` in several chunks; memory: 2/3 `vectors` + 2 times the parameters.
    ValueError: as `Objective.of`; the loss `error`; fewer than 6 vectors. Meyer et al. 2021.
    """
    _require_vectors(vectors)
    objective = objective_of(network, inputs, labels, loss, chunk_size)
    generator = seeded_generator(generator, objective.device)
    size = objective.network.size
    pairs = [known] if size is None else [known and of_model(known, i) for i in range(size)]
    found = [
        sketches.frobenius_norm(hessian(one), vectors, generator, pair)
        for one, pair in zip(objective.each, pairs, strict=True)
    ]
    return joined_estimates(found, objective.network.size, "Hessian")


@full_precision()
def gauss_newton_error(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    vectors: int = 30,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """The relative error of the Gauss-Newton approximation, ‖H − G‖_F / ‖H‖_F: the share of H outside its G.

    H = G + (1/N) Σ_n Σ_c ∂ℓ_n/∂f_c ∇²f_c(x_n), f the logits; it vanishes as the loss is fitted, and
    for linear f. Both norms come from the same random signs z, |Hz − Gz|² and |Hz|², and the standard error is that of
    a ratio of means. A stack gives one value a model, one after the other. Cost: 7 + 10 `vectors` forward passes,
    17 `vectors` in several chunks. ValueError: as `Objective.of`; the loss `error`; fewer than 6 vectors; a Hessian of
    zero. Martens 2020.
    """
    _require_vectors(vectors)
    objective = objective_of(network, inputs, labels, loss, chunk_size)
    generator = seeded_generator(generator, objective.device)
    found = [sketches.relative_distance(hessian(one), gauss_newton(one), vectors, generator) for one in objective.each]
    return joined_estimates(found, objective.network.size, "Hessian, or one part in it over a whole of zero,")


def _require_vectors(vectors: int) -> None:
    if vectors < 6:
        raise ValueError(f"vectors is {vectors}; give at least 6, for the error comes from their spread")
