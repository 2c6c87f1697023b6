"""The gradients of the samples' own losses in the weights: how far each is from their mean."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import grad, vmap

from genlib.curvature.gauss_newton import squared_gradients, unknown_rows, with_records
from genlib.curvature.products import objective_of
from genlib.curvature.stacks import joined
from genlib.network import Network, Params
from genlib.network.chunks import side_by_side
from genlib.network.errors import out_of_memory
from genlib.network.losses import Loss
from genlib.network.objective import Objective, batches, require_finite, with_slope
from genlib.network.outputs import logits_of
from genlib.network.precision import full_precision

__all__ = ["gradient_variance", "variance_of"]


def variance_of(objective: Objective) -> Float[Tensor, ""]:
    """(1/N) Σ |∇ℓ_n|² − |∇L|², of one network."""
    # Of the layers "mse" says what no loss would change.
    unknown = unknown_rows(objective, "mse")
    square, mean = (_by_samples if unknown else _by_layers)(objective)
    return (square - sum(torch.linalg.vector_norm(g, dtype=torch.float64).square() for g in mean)).clamp(min=0)


def _by_layers(objective: Objective) -> tuple[Tensor, list[Tensor]]:
    """The mean square and the mean of the gradients; of each layer's weight no sample's own gradient is formed."""
    module, met = with_records(objective.network)
    params = [p for p in module.parameters() if p.requires_grad]
    square, mean = 0.0, [torch.zeros_like(p) for p in params]
    for inputs, labels in objective.batches:
        met.clear()
        with torch.enable_grad():
            loss = objective.losses(logits_of(module(inputs), len(inputs)), labels).sum()
            found = torch.autograd.grad(loss, [*(output for *_, output in met), *params], materialize_grads=True)
        for (_, layer, x, _), delta in zip(met, found, strict=False):
            square = square + squared_gradients(layer, x, delta.unsqueeze(0)).double().sum() / objective.samples
        for total, part in zip(mean, found[len(met) :], strict=True):
            total.add_(part, alpha=1 / objective.samples)
        del loss, found  # before those of the next chunk are there
    met.clear()
    return square, mean


def _by_samples(objective: Objective) -> tuple[Tensor, list[Tensor]]:
    weights = objective.network.params

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return objective.losses(objective.network.apply(params, x.unsqueeze(0)), y.unsqueeze(0)).sum()

    gradients = _at_once if _can_be_batched(objective, loss) else _one_by_one
    at_once = min(objective.chunk_size, side_by_side(weights)) if gradients is _at_once else 1
    square, mean = 0.0, {name: torch.zeros_like(w) for name, w in weights.items()}
    for inputs, labels in batches(objective.inputs, objective.labels, at_once):
        for name, g in gradients(loss, weights, inputs, labels).items():
            square = square + g.double().square().sum() / objective.samples
            mean[name] += g.sum(0) / objective.samples
    return square, list(mean.values())


def _at_once(loss: Callable, weights: Params, inputs: Tensor, labels: Tensor) -> Params:
    return vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, labels)


def _one_by_one(loss: Callable, weights: Params, inputs: Tensor, labels: Tensor) -> Params:
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    with torch.enable_grad():
        own = with_slope(loss(leaves, inputs[0], labels[0]))
    found = torch.autograd.grad(own, list(leaves.values()), materialize_grads=True)
    return {name: g.unsqueeze(0) for name, g in zip(leaves, found, strict=True)}


def _can_be_batched(objective: Objective, loss: Callable) -> bool:
    """Whether vmap follows the network: not where it can't be traced, and may look at its input, nor past what is no
    operation of torch's own."""
    if objective.network.graph is None:
        return False
    try:
        _at_once(loss, objective.network.params, objective.inputs[:2], objective.labels[:2])
    except (RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise
        return False
    return True


@full_precision()
def gradient_variance(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    *,
    loss: Loss = "cross_entropy",
    chunk_size: int | None = None,
) -> Float[Tensor, "*models"]:
    """The variance of the samples' gradients, (1/N) Σ_n |∇ℓ_n(w) − ∇L(w)|²: the noise of a step on one sample.

    It is the trace of their covariance. Where each layer is a known one and runs once, |∇ℓ_n| comes from what enters
    the layer and the gradient at its output, and no sample's own gradient is formed; else they are formed, as many at a
    time as fit into 64 MB. A stack gives one value a model, one after the other.
    Cost: three forward passes. ValueError: as `Objective.of`; the loss `error`; a variance that isn't finite.
    Jiang et al. 2020.
    """
    objective = objective_of(network, inputs, labels, loss, chunk_size, twice=False)
    found = joined([variance_of(one) for one in objective.each], objective.network.size)
    return require_finite(found, "variance of gradients").to(next(iter(objective.network.params.values())).dtype)
