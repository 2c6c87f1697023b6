"""Lanczos' method on the device: the largest eigenvalues by thick restarts, and nodes and weights for quadrature."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from genlib.curvature.products import Operator
from genlib.network.objective import require_finite

__all__ = ["Ritz", "largest", "quadrature"]

_COLUMNS = 2**13  # of the basis that are combined at a time


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

    Memory: `size` vectors, of which k are kept, and what a product takes or two more.
    A start sees one direction of an eigenvalue that has several. So where the basis comes to span an invariant
    subspace, another start joins the k best, and so on until one brings nothing new.
    """
    size = min(matrix.dimension, 2 * k + 10, max(26, 2 * k + 6))
    every = max(1, k // 8)  # products from one look at the Ritz values to the next
    basis = _Basis(matrix.zeros(k), matrix.zeros(size - k))
    w = matrix.normal(generator)
    _orthonormalize(w, *basis.first(0))
    resolved = 25 * torch.finfo(w.dtype).eps
    projected = np.zeros((size, size))
    earlier, length, patience, lost = None, 0, 0, 0.0
    j = matvecs = 0
    while True:
        basis[j].copy_(w)
        del w  # no vector is there beside the basis while a product is taken
        w = matrix @ basis[j]
        coordinates = _orthonormalize(w, *basis.first(j + 1))
        *projected[: j + 1, j], beta = require_finite(coordinates.cpu(), "Hessian").tolist()
        j, matvecs, patience = j + 1, matvecs + 1, patience - 1
        last = j == matrix.dimension or matvecs >= max_matvecs
        closed = beta <= max(0.1 * tolerance, resolved) * np.abs(projected[:j, :j]).max()
        if not (last or closed or j == size or (j >= k and (j - k) % every == 0)):
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
            done = int((residuals[:k] <= allowed).sum())
            j = min(j, k if ended else k + max(done, (size - k) // 2))
            basis.combine(s[:, :j])
            projected[:] = 0
            np.fill_diagonal(projected[:j, :j], theta[:j])
        if ended:
            w = matrix.normal(generator)
            _orthonormalize(w, *basis.first(j))
    if 0 < allowed < torch.finfo(w.dtype).tiny:
        raise ValueError(
            f"network: its Hessian is of order {np.abs(theta).max():.0e}, where {w.dtype} runs out of digits; "
            "measure it in float64, or on a larger scale of the loss"
        )
    basis.combine(s[:, :k])
    values, errors = basis.kept.new_tensor(np.stack([theta[:k], residuals[:k] + lost]))
    converged = torch.tensor((residuals[:k] + lost <= allowed).tolist(), device=values.device)
    return Ritz(values, basis.kept, errors, converged, matvecs)


@dataclass(frozen=True)
class _Basis:
    """Orthonormal rows, the first k of them apart: these are kept as eigenvectors when the rest is let go."""

    kept: Float[Tensor, "k parameters"]
    rest: Float[Tensor, "more parameters"]

    def __getitem__(self, j: int) -> Float[Tensor, " parameters"]:
        k = len(self.kept)
        return self.kept[j] if j < k else self.rest[j - k]

    def first(self, j: int) -> list[Tensor]:
        """The first j rows in their two blocks."""
        return [self.kept[:j], self.rest[: max(0, j - len(self.kept))]]

    def combine(self, s: np.ndarray) -> None:
        """Put sᵀ times the first rows in their place."""
        s = torch.as_tensor(s.copy(), dtype=self.kept.dtype, device=self.kept.device)
        old, new = (self.first(count) for count in s.shape)
        for start in range(0, self.kept.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            combined = s.T @ torch.cat([block[:, columns] for block in old])
            for block, rows in zip(new, combined.split([len(block) for block in new]), strict=True):
                block[:, columns] = rows


@torch.no_grad()
def quadrature(
    matrix: Operator, start: Float[Tensor, " parameters"], steps: int
) -> tuple[Float[Tensor, " steps"], Float[Tensor, " steps"]]:
    """Nodes θ and weights ω with Σ ω f(θ) = qᵀf(A)q up to degree 2 steps − 1, q the unit vector along `start`."""
    basis = matrix.zeros(steps + 1)
    basis[0] = start / start.norm()
    projected = matrix.zeros(0).new_zeros((steps, steps), dtype=torch.float64)
    for j in range(steps):
        w = matrix @ basis[j]
        *h, norm = _orthonormalize(w, basis[: j + 1])
        projected[: j + 1, j] = torch.stack(h).double()
        # No host read: where Lanczos breaks down, zeros follow, which carry no weight.
        going = norm > 10 * torch.finfo(norm.dtype).eps * projected.abs().max()
        basis[j + 1] = torch.where(going, w, 0.0)
    nodes, vectors = torch.linalg.eigh(require_finite(projected, "Hessian"), UPLO="U")
    return nodes, vectors[0].square()


def _orthonormalize(
    w: Float[Tensor, " parameters"], *blocks: Float[Tensor, "_ parameters"]
) -> Float[Tensor, " coordinates"]:
    """Make w the unit vector of what of it is orthogonal to the rows; its coordinates in them all, and in that.

    Twice is enough (Parlett 1980). By the largest entry first, so that no square over- or underflows.
    """
    largest_entry = torch.linalg.vector_norm(w, torch.inf).clamp(min=torch.finfo(w.dtype).tiny)
    w /= largest_entry
    found = 0.0
    for _ in range(2):
        h = [block @ w for block in blocks]
        for block, along in zip(blocks, h, strict=True):
            w.addmv_(block.T, along, alpha=-1)
        found = found + torch.cat(h)
    norm = w.norm()
    w /= norm
    return largest_entry * torch.cat([found, norm.unsqueeze(0)])
