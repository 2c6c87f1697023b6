"""Estimates of traces and norms of a matrix that is known by its products with vectors."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from genlib.curvature.products import Operator
from genlib.estimates import Eigenpairs, Estimate
from genlib.network.blocks import by_layer

__all__ = ["frobenius_norm", "relative_distance", "xtrace"]


@torch.no_grad()
def xtrace(matrix: Operator, vectors: int, generator: torch.Generator, module: nn.Module) -> Estimate:
    """XTrace: the mean of t_i = tr QᵀAQ + uᵀAu, Q a basis of AΩ but for its column i, u = (1 − QQᵀ)ω_i, Ω of signs.

    Whatever the other columns are, t_i has the mean tr A, and Σ q ⊙ Aq + u ⊙ Au that of A's diagonal.
    """
    if vectors >= matrix.dimension:
        each, products = _by_entries(matrix, module), matrix.dimension
    else:
        k, start = vectors // 2, generator.get_state()
        basis, r = torch.linalg.qr(torch.stack([matrix @ matrix.signs(generator) for _ in range(k)], 1))
        generator.set_state(start)  # for the same signs again: kept, they would have lain beside products and basis
        tests = matrix.zeros(k)
        for test in tests:
            test.copy_(matrix.signs(generator))
        known = [_by_layer(v, matrix, module) for v in (basis, tests.T)]

        def gram(v: Float[Tensor, "parameters m"]) -> Float[Tensor, "layers both m"]:
            """[Q Ω]ᵀv over each layer's parameters."""
            rows = _by_layer(v, matrix, module)
            return torch.stack([torch.cat([_inner(of[layer], rows[layer]) for of in known]) for layer in rows])

        each, products = _left_out(r, gram(basis), torch.cat([gram((matrix @ q)[:, None]) for q in basis.T], 2)), 2 * k
    values, errors = each.diagonal(dim1=1, dim2=2).mean(1), _error(each)
    shares, of_shares = (dict(zip(by_layer(module, matrix.like), of, strict=True)) for of in (values, errors))
    return Estimate(values.sum(), _error(each.sum(0)), matrix.passes(products), shares, of_shares)


def _by_entries(matrix: Operator, module: nn.Module) -> Float[Tensor, "layers 2 2"]:
    """The trace itself, by one product for every entry of the diagonal."""
    units = matrix.zeros(matrix.dimension).fill_diagonal_(1)
    diagonal = torch.stack([(matrix @ unit) @ unit for unit in units])[:, None]
    parts = _by_layer(diagonal, matrix, module).values()
    return torch.stack([sum(rows.sum() for rows in of_layer) for of_layer in parts])[:, None, None].expand(-1, 2, 2)


def _left_out(
    r: Float[Tensor, "k k"], flat: Float[Tensor, "layers both k"], curved: Float[Tensor, "layers both k"]
) -> Float[Tensor, "layers k k"]:
    """t_i without columns i and j of AΩ = Qr, of each layer, from [Q Ω]ᵀQ and [Q Ω]ᵀAQ.

    Without column i the basis lacks the direction s_i ~ r⁻ᵀe_i, the one that the others don't reach.
    """
    k, eye, inside = len(r), torch.zeros_like(r).fill_diagonal_(1), curved[:, : len(r)]
    scaled, least = r / (r.norm() + torch.finfo(r.dtype).tiny), torch.finfo(r.dtype).eps
    pivots = scaled.diagonal()
    pivots.masked_fill_(pivots.abs() < least, least)  # where a column adds nothing to those before it
    s = F.normalize(torch.linalg.solve_triangular(scaled.T, eye, upper=False), dim=0)[:, :, None]
    pair = s.mT - s * (s[..., 0].T @ s[..., 0])  # s_j without s_i, and nothing where they are the same
    pair = F.normalize(pair, dim=0, eps=least**0.5)
    c = flat[:, k:].sum(0).T[:, :, None]
    for lacking in (s, pair):
        c = c - lacking * (lacking * c).sum(0)
    u = torch.cat([-c, eye[:, :, None].expand(k, k, k)])  # in Q and Ω
    kept = inside.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] - _form(s, inside, s) - _form(pair, inside, pair)
    return kept + _form(u, flat @ r, eye[:, :, None]) - _form(u, curved, c)


def _inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum(x.T @ y for x, y in zip(a, b, strict=True))


def _form(x: Float[Tensor, "a i #j"], matrices: Float[Tensor, "layers a b"], y: Float[Tensor, "b i #j"]) -> Tensor:
    """xᵀMy, M each of the matrices."""
    return torch.einsum("aij,lab,bij->lij", x, matrices, y)


def _error(each: Float[Tensor, "*layers k k"]) -> Float[Tensor, "*layers"]:
    """Of the mean of t_i = each[i, i], whose variance is E[s²/k + d_ij d_ji], d_ij = t_i − each[i, j], i ≠ j.

    It is Var(t_i)/k + (1 − 1/k) Cov(t_i, t_j), and s² has the mean Var(t_i) − Cov(t_i, t_j). Given all columns but j,
    d_ji has the mean 0 and each[i, j] is fixed, so of t_i t_j = (each[i, j] + d_ij)(each[j, i] + d_ji) only the last
    product has a mean beside the trace's square. The published error, s/√k, leaves it out and is too small.
    """
    t, k = each.diagonal(dim1=-2, dim2=-1), each.shape[-1]
    d = t[..., None] - each
    return (t.var(-1) / k + (d * d.mT).sum((-2, -1)).abs() / (k * (k - 1))).sqrt()


def _by_layer(
    v: Float[Tensor, "parameters m"], matrix: Operator, module: nn.Module
) -> dict[str, list[Float[Tensor, "_ m"]]]:
    """The rows of v that belong to each layer."""
    parts, m = v.split([w.numel() for w in matrix.like.values()]), v.shape[1]
    shaped = {name: part.view(*w.shape, m) for (name, w), part in zip(matrix.like.items(), parts, strict=True)}
    return {layer: [rows.reshape(-1, m) for rows in of_layer] for layer, of_layer in by_layer(module, shaped).items()}


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
