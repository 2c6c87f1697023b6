"""Flatness of the last layer relative to its weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.curvature.stacks import joined
from genlib.network import Network
from genlib.network.door import spread
from genlib.network.losses import logits_of_classes
from genlib.network.objective import Objective, require_finite, stand_ins
from genlib.network.outputs import logits_of
from genlib.network.precision import full_precision

__all__ = ["relative_flatness"]

_ALIKE = 1e-3  # relative


@full_precision()
def relative_flatness(
    network: nn.Module | Network, inputs: Tensor, *, chunk_size: int | None = None
) -> Float[Tensor, "*models"]:
    """κ = Σ_ss' ⟨w_s, w_s'⟩ tr H_ss', H_ss' the Hessian of the mean cross-entropy in the rows w_s of the last layer.

    For logits f_s = ⟨w_s, φ⟩ + b_s it is the mean of |φ|² Σ_{s<s'} p_s p_s' |w_s − w_s'|² over the samples, p the class
    probabilities, whatever comes before the last layer; no label enters. A layer times a constant and the one before it
    divided by it leave κ as it is. A network of one output f has the logits 0 and f. A stack: one after the other.
    Cost: one forward pass, and two over a few samples. ValueError: as `Objective.of`; a network whose outputs aren't
    those of a dense layer that runs once. Petzka et al. 2021.
    """
    network = Network.of(network)
    objective = Objective.of(network, inputs, stand_ins(inputs), "cross_entropy", chunk_size)
    found = [_of_one(one) for one in objective.each]
    return require_finite(joined(found, network.size), "relative flatness")


def _of_one(objective: Objective) -> Float[Tensor, ""]:
    module, met = _with_dense_inputs(objective.network)
    place = _last_layer(module, met, spread(objective.inputs, 0).to(objective.device))
    rows = logits_of_classes(met[place][0].weight.detach().double().T).T  # of one output f the logits 0 and f
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    total = 0.0
    for inputs, _ in objective.batches:
        met.clear()
        with torch.no_grad():
            p = logits_of_classes(logits_of(module(inputs), len(inputs))).double().softmax(1)
        total = total + ((p @ apart * p).sum(1) / 2 * met[place][1].double().square().sum(1)).sum()
    return (total / objective.samples).to(next(iter(objective.network.params.values())).dtype)


def _with_dense_inputs(network: Network) -> tuple[nn.Module, list[tuple[nn.Linear, Tensor]]]:
    """A copy that shares every tensor, and the list where it writes each dense layer and its input as it runs."""
    module, met = network.shared_copy(requires_grad=True), []

    def record(layer: nn.Linear, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        met.append((layer, (args[0] if args else named["input"]).detach()))

    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.register_forward_hook(record, with_kwargs=True)
    return module, met


def _last_layer(module: nn.Module, met: list, inputs: Tensor) -> int:
    """The place in `met` of the layer whose outputs Wφ + b are the logits, for φ on which W has no bearing."""
    with torch.enable_grad():
        logits = require_finite(logits_of(module(inputs), len(inputs)), "output")
    cotangent = (
        1 + torch.arange(logits.numel(), dtype=logits.dtype, device=logits.device).view_as(logits) / logits.numel()
    )
    for place, (layer, features) in enumerate(met):
        if features.shape != (len(inputs), layer.in_features):
            continue
        outputs = nn.functional.linear(features, layer.weight, layer.bias).detach()
        if _alike(outputs, logits.detach()):
            (slope,) = torch.autograd.grad(logits, layer.weight, cotangent, retain_graph=True, materialize_grads=True)
            if _alike(slope, cotangent.T @ features):
                return place
    raise ValueError(
        "network: its outputs aren't those of a dense layer that runs once, so the weights of its last layer aren't "
        "known; take hessian_trace or another row"
    )


def _alike(found: Tensor, true: Tensor) -> bool:
    return found.shape == true.shape and bool((found - true).abs().max() <= _ALIKE * true.abs().max())
