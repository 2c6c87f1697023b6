"""The largest eigenvalues of the Hessian, and all of the Gauss-Newton matrix."""

import warnings
from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from genlib.curvature.gauss_newton import gram_matrix, unknown_rows
from genlib.curvature.lanczos import largest
from genlib.curvature.products import hessian, objective_of
from genlib.curvature.stacks import joined
from genlib.estimates import Eigenpairs
from genlib.network import Network
from genlib.network.losses import Loss
from genlib.network.objective import Objective, require_finite, seeded_generator
from genlib.network.precision import full_precision

__all__ = ["gauss_newton_eigenvalues", "gram_objective", "top_eigenvalues"]

_GRAM_LIMIT = 20_000  # rows: 3.2 GB in float64


@full_precision()
def top_eigenvalues(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
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
    the graph of the gradient and, in parameters, 2 k + 14 up to k = 8, then 30, from k = 10 on 2 k + 10; of these k are
    the eigenvectors and stay. ValueError: as `Objective.of`; the loss `error`; a k that isn't from 1 to the number of
    parameters; a tolerance finer than the precision resolves; a Hessian too small for its smallest numbers.
    """
    objective = objective_of(network, inputs, labels, loss, chunk_size)
    _require_tolerance(tolerance, objective)
    if max_matvecs < k:
        raise ValueError(f"max_matvecs is {max_matvecs}; give at least k = {k}")
    generator = seeded_generator(generator, objective.device)
    found, passes = [], 0.0
    for one in objective.each:
        operator = hessian(one)
        if not 1 <= k <= operator.dimension:
            raise ValueError(f"k is {k}; it must be from 1 to {operator.dimension}, the number of parameters")
        found.append(largest(operator, k, tolerance, max_matvecs, generator))
        passes = max(passes, operator.passes(found[-1].matvecs))
    size = objective.network.size
    values, vectors, residuals, converged = (
        joined([getattr(one, name) for one in found], size) for name in ("values", "vectors", "residuals", "converged")
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
    labels: Shaped[Tensor, "..."],
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
    ValueError: as `Objective.of`; a loss but cross_entropy and mse; a layer whose gradients aren't known, by name; a
    forward pass that can't be had in float64.
    """
    objective = gram_objective(network, inputs, labels, loss, chunk_size)
    found = []
    for one in objective.each:
        weights = one.network.params.values()
        gram = require_finite(gram_matrix(one, loss), "Gauss-Newton matrix")
        values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
        found.append(values[: sum(w.numel() for w in weights)].to(next(iter(weights)).dtype))
    return joined(found, objective.network.size)


def gram_objective(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, loss: Loss, chunk_size: int | None
) -> Objective:
    """The objective, once it is seen that its Gram matrix can be had."""
    objective = objective_of(network, inputs, labels, loss, chunk_size, twice=False)
    if why := unknown_rows(objective, loss):
        raise ValueError(f"{why}; top_eigenvalues gives those of the Hessian of any network")
    rows = objective.samples * objective.outputs
    if rows > _GRAM_LIMIT:
        raise ValueError(
            f"inputs has {objective.samples} samples, of {objective.outputs} outputs; all eigenvalues are for at most "
            f"{_GRAM_LIMIT} rows together, take fewer samples or top_eigenvalues"
        )
    _require_float64(next(objective.each))
    return objective


def _require_float64(objective: Objective) -> None:
    """Refuse a forward pass that has a precision of its own, as one of images in bytes often has. One sample's pass."""
    alone = replace(objective, inputs=objective.inputs[:1], labels=objective.labels[:1])
    try:
        follows = alone.in_float64.logits().dtype is torch.float64
    except ValueError:  # in the precision of its weights the same pass went through
        follows = False
    if not follows:
        raise ValueError(
            "network: its forward pass fixes a precision, as by x.float(), and this is computed in float64; take that "
            "out and give inputs as floats, or take top_eigenvalues"
        )


def _require_tolerance(tolerance: float, objective: Objective) -> None:
    dtype = next(iter(objective.network.params.values())).dtype
    finest = 50 * torch.finfo(dtype).eps
    if not finest <= tolerance < 1:
        raise ValueError(
            f"tolerance is {tolerance}; {dtype} resolves eigenvalues to {finest:.0e} at the finest, "
            "give more than that and less than 1, or a network in float64"
        )
