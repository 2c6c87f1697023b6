"""Values that carry their error and their cost."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

__all__ = ["Eigenpairs", "Estimate", "Maximum", "interval"]


@dataclass(frozen=True)
class Estimate:
    """A measured value, its standard error (0 where it is exact), and its cost in forward passes over the data."""

    value: Float[Tensor, "..."]
    standard_error: Float[Tensor, "..."]
    passes: float
    by_layer: dict[str, Float[Tensor, "..."]] = field(default_factory=dict)


@dataclass(frozen=True)
class Maximum:
    """The best value that a search found, the best after each step, and its cost in forward passes over the data.

    A search certifies no maximum: read `value` as a lower bound.
    """

    value: Float[Tensor, "..."]
    history: Float[Tensor, "steps ..."]
    passes: float


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in falling order with unit eigenvectors and residuals ‖Hv - λv‖, and what they cost.

    `converged` says which residuals meet the tolerance that was asked for.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k parameters"]
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    passes: float
    matvecs: int


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The 95 % interval of the mean, mean ± t(n-1) s/√n; of one value that value twice, for nothing says its spread."""
    values = np.array(list(values), float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean - half, mean + half
