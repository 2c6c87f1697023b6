"""Values that carry their error and their cost."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Density", "Eigenpairs", "Estimate", "Maximum", "interval"]


@dataclass(frozen=True)
class Estimate:
    """A measured value, its standard error (0 where it is exact), and its cost in forward passes over the data.

    `by_layer`: each layer's share where there are such, `errors_by_layer` the standard errors of these.
    """

    value: Float[Tensor, "..."]
    standard_error: Float[Tensor, "..."]
    passes: float
    by_layer: dict[str, Float[Tensor, "..."]] = field(default_factory=dict)
    errors_by_layer: dict[str, Float[Tensor, "..."]] = field(default_factory=dict)


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

    `converged` says which residuals meet the tolerance that was asked for. Eigenvectors run over the flat parameters,
    one after the other.
    """

    values: Float[Tensor, "*models k"]
    vectors: Float[Tensor, "*models k parameters"]
    residuals: Float[Tensor, "*models k"]
    converged: Bool[Tensor, "*models k"]
    passes: float
    matvecs: int


@dataclass(frozen=True)
class Density:
    """The density of a matrix's eigenvalues as nodes and weights that sum to 1, and its cost in forward passes.

    Σ weights f(nodes) stands for the mean of f over all eigenvalues.
    """

    nodes: Float[Tensor, "*models draws steps"]
    weights: Float[Tensor, "*models draws steps"]
    passes: float

    def on(self, grid: Float[Tensor, " points"], *, width: float) -> Float[Tensor, "*models points"]:
        """The density at these places, each node a Gaussian whose standard deviation is `width`."""
        if not width > 0:
            raise ValueError(f"width is {width}; it must be positive")
        nodes, weights = self.nodes.flatten(-2).unsqueeze(-2), self.weights.flatten(-2).unsqueeze(-2)
        heights = torch.exp(-(((grid.unsqueeze(-1) - nodes) / width) ** 2) / 2)
        return (weights * heights).sum(-1) / (width * (2 * torch.pi) ** 0.5)


def interval(values: Iterable[float]) -> tuple[float, float]:
    """The 95 % interval of the mean, mean ± t(n-1) s/√n; of one value that value twice, for nothing says its spread."""
    from scipy import special  # here, for scipy takes longer to import than all of genlib

    values = np.array(list(values), float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean
    half = float(special.stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean - half, mean + half
