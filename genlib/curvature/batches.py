"""How the loss of a batch bends along its own gradient."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from genlib.curvature.products import hessian, objective_of
from genlib.curvature.stacks import joined_estimates
from genlib.estimates import Estimate
from genlib.network import Network
from genlib.network.losses import Loss
from genlib.network.objective import Objective, seeded_generator
from genlib.network.precision import full_precision
from genlib.network.targets import Compared

__all__ = ["batch_passes", "batch_sharpness"]


@full_precision()
def batch_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    batch_size: int = 64,
    batches: int = 16,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """E_B g_BᵀH_Bg_B/‖g_B‖², g_B and H_B the gradient and the Hessian of the mean loss over a batch B drawn at random.

    Training with a step η and without momentum settles where it is 2/η (Andreyev & Beneventano 2024). A batch has no
    sample twice, and class weights of the loss are over the batch's own sum of them, as in training; the standard error
    is that over `batches` batches. Where `batch_size` is no less than the number of samples, there is one batch, and
    the value is exact. The networks of a stack see the same batches.
    Cost: 12 forward passes over each batch. ValueError: as `Objective.of`; the loss `error`; fewer than 2 batches; a
    batch without a gradient, or whose labels are all ignored.
    """
    if batches < 2:
        raise ValueError(f"batches is {batches}; draw at least 2, for the error comes from their spread")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    objective = objective_of(network, inputs, labels, loss, chunk_size)
    generator, n = seeded_generator(generator, objective.device), objective.samples
    drawn = [torch.arange(n, device=objective.inputs.device)]
    if batch_size < n:
        orders = (torch.randperm(n, generator=generator, device=objective.device) for _ in range(batches))
        drawn = [order[:batch_size].to(objective.inputs.device) for order in orders]
    passes = batch_passes(n, batch_size, batches)
    found = [_estimate([_along_gradient(_part(one, batch)) for batch in drawn], passes) for one in objective.each]
    return joined_estimates(found, objective.network.size, "batch sharpness")


def batch_passes(samples: int, batch_size: int = 64, batches: int = 16) -> float:
    """The forward passes over the data that `batch_sharpness` takes."""
    return 12.0 if batch_size >= samples else 12.0 * batch_size * batches / samples


def _part(objective: Objective, batch: Int[Tensor, " n"]) -> Objective:
    labels, loss = objective.labels[batch.to(objective.labels.device)], objective.loss
    loss = loss.of_part(labels) if isinstance(loss, Compared) else loss
    return replace(objective, inputs=objective.inputs[batch], labels=labels, loss=loss)


def _along_gradient(objective: Objective) -> Float[Tensor, ""]:
    """gᵀHg/‖g‖²."""
    _, gradient = objective.gradient(objective.network.params)
    g = torch.cat([part.flatten() for part in gradient.values()])
    if not g.any():
        raise ValueError("network: its gradient over a batch is zero, and so is no direction; measure it at other data")
    direction = g / torch.linalg.vector_norm(g, dtype=torch.float64).to(g)
    return direction @ (hessian(objective) @ direction)


def _estimate(values: list[Float[Tensor, ""]], passes: float) -> Estimate:
    each = torch.stack(values)
    error = each.std() / len(each) ** 0.5 if len(each) > 1 else torch.zeros_like(each[0])
    return Estimate(each.mean(), error, passes)
