"""How much the loss rises at worst in a ball around the weights."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from genlib.estimates import Maximum
from genlib.network import Network
from genlib.network.losses import Loss
from genlib.network.objective import Objective
from genlib.network.precision import full_precision
from genlib.sharpness.ascent import Ball, ascent

__all__ = ["keskar_sharpness", "sam_sharpness", "worst_case_sharpness"]


@full_precision()
def worst_case_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    radius: float,
    ball: str = "box",
    steps: int,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Maximum:
    """The largest rise of the loss that projected ascent finds in a ball around the weights, max L(w + ν) − L(w).

    `ball`: `box`, |ν_i| ≤ r(|w_i| + 1) (Keskar et al. 2017), by the gradient's sign; `l2`, |ν| ≤ r; `adaptive`,
    |ν/|w|| ≤ r (Kwon et al. 2021). Steps of 0.2 r; a start a tenth of the ball away at random: the first run takes
    its first gradient at w itself, further restarts at their start. `history` is the best rise after each step, over
    all restarts. A loss that isn't finite counts as an infinite rise. No search certifies a maximum.
    Cost: restarts × (steps gradients and one forward), a gradient being three forward passes.
    ValueError: as `Objective.of`, an unknown ball, the loss `error`, a radius that isn't positive.
    """
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    return ascent(objective, Ball.around(objective, ball, radius), steps, restarts, generator)[1]


@full_precision()
def keskar_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    radius: float,
    steps: int,
    restarts: int = 1,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Maximum:
    """Keskar's sharpness, 100 (max L(w + ν) − L(w)) / (1 + L(w)) over the box |ν_i| ≤ r(|w_i| + 1), in per cent.

    Search, cost and errors as `worst_case_sharpness`. Keskar et al. 2017.
    """
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    at_rest, found = ascent(objective, Ball.around(objective, "box", radius), steps, restarts, generator)
    factor = 100 / (1 + at_rest)
    return Maximum(factor * found.value, factor * found.history, found.passes)


@full_precision()
@torch.no_grad()
def sam_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    radius: float,
    ball: str = "l2",
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Float[Tensor, "*models"]:
    """The rise of the loss after one step to the edge of the ball along the gradient, L(w + r ∇L/|∇L|) − L(w).

    `ball` as in `worst_case_sharpness`. Zero where the gradient is. Cost: one gradient and one forward pass, four
    forward passes. ValueError: as `worst_case_sharpness`, a loss that isn't finite. Foret et al. 2021.
    """
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    within = Ball.around(objective, ball, radius)
    at_rest, gradient = objective.gradient(objective.network.params)
    objective.finite(at_rest)
    edge = within.center()
    within.climb(edge, gradient, 1.0)
    risen = objective(edge)
    if not risen.isfinite().all():
        raise ValueError(f"radius is {radius}; the loss there is not finite, take a smaller one")
    return risen - at_rest
