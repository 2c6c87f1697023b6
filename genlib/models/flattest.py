"""Networks of the smallest possible trace of the Hessian among those that fit their data (Wen, Li & Ma 2023)."""

import itertools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from genlib.models.by_hand import linear, require_distinct
from genlib.network.normalizations import SimplifiedLayerNorm

__all__ = [
    "flattest_generalizing_network",
    "flattest_memorizing_network",
    "interpolating_network_without_bias",
    "smallest_trace",
]

_EASY = 0.1  # of the cube in the sample, from where on a memorizing network does noticeably better than none
_FLAT = 1e-6  # of the spread of the samples: a distance that a linear program can't tell from none


def smallest_trace(
    inputs: Float[Tensor, "n d"],
    labels: Tensor,
    *,
    depth: int = 1,
    bias: bool = True,
    normalization: str | None = None,
    epsilon: float = 0.01,
) -> Float[Tensor, ""]:
    """What tr ∇²L, L = (1/n) Σ (f(x_i) − y_i)², is at least for any f = `two_layer(…)` with f(x_i) = y_i throughout.

    (2/n) Σ D |y_i|^(2 − 2/D) ‖x'_i‖^(2/D), x' = (x, 1), or x without bias, for D = `depth` + 1 layers: 4 √(d + 1) with
    two on the cube {±1}^d, where y = ±1. With normalization `layer` (2/n) Σ min(1, 2 ‖x'_i‖ |y_i| / ε), which is 2
    there. Labels 0 and 1 stand for y = ∓1; floating-point ones are the y. Float64. For inputs in convex position two
    layers with biases reach it: `flattest_memorizing_network`. Wen, Li & Ma 2023, Theorems 4.1, 5.1.
    Shapes, labels or numbers that don't fit: ValueError.
    """
    x, y = _data(inputs, labels)
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1")
    reach = torch.linalg.vector_norm(_extended(x) if bias else x, dim=1)
    if _normalizes(normalization, epsilon):
        if depth > 1:
            raise ValueError(f"depth is {depth} with normalization {normalization!r}; it is defined for depth 1")
        return 2 * (2 * reach * y.abs() / epsilon).clamp_max(1).mean()
    layers = depth + 1
    return 2 * layers * (y.abs() ** (2 - 2 / layers) * reach ** (2 / layers)).mean()


def flattest_memorizing_network(
    inputs: Float[Tensor, "n d"], labels: Tensor, *, normalization: str | None = None, epsilon: float = 0.01
) -> nn.Sequential:
    """A two-layer network of the smallest trace, `smallest_trace`, that says nothing but the samples: width n, float64.

    Unit i fires at x_i alone: w_i·x − w_i·x_i + δ_i, |w_i| = 1, w_i·x_i > w_i·x_j + δ_i, scaled so that W₁ and W₂
    have an equal share in the gradient; δ_i is half of the distance to the next sample, and on the cube {±1}^d 1/√d, so
    that f = 0 at all other corners: there the error is 1 − n/2^d. w_i is x_i/|x_i| if all |x_i| are equal, and else
    solves a linear program. `labels` as in `smallest_trace`; `normalization` and `epsilon` as in `two_layer`.
    Cost: n² d products, or n linear programs. Wen, Li & Ma 2023, Theorems 4.1, 5.1.
    Equal samples, a sample that is no extreme point of all, labels not 0 and 1: ValueError. More than a tenth of the
    cube in the sample: UserWarning, for then it is no counterexample.
    """
    x, y = _data(inputs, labels)
    require_distinct(x)
    if len(x) < 2:
        raise ValueError(f"inputs has {len(x)} samples; give at least 2")
    n, d = x.shape
    w = _separating(x)
    at = (w * x).sum(1)
    if (x.abs() == 1).all():
        delta = at.new_full((n,), d**-0.5)
        if (share := n / 2**d) > _EASY:
            warnings.warn(
                f"inputs are {n} of the {2**d} corners of the cube: a network that knows no more is right on "
                f"{share:.0%} of it and no counterexample; take a larger dimension",
                stacklevel=2,
            )
    else:
        others = (w @ x.T).fill_diagonal_(-torch.inf)
        delta = (at - others.amax(1)) / 2
    weight, bias = w / delta[:, None], 1 - at / delta  # 1 at x_i
    reach = torch.linalg.vector_norm(_extended(x), dim=1)
    if _normalizes(normalization, epsilon):
        _require_small(epsilon, (reach * y.abs()).min().item())
        return _network(2 * epsilon * weight, 2 * epsilon * bias, y, epsilon)
    scale = (reach * y.abs()).sqrt()
    return _network(scale[:, None] * weight, scale * bias, y.sign() * (y.abs() / reach).sqrt())


