"""The loss at many weights at once, and a loss on a grid."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network, Params, dense_steps
from genlib.network.losses import Loss
from genlib.network.objective import Objective, require_finite

__all__ = [
    "ROUNDING",
    "Surface",
    "equal_steps",
    "losses_at",
    "objective_of",
    "on_grid",
    "over",
    "require_points",
    "somewhere_finite",
]

_ROWS = 2048  # samples that pass at a time: 2 to 4 times as fast for small dense networks on a CPU, slower for none
ROUNDING = 16  # in units of the last place, what may be lost in the loss or in the weights' differences


@dataclass(frozen=True)
class Surface:
    """The loss on a grid, a row for each y, and the places (x, y) of the networks; infinite where it is not finite."""

    x: Float[Tensor, " columns"]
    y: Float[Tensor, " rows"]
    losses: Float[Tensor, "*models rows columns"]
    networks: Float[Tensor, "networks 2"]


def objective_of(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, loss: Loss, chunk_size: int | None
) -> Objective:
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    whole = objective.samples <= objective.chunk_size
    if chunk_size is None and whole and dense_steps(objective.network.module) is not None:
        return replace(objective, chunk_size=max(objective.chunk_size, _ROWS))
    return objective


def losses_at(
    objective: Objective, points: int, at: Callable[[int | slice], Params]
) -> Float[Tensor, "points *models"]:
    """The loss at each of the points, infinite where it isn't finite, as many side by side as one chunk holds."""
    together = objective.together
    if together == 1:
        losses = torch.stack([objective(at(i)) for i in range(points)])
    else:
        parts = [slice(i, min(i + together, points)) for i in range(0, points, together)]
        losses = torch.cat([objective(at(part), part.stop - part.start) for part in parts])
    return torch.where(losses.isfinite(), losses, torch.inf)


def on_grid(
    objective: Objective, directions: Sequence[Params], x: Float[Tensor, "rows columns"], y: Tensor
) -> Float[Tensor, "*models rows columns"]:
    """The loss at w + x d₁ + y d₂."""
    weights, (first, second) = objective.network.params, directions
    a, b = x.flatten(), y.flatten()

    def at(i: int | slice) -> Params:
        return {
            name: torch.addcmul(w, over(a[i], w, objective), first[name]).addcmul(
                over(b[i], w, objective), second[name]
            )
            for name, w in weights.items()
        }

    losses = somewhere_finite(losses_at(objective, x.numel(), at))
    return losses.movedim(0, -1).unflatten(-1, x.shape)


def somewhere_finite(losses: Float[Tensor, "points *models"]) -> Float[Tensor, "points *models"]:
    require_finite(losses.amin(0), "loss")
    return losses


def over(values: Tensor, w: Tensor, objective: Objective) -> Tensor:
    """One value for all of a weight tensor, or one a point or a model, each over its whole tensor."""
    axes = w.dim() - (objective.network.size is not None)
    return values.to(w.dtype).reshape(*values.shape, *[1] * axes)


def equal_steps(low: float, high: float, points: int, like: Tensor) -> Float[Tensor, " points"]:
    return torch.linspace(low, high, points, dtype=like.dtype, device=like.device)


def require_points(points: int) -> None:
    if points < 2:
        raise ValueError(f"points is {points}; give at least 2, one for each end")
