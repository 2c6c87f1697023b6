"""Values that carry their error and their cost."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Eigenpairs", "Estimate", "Maximum"]


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
