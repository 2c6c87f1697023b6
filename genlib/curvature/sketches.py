"""Estimates of traces and norms of a matrix that is known by its products with vectors."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.curvature.products import Operator
from genlib.estimates import Eigenpairs, Estimate
from genlib.network.blocks import by_layer

__all__ = ["frobenius_norm", "hutch_plus_plus", "relative_distance"]


@torch.no_grad()
def hutch_plus_plus(matrix: Operator, vectors: int, generator: torch.Generator, module: nn.Module) -> Estimate:
    """Hutch++ with the diagonal kept, so that it can be summed by layers: E[u ⊙ Au] + Σ q ⊙ Aq, u = z - QQᵀz."""
    basis, rest = _range(matrix, vectors // 3, generator), vectors - 2 * (vectors // 3)
    diagonal, draws = matrix.zeros(), []
    for q in basis:
        diagonal += q * (matrix @ q)
    for _ in range(rest):
        u = _outside(matrix.signs(generator), basis)
        draws.append(_by_layer(u * (matrix @ u), matrix, module))
    fixed = _by_layer(diagonal, matrix, module)
    each = {layer: torch.stack([draw[layer] for draw in draws]) for layer in fixed}
    values = {layer: part + each[layer].mean() for layer, part in fixed.items()}
    errors = {layer: part.std() / rest**0.5 for layer, part in each.items()}
    error = sum(each.values()).std() / rest**0.5
    return Estimate(sum(values.values()), error, matrix.passes(vectors), values, errors)


def _by_layer(diagonal: Tensor, matrix: Operator, module: nn.Module) -> dict[str, Float[Tensor, ""]]:
    parts = diagonal.split([w.numel() for w in matrix.like.values()])
    shaped = {name: part.view_as(w) for (name, w), part in zip(matrix.like.items(), parts, strict=True)}
    return {layer: sum(part.sum() for part in parts) for layer, parts in by_layer(module, shaped).items()}


@torch.no_grad()
def frobenius_norm(
    matrix: Operator, vectors: int, generator: torch.Generator, known: Eigenpairs | None = None
) -> Estimate:
    """‖A‖² = 2‖AQ‖² − ‖QᵀAQ‖² + E|PAPz|², P = 1 − QQᵀ: the parts along a subspace as they are, the rest by signs z."""
    if known is not None:
        basis, rest, along = known.vectors, vectors, known.values.square().sum()
    else:
        basis, rest = _range(matrix, vectors // 3, generator), vectors - 2 * (vectors // 3)
        along = torch.zeros_like(basis[0, 0])
        for q in basis:
            product = matrix @ q
            along += 2 * product.square().sum() - (basis @ product).square().sum()
    terms = torch.stack(
        [_outside(matrix @ _outside(matrix.signs(generator), basis), basis).square().sum() for _ in range(rest)]
    )
    return _root(along + terms.mean(), terms.std() / rest**0.5, matrix.passes(vectors))


@torch.no_grad()
def relative_distance(a: Operator, b: Operator, vectors: int, generator: torch.Generator) -> Estimate:
    """‖A − B‖/‖A‖ in the Frobenius norm, both from the same random signs."""
    squares = []
    for _ in range(vectors):
        z = a.signs(generator)
        product = a @ z
        squares.append(torch.stack([(product - b @ z).square().sum(), product.square().sum()]))
    apart, whole = torch.stack(squares, 1)
    ratio = apart.mean() / whole.mean()
    error = (apart - ratio * whole).std() / whole.mean() / vectors**0.5  # of a ratio of means
    return _root(ratio, error, a.passes(vectors) + b.passes(vectors))


def _range(matrix: Operator, count: int, generator: torch.Generator) -> Float[Tensor, "count parameters"]:
    """An orthonormal basis of what the matrix makes of random vectors."""
    products = torch.stack([matrix @ matrix.signs(generator) for _ in range(count)], 1)
    return torch.linalg.qr(products).Q.T


def _outside(v: Float[Tensor, " parameters"], basis: Float[Tensor, "j parameters"]) -> Float[Tensor, " parameters"]:
    return v - basis.T @ (basis @ v)


def _root(square: Float[Tensor, ""], error: Float[Tensor, ""], passes: float) -> Estimate:
    """The root of an estimate and its error to first order; zero is exact."""
    root = square.clamp(min=0).sqrt()
    return Estimate(root, torch.where(root > 0, error / (2 * root), 0.0), passes)
