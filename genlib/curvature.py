"""Curvature: the Hessian of the training loss, its products, eigenvalues, trace, norm and density; gradient noise."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib import _sketches
from genlib._gauss_newton import exact_trace, gram_matrix, obstacle, unknown_gradients
from genlib._hessian import gauss_newton, hessian, hessian_product
from genlib._lanczos import largest, quadrature
from genlib._losses import Loss
from genlib._objective import Objective, require_finite, seeded_generator
from genlib._precision import full_precision
from genlib._sample_gradients import gradient_variance as variance_of
from genlib.estimates import Density, Eigenpairs, Estimate
from genlib.network import Network, Params

__all__ = [
    "LogVolume",
    "frobenius_norm",
    "gauss_newton_eigenvalues",
    "gauss_newton_error",
    "gradient_variance",
    "hessian_vector_product",
    "log_basin_volume",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]

_GRAM_LIMIT = 20_000  # rows: 3.2 GB in float64


@full_precision()
def hessian_vector_product(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Callable[[Params], Params]:
    """v ↦ ∇²L(w) v, L the mean loss and w the weights of now; v and the product have the weights' names and shapes.

    Where the data are one chunk, the graph of the gradient is built once and kept: 4 forward passes, then 6 a product
    (less what the first layer saves), and the memory of that graph; in several chunks 9 a product. A stack gives every
    model's product at once. ValueError: as `Objective.of`; the loss `error`, or one that isn't finite; a v of other
    names or shapes. Pearlmutter 1994.
    """
    objective = _objective(network, inputs, labels, loss, chunk_size)
    objective.at_rest()
    shapes = {name: w.shape for name, w in objective.network.params.items()}
    product = hessian_product(objective)

    @full_precision()
    def checked(v: Params) -> Params:
        if {name: part.shape for name, part in v.items()} != shapes:
            raise ValueError("v has other names or shapes than the network's parameters; give one tensor for each")
        return product({name: v[name].detach().to(w) for name, w in objective.network.params.items()})

    return checked


@full_precision()
def top_eigenvalues(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    k: int,
    *,
    loss: Loss = "cross_entropy",
    tolerance: float = 1e-5,
    max_matvecs: int = 2000,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Eigenpairs:
    """The k algebraically largest eigenvalues of ∇²L(w), L the mean loss, with unit eigenvectors over the flat weights.

    Thick-restart Lanczos (Wu & Simon 2000), orthogonalized twice, until every residual ‖Hv − λv‖ is at most `tolerance`
    times the largest |λ| that it met, H as the network's precision shows it. After `max_matvecs` products it gives what
    it has, says in `converged` which pairs are done, and warns. An exactly repeated eigenvalue may be counted fewer
    times, unless few differ. A stack: one model after the other, with a leading axis; cost is that of the dearest.
    Cost: 3 + 6 a product in forward passes, 9 a product in several chunks; about 30 products for k = 10. Memory:
    4 k + 13 times the parameters and the graph of the gradient. ValueError: as `Objective.of`; the loss `error`; a k
    that isn't from 1 to the number of parameters; a tolerance finer than the precision resolves.
    """
    objective = _objective(network, inputs, labels, loss, chunk_size)
    _require_tolerance(tolerance, objective)
    if max_matvecs < k:
        raise ValueError(f"max_matvecs is {max_matvecs}; give at least k = {k}")
    generator = seeded_generator(generator, objective.inputs.device)
    found, passes = [], 0.0
    for one in objective.each:
        operator = hessian(one)
        if not 1 <= k <= operator.dimension:
            raise ValueError(f"k is {k}; it must be from 1 to {operator.dimension}, the number of parameters")
        found.append(largest(operator, k, tolerance, max_matvecs, generator))
        passes = max(passes, operator.passes(found[-1].matvecs))
    size = objective.network.size
    values, vectors, residuals, converged = (
        _joined([getattr(one, name) for one in found], size) for name in ("values", "vectors", "residuals", "converged")
    )
    if missed := int((~converged).sum()):
        warnings.warn(
            f"{missed} of {converged.numel()} eigenvalues did not converge in {max_matvecs} products; "
            "raise max_matvecs or tolerance",
            RuntimeWarning,
            stacklevel=3,
        )
    return Eigenpairs(values, vectors, residuals, converged, passes, max(one.matvecs for one in found))


@full_precision()
def gauss_newton_eigenvalues(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Float[Tensor, "*models n"]:
    """All eigenvalues of the Gauss-Newton matrix G = (1/N) Σ_n J_nᵀ ∇²ℓ_n J_n but zeros, in falling order.

    J_n are sample n's logits differentiated in all weights, ∇²ℓ_n its loss in the logits. G shares them with the Gram
    matrix of J_nᵀ S_n over all samples and classes, S_n S_nᵀ = ∇²ℓ_n, which is diagonalized in float64; of its
    samples × classes values the first min(that, parameters) are given. For small data. At a loss of zero, or where it
    is linear, G is the Hessian. Cost: 1 + classes forward passes and about 4 (samples × classes)³ operations; memory:
    four such matrices and one layer's gradients for each row, of a dense layer none. A stack: one after the other.
    ValueError: as `Objective.of`; a loss but cross_entropy and mse; a layer whose gradients aren't known, by name.
    """
    objective = _objective(network, inputs, labels, loss, chunk_size)
    if why := unknown_gradients(objective.network, loss):
        raise ValueError(f"{why}; top_eigenvalues gives those of the Hessian of any network")
    rows = objective.samples * objective.outputs
    if rows > _GRAM_LIMIT:
        raise ValueError(
            f"inputs has {objective.samples} samples, of {objective.outputs} outputs; all eigenvalues are for at most "
            f"{_GRAM_LIMIT} rows together, take fewer samples or top_eigenvalues"
        )
    found = []
    for one in objective.each:
        weights = one.network.params.values()
        gram = require_finite(gram_matrix(one, loss), "Gauss-Newton matrix")
        values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
        found.append(values[: sum(w.numel() for w in weights)].to(next(iter(weights)).dtype))
    return _joined(found, objective.network.size)


@full_precision()
def trace(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    method: str = "auto",
    cotangents: int | None = None,
    vectors: int = 30,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """tr ∇²L(w), L the mean loss, w all parameters; `by_layer` that of each layer's block.

    `exact`: (1/N) Σ_n Σ_c |J_nᵀ s_nc|², Σ_c s_nc s_ncᵀ the Hessian of sample n's loss in its logits, J_n theirs in w:
    the Gauss-Newton trace, and the Hessian's where logits are piecewise linear in each parameter and no layer runs
    twice, for cross_entropy and mse (2/C each). Above 64 classes `cotangents` (16) random ones a sample stand for all,
    with a standard error; fewer classes draw them only if asked. `hutch++`: a third of `vectors` finds a subspace, a
    third sums over it, a third estimates the rest (Meyer et al. 2021); any network, any loss. `auto`: exact if it is.
    A stack gives one value a model, one after the other. Cost: exact 1 + cotangents forward passes, 1 + 2 cotangents
    with convolutions; hutch++ 3 + 6 `vectors`, 9 `vectors` in several chunks, memory 2/3 `vectors` + 2 times the
    parameters. ValueError: as `Objective.of`; `exact` asked of another network or loss, which it names; the loss
    `error`.
    """
    if method not in ("auto", "exact", "hutch++"):
        raise ValueError(f"method is {method!r}; choose auto, exact or hutch++")
    if cotangents is not None and cotangents < 2:
        raise ValueError(f"cotangents is {cotangents}; draw at least 2 a sample, for the error comes from their spread")
    _require_vectors(vectors)
    objective = _objective(network, inputs, labels, loss, chunk_size)
    generator = seeded_generator(generator, objective.inputs.device)
    why = obstacle(objective.network, loss)
    if method == "exact" and why:
        raise ValueError(f"{why}; method='hutch++' estimates the trace")
    if method == "hutch++" or why:
        found = [_sketches.hutch_plus_plus(hessian(one), vectors, generator) for one in objective.each]
    else:
        found = [exact_trace(one, loss, cotangents, chunk_size, generator) for one in objective.each]
    return _estimate(found, objective.network.size, "trace")


@full_precision()
def frobenius_norm(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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
    objective = _objective(network, inputs, labels, loss, chunk_size)
    generator = seeded_generator(generator, objective.inputs.device)
    size = objective.network.size
    pairs = [known] if size is None else [known and _of_model(known, i) for i in range(size)]
    found = [
        _sketches.frobenius_norm(hessian(one), vectors, generator, pair)
        for one, pair in zip(objective.each, pairs, strict=True)
    ]
    return _estimate(found, objective.network.size, "Hessian")


@full_precision()
def gauss_newton_error(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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
    objective = _objective(network, inputs, labels, loss, chunk_size)
    generator = seeded_generator(generator, objective.inputs.device)
    found = [_sketches.relative_distance(hessian(one), gauss_newton(one), vectors, generator) for one in objective.each]
    return _estimate(found, objective.network.size, "Hessian, or one part in it over a whole of zero,")


@full_precision()
def spectral_density(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    steps: int = 50,
    draws: int = 5,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Density:
    """The density of the eigenvalues of ∇²L(w), L the mean loss, by stochastic Lanczos quadrature.

    Of each of `draws` random signs z, `steps` of Lanczos give the nodes and weights of a Gauss quadrature for
    zᵀf(H)z/|z|², whose mean is the mean of f over all eigenvalues. `Density.on` draws it, by Gaussians.
    A stack: one model after the other, with a leading axis. Cost: 3 + 6 `steps` × `draws` forward passes, 9 each in
    several chunks; memory: `steps` + 3 times the parameters. No host read a step. ValueError: as `Objective.of`; the
    loss `error`; no steps or draws; a Hessian that isn't finite. Ubaru, Chen & Saad 2017; Ghorbani et al. 2019.
    """
    for name, value in (("steps", steps), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1")
    objective = _objective(network, inputs, labels, loss, chunk_size)
    generator = seeded_generator(generator, objective.inputs.device)
    nodes, weights = [], []
    for one in objective.each:
        operator = hessian(one)
        taken = min(steps, operator.dimension)
        pairs = [quadrature(operator, operator.signs(generator), taken) for _ in range(draws)]
        nodes.append(torch.stack([theta for theta, _ in pairs]))
        weights.append(torch.stack([omega for _, omega in pairs]) / draws)
    size = objective.network.size
    return Density(_joined(nodes, size), _joined(weights, size), operator.passes(taken * draws))


@dataclass(frozen=True, kw_only=True)
class LogVolume(Estimate):
    """An estimate with the eigenvalues that were looked at, how many of them counted, and how many were negative."""

    eigenvalues: Float[Tensor, "*models k"]
    counted: Int[Tensor, "..."]
    negative: Int[Tensor, "..."]


def log_basin_volume(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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


@full_precision()
def gradient_variance(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Float[Tensor, "*models"]:
    """The variance of the samples' gradients, (1/N) Σ_n |∇ℓ_n(w) − ∇L(w)|²: the noise of a step on one sample.

    It is the trace of their covariance. Where each layer is a known one and runs once, |∇ℓ_n| comes from what enters
    the layer and the gradient at its output, and no sample's own gradient is formed; else they are formed, as many at a
    time as fit into 64 MB. A stack gives one value a model, one after the other.
    Cost: three forward passes. ValueError: as `Objective.of`; the loss `error`; a variance that isn't finite.
    Jiang et al. 2020.
    """
    objective = _objective(network, inputs, labels, loss, chunk_size)
    found = _joined([variance_of(one) for one in objective.each], objective.network.size)
    return require_finite(found, "variance of gradients").to(next(iter(objective.network.params.values())).dtype)


def _objective(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, loss: Loss, chunk_size: int | None
) -> Objective:
    if loss == "error":
        raise ValueError("loss is 'error', which has no curvature; choose cross_entropy or mse")
    return Objective.of(network, inputs, labels, loss, chunk_size)


def _require_tolerance(tolerance: float, objective: Objective) -> None:
    dtype = next(iter(objective.network.params.values())).dtype
    finest = 50 * torch.finfo(dtype).eps
    if not finest <= tolerance < 1:
        raise ValueError(
            f"tolerance is {tolerance}; {dtype} resolves eigenvalues to {finest:.0e} at the finest, "
            "give more than that and less than 1, or a network in float64"
        )


def _require_vectors(vectors: int) -> None:
    if vectors < 6:
        raise ValueError(f"vectors is {vectors}; give at least 6, for the error comes from their spread")


def _of_model(pairs: Eigenpairs, i: int) -> Eigenpairs:
    names = ("values", "vectors", "residuals", "converged")
    return replace(pairs, **{name: getattr(pairs, name)[i] for name in names})


def _joined(found: list[Tensor], size: int | None) -> Tensor:
    """The values of a stack's networks along a leading axis, or the only one."""
    return found[0] if size is None else torch.stack(found)


def _estimate(found: list[Estimate], size: int | None, what: str) -> Estimate:
    by_layer = {name: _joined([one.by_layer[name] for one in found], size) for name in found[0].by_layer}
    value = require_finite(_joined([one.value for one in found], size), what)
    return Estimate(value, _joined([one.standard_error for one in found], size), found[0].passes, by_layer)