def flattest_generalizing_network(
    dimension: int, *, normalization: str | None = None, epsilon: float = 0.01
) -> nn.Sequential:
    """A two-layer network that is x₁x₂ on the cube {±1}^d, of the smallest trace on any part of it: width 4, float64.

    A unit r (s₁x₁ + s₂x₂ − 1), r = (d + 1)^¼, for each pair of signs s, of which one fires, and s₁s₂/r: the trace is
    4 √(d + 1). With `normalization` `layer` 2ε (s₁x₁ + s₂x₂ − 1) and s₁s₂: it is 2. Wen, Li & Ma 2023, Propositions 4.2
    and 5.2, where r is misprinted. Fewer than 2 dimensions, or ε above 2 √(d + 1): ValueError.
    """
    signs, product = _quadrants(dimension)
    minus = -torch.ones_like(product)
    if _normalizes(normalization, epsilon):
        _require_small(epsilon, (dimension + 1) ** 0.5)
        return _network(2 * epsilon * signs, 2 * epsilon * minus, product, epsilon)
    r = (dimension + 1) ** 0.25
    return _network(r * signs, r * minus, product / r)


def interpolating_network_without_bias(dimension: int, *, skew: float = 0.5) -> nn.Sequential:
    """A network without biases that is x₁x₂ on the cube {±1}^d: width 4, float64. Wen, Li & Ma 2023.

    Rows (1 + e, 1 − e), (1 + e, −1 + e), (−1 − e, 1 − e), (−1 − e, −1 + e), e = `skew`, and (1, −1, −1, 1)/(2 − 2e).
    Fewer than 2 dimensions, or a skew that isn't at least 0 and below 1: ValueError.
    """
    if not 0 <= skew < 1:
        raise ValueError(f"skew is {skew}; it must be at least 0 and below 1")
    rows, product = _quadrants(dimension)
    rows[:, 0] *= 1 + skew
    rows[:, 1] *= 1 - skew
    return _network(rows, None, product / (2 - 2 * skew))


def _data(inputs: Tensor, labels: Tensor) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    if inputs.dim() != 2 or inputs.numel() == 0 or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"inputs has the shape {tuple(inputs.shape)} and labels {tuple(labels.shape)}; "
            "give [samples, dimension] and [samples]"
        )
    x, y = inputs.detach().double(), labels.detach().double()
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("inputs or labels hold values that are not finite; drop those samples")
    if labels.is_floating_point():
        return x, y
    if ((y != 0) & (y != 1)).any():
        raise ValueError("labels has values other than 0 and 1; give other targets as floating-point numbers")
    return x, 2 * y - 1


def _normalizes(normalization: str | None, epsilon: float) -> bool:
    if normalization not in (None, "layer"):
        raise ValueError(f"normalization is {normalization!r}; the smallest trace is known for None and 'layer'")
    if normalization and not 0 < epsilon < torch.inf:
        raise ValueError(f"epsilon is {epsilon}; it must be positive and finite")
    return normalization == "layer"


def _require_small(epsilon: float, least: float) -> None:
    if epsilon > 2 * least:
        raise ValueError(
            f"epsilon is {epsilon}; above 2 |y| ‖(x, 1)‖, here {2 * least:.3g}, other networks are flatter"
        )


def _separating(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Unit vectors w_i with w_i·x_i > w_i·x_j for all other j."""
    norms = torch.linalg.vector_norm(x, dim=1)
    if torch.allclose(norms, norms[:1], rtol=1e-12, atol=0):
        return F.normalize(x, dim=1)
    points = x.cpu().numpy()
    found = np.stack([_separates(points, i) for i in range(len(points))])
    return F.normalize(torch.from_numpy(found).to(x), dim=1)


def _separates(points: np.ndarray, i: int) -> np.ndarray:
    """The w, of entries within ±1, of the largest distance t ≤ w·(x_i − x_j); these differences are scaled."""
    from scipy.optimize import linprog  # here, for it takes longer to import than all of genlib

    apart, d = points[i] - np.delete(points, i, axis=0), points.shape[1]
    apart /= np.abs(apart).max()
    rows = np.column_stack([-apart, np.ones(len(apart))])  # t − w·(x_i − x_j) ≤ 0
    solved = linprog(-np.eye(d + 1)[d], A_ub=rows, b_ub=np.zeros(len(apart)), bounds=[(-1, 1)] * d + [(0, None)])
    if not solved.success or solved.x[d] <= _FLAT:
        raise ValueError(
            f"inputs[{i}] is no extreme point: it lies among the others, so that no unit fires there alone; drop it"
        )
    return solved.x[:d]


def _extended(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d1"]:
    return F.pad(x, (0, 1), value=1.0)


def _quadrants(dimension: int) -> tuple[Float[Tensor, "4 d"], Float[Tensor, " 4"]]:
    """(±1, ±1, 0, …, 0), and the products of the two signs."""
    if dimension < 2:
        raise ValueError(f"dimension is {dimension}; x₁x₂ needs at least 2")
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=2)), dtype=torch.float64, device="cpu")
    return F.pad(signs, (0, dimension - 2)), signs.prod(1)


def _network(
    weight: Tensor, bias: Tensor | None, out: Float[Tensor, " units"], epsilon: float | None = None
) -> nn.Sequential:
    norm = [] if epsilon is None else [SimplifiedLayerNorm(epsilon)]
    return nn.Sequential(linear(weight, bias), nn.ReLU(), *norm, linear(out[None], None))
