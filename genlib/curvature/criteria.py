"""What the Gauss-Newton spectrum says of the gap: effective parameters, Takeuchi's criterion, the Laplace evidence."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from genlib.curvature.eigenvalues import gram_objective
from genlib.curvature.gauss_newton import gram_matrix, gram_scale
from genlib.curvature.stacks import joined
from genlib.network import Network
from genlib.network.losses import Loss
from genlib.network.objective import Objective, require_finite
from genlib.network.precision import full_precision

__all__ = ["InformationCriteria", "information_criteria"]

_FINEST = 1e-10  # of the largest eigenvalue, for six digits of the TIC
_HALVINGS = 80  # of the distance to the best prior, in ln α


@dataclass(frozen=True)
class InformationCriteria:
    """What one Gram matrix gives: `soft_rank` and `tic` at the damping, `log_evidence` at its `prior_precision`."""

    soft_rank: Float[Tensor, "*models"]
    tic: Float[Tensor, "*models"]
    log_evidence: Float[Tensor, "*models"]
    prior_precision: Float[Tensor, "*models"]
    passes: float


@full_precision()
def information_criteria(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    damping: float | int = 1e-3,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> InformationCriteria:
    """Soft rank, Takeuchi's information criterion and the Laplace evidence, by the Gauss-Newton matrix G.

    `soft_rank`: tr G(G + λ)⁻¹ = Σ κ/(κ + λ), κ the eigenvalues of G, λ the `damping`: the weight decay where there was
    one (Shoham et al. 2025), the effective number of parameters (MacKay 1992). `tic`: tr C(G + λ)⁻¹ with the second
    moment of the samples' gradients C = (1/N) Σ_n g_n g_nᵀ; over N it is the gap in loss that is to be expected
    (Takeuchi 1976). Undamped, where samples × (classes - 1) gradients of logits are independent, both say nothing but
    the loss: samples × (classes - 1), and Σ_n (1/p_n - 1), p_n the probability of label n. `log_evidence`: ln p(D)
    ≈ −N L − ½ α‖w‖² − ½ Σ ln(1 + Nκ/α), by Laplace's method around w of the prior N(0, 1/α), with the α that makes it
    largest, `prior_precision`: of that α‖w‖² = Σ Nκ/(Nκ + α) (MacKay 1992; Immer et al. 2021). Of mse N L stands for
    −ln p, as of noise of variance classes/2, up to a constant.
    All are from the Gram matrix of `gauss_newton_eigenvalues`, of cross-entropy without the direction in which a
    sample's logits have no curvature: for small data. A stack: one after the other.
    Cost: 2 + classes forward passes and about 5 (samples × (classes - 1))³ operations; memory: five such matrices.
    ValueError: as `gauss_newton_eigenvalues`; a damping that isn't positive, or lost beside the largest κ.
    """
    if not damping > 0:
        raise ValueError(f"damping is {damping}; give a positive number, as the weight decay")
    objective = gram_objective(network, inputs, labels, loss, chunk_size)
    dtype = next(iter(objective.network.params.values())).dtype
    found = zip(*(_criteria(one.in_float64, loss, damping) for one in objective.each), strict=True)
    values = (joined(list(values), objective.network.size) for values in found)
    return InformationCriteria(
        *(require_finite(value, "information criterion").to(dtype) for value in values), 2.0 + objective.outputs
    )


def _criteria(objective: Objective, loss: str, damping: float) -> list[Float[Tensor, ""]]:
    gram = require_finite(gram_matrix(objective, loss), "Gauss-Newton matrix")
    mean, roots, scale = _loss_and_roots(objective, loss)
    if loss == "cross_entropy" and objective.outputs > 1:
        gram, roots = _without_null(gram, roots, scale)
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    if damping < _FINEST * values[-1]:
        raise ValueError(
            f"damping is {damping}, lost beside an eigenvalue of {values[-1]:.3g}; give "
            "information_criteria a larger one"
        )
    n, square = objective.samples, sum(w.square().sum() for w in objective.network.params.values())
    alpha = _best_precision(n * values, square)
    evidence = -n * mean - alpha * square / 2 - (n * values / alpha).log1p().sum() / 2
    return [(values / (values + damping)).sum(), _takeuchi(gram, roots, damping), evidence, alpha]


def _loss_and_roots(
    objective: Objective, loss: str
) -> tuple[Float[Tensor, ""], Float[Tensor, "outputs samples"], Float[Tensor, "outputs samples"]]:
    """L, the u_n that make each sample's gradient of its rows, g_n = (JᵀS)_n u_n, and what they were divided by."""
    logits = objective.logits().requires_grad_()
    with torch.enable_grad():
        losses = objective.losses(logits, objective.labels.to(logits.device))
        (slope,) = torch.autograd.grad(losses.sum(), logits)
    scale = gram_scale(logits.detach(), loss)
    roots = torch.where(slope == 0, 0.0, slope / scale)
    return losses.detach().mean(), roots.T, scale.T


def _without_null(
    gram: Float[Tensor, "rows rows"], roots: Float[Tensor, "outputs samples"], null: Float[Tensor, "outputs samples"]
) -> tuple[Float[Tensor, "fewer fewer"], Float[Tensor, "_ samples"]]:
    """Both without each sample's unit vector √p, along which the Gram matrix is zero, turned to the last output."""
    normal = null.clone()
    normal[-1] += 1
    normal /= (normal.square().sum(0) / 2).sqrt()

    def turned(rows: Float[Tensor, "outputs samples columns"]) -> Float[Tensor, "_ columns"]:
        along = normal.unsqueeze(-1)
        return (rows - along * (along * rows).sum(0))[:-1].flatten(0, 1)

    half = turned(gram.unflatten(0, null.shape)).T
    return turned(half.unflatten(0, null.shape)), turned(roots.unsqueeze(-1)).view(-1, null.shape[1])


def _takeuchi(
    gram: Float[Tensor, "rows rows"], roots: Float[Tensor, "outputs samples"], damping: float
) -> Float[Tensor, ""]:
    """Σ_n u_nᵀ K(K + λ)⁻¹ u_n, K the Gram matrix, as (uᵀKu − uᵀK(K + λ)⁻¹Ku)/λ: where p_n is tiny u_n is huge."""
    along = (gram.unflatten(1, roots.shape) * roots).sum(1)
    squares = (along.unflatten(0, roots.shape).diagonal(dim1=1, dim2=2) * roots).sum()
    lower = torch.linalg.cholesky(gram.diagonal_scatter(gram.diagonal() + damping))
    return (squares - torch.linalg.solve_triangular(lower, along, upper=False).square().sum()) / damping


def _best_precision(values: Float[Tensor, " rows"], square: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The α of α‖w‖² = γ(α) = Σ s/(s + α): where evidence, concave in ln α, is largest.

    ln α ← ½ ln(α γ(α)/‖w‖²) comes nearer by a half at least, for −1 < d ln γ/d ln α < 0.
    """
    alpha, tiny = torch.ones_like(square), torch.finfo(square.dtype).tiny
    for _ in range(_HALVINGS):
        gamma = (values / (values + alpha)).sum().clamp(min=tiny)
        alpha = (alpha.log() + gamma.log() - square.clamp(min=tiny).log()).div(2).exp()
    return alpha
