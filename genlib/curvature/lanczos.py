"""Lanczos' method on the device: the largest eigenvalues by thick restarts, and nodes and weights for quadrature."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from genlib.curvature.products import Operator
from genlib.network.objective import require_finite

__all__ = ["Ritz", "largest", "quadrature"]


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs in falling order, ‖Av − θv‖ of each, and the products with A that were taken."""

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k parameters"]
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    matvecs: int


@torch.no_grad()
def largest(matrix: Operator, k: int, tolerance: float, max_matvecs: int, generator: torch.Generator) -> Ritz:
    """The k algebraically largest eigenvalues by thick-restart Lanczos (Wu & Simon 2000). One host read a product.

    A start sees one direction of an eigenvalue that has several. So where the basis comes to span an invariant
    subspace, another start joins the k best, and so on until one brings nothing new.
    """
    size = min(matrix.dimension, 2 * k + 10)
    every = max(1, k // 8)  # products from one look at the Ritz values to the next
    basis = matrix.zeros(size + 1)
    basis[0] = _unit(matrix.normal(generator), basis[:0])
    resolved = 25 * torch.finfo(basis.dtype).eps
    projected = np.zeros((size, size))
    earlier, length, patience, lost = None, 0, 0, 0.0
    j = matvecs = 0
    while True:
        w, h = _orthogonal(matrix @ basis[j], basis[: j + 1])
        norm = w.norm()
        projected[: j + 1, j], beta = _read(h, norm)
        j, matvecs, patience = j + 1, matvecs + 1, patience - 1
        last = j == matrix.dimension or matvecs >= max_matvecs
        closed = beta <= max(0.1 * tolerance, resolved) * np.abs(projected[:j, :j]).max()
        if not (last or closed or j == size or (j >= k and (j - k) % every == 0)):
            basis[j] = w / norm
            continue
        theta, s = np.linalg.eigh(projected[:j, :j], UPLO="U")
        theta, s = theta[::-1], s[:, ::-1]
        allowed = tolerance * np.abs(theta).max()
        residuals = beta * np.abs(s[-1])
        settled = j >= k and (residuals[:k] <= (allowed if earlier is None else 0.1 * allowed)).all()
        ended = closed or (settled and patience <= 0)
        unsure = closed if earlier is None else (theta[:k] - earlier > allowed).any()
        if last or (settled and ended and not unsure):
            break
        if ended:
            length = length or matvecs
            lost, patience = max(lost, beta if closed else residuals[:k].max()), length
            earlier = theta[:k] if settled else None
        if size < matrix.dimension and (ended or j == size):
            j = min(j, k if ended else k + max((residuals[:k] <= allowed).sum(), (size - k) // 2))
            basis[:j] = _combined(s[:, :j], basis[: len(s)])
            projected[:] = 0
            np.fill_diagonal(projected[:j, :j], theta[:j])
        basis[j] = _unit(matrix.normal(generator), basis[:j]) if ended else w / norm
    values, errors = basis.new_tensor(np.stack([theta[:k], residuals[:k] + lost]))
    converged = torch.tensor((residuals[:k] + lost <= allowed).tolist(), device=basis.device)
    return Ritz(values, _combined(s[:, :k], basis[:j]), errors, converged, matvecs)


@torch.no_grad()
def quadrature(
    matrix: Operator, start: Float[Tensor, " parameters"], steps: int
) -> tuple[Float[Tensor, " steps"], Float[Tensor, " steps"]]:
    """Nodes θ and weights ω with Σ ω f(θ) = qᵀf(A)q up to degree 2 steps − 1, q the unit vector along `start`."""
    basis = matrix.zeros(steps + 1)
    basis[0] = start / start.norm()
    projected = matrix.zeros(0).new_zeros((steps, steps), dtype=torch.float64)
    for j in range(steps):
        w, h = _orthogonal(matrix @ basis[j], basis[: j + 1])
        projected[: j + 1, j] = h.double()
        norm = w.norm()
        # No host read: where Lanczos breaks down, zeros follow, which carry no weight.
        going = norm > 10 * torch.finfo(norm.dtype).eps * projected.abs().max()
        basis[j + 1] = torch.where(going, w / norm, 0.0)
    nodes, vectors = torch.linalg.eigh(require_finite(projected, "Hessian"), UPLO="U")
    return nodes, vectors[0].square()


def _orthogonal(
    w: Float[Tensor, " parameters"], basis: Float[Tensor, "j parameters"]
) -> tuple[Float[Tensor, " parameters"], Float[Tensor, " j"]]:
    """What of w is orthogonal to the basis, and the rest's coordinates. Twice is enough (Parlett 1980)."""
    h = basis @ w
    w = torch.addmv(w, basis.T, h, alpha=-1)
    again = basis @ w
    return torch.addmv(w, basis.T, again, alpha=-1), h + again


def _unit(v: Float[Tensor, " parameters"], basis: Float[Tensor, "j parameters"]) -> Float[Tensor, " parameters"]:
    v, _ = _orthogonal(v / v.norm(), basis)
    return v / v.norm()


def _read(h: Float[Tensor, " j"], norm: Float[Tensor, ""]) -> tuple[list[float], float]:
    *column, beta = require_finite(torch.cat([h, norm.unsqueeze(0)]).cpu(), "Hessian").tolist()
    return column, beta


def _combined(s: np.ndarray, basis: Float[Tensor, "j parameters"]) -> Float[Tensor, "k parameters"]:
    return torch.as_tensor(s.T.copy(), dtype=basis.dtype, device=basis.device) @ basis
