"""Chains of dense layers, forward and back in closed form: autograd takes up to half the time of a small network."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib.network.calls import in_sequence, plainly_called
from genlib.network.functional import Params
from genlib.network.losses import Loss, per_sample_loss, sample_losses
from genlib.network.normalizations import SimplifiedLayerNorm
from genlib.network.operations import ELEMENTWISE, changes_nothing

__all__ = [
    "Chain",
    "Dense",
    "backward",
    "dense_chain",
    "forward",
    "linear",
    "loss_and_gradient",
    "loss_and_slope",
    "of_weights",
    "transposed",
]

_STEPS = (nn.Linear, *ELEMENTWISE, SimplifiedLayerNorm, nn.Dropout)
# By hand, which takes a fraction of the time: φ, and what takes the gradient at y = φ(x), and y, to that at x.
_BY_HAND = {
    nn.ReLU: (torch.relu, lambda g, y: torch.ops.aten.threshold_backward(g, y, 0)),
    nn.Tanh: (torch.tanh, torch.ops.aten.tanh_backward),
    nn.Sigmoid: (torch.sigmoid, torch.ops.aten.sigmoid_backward),
}


class Dense(NamedTuple):
    """The names of a dense layer's parameters."""

    weight: str
    bias: str | None


Chain = list[Dense | nn.Module]


def dense_chain(module: nn.Module, moving: Collection[str], input_shape: Sequence[int]) -> tuple[Chain | None, str]:
    """The steps of a Sequential of dense layers, each used once and `moving`, and operations on each sample alone.

    Samples come flat. Else None, and why.
    """
    if not in_sequence(module) or not plainly_called(module):
        return None, "network is no Sequential, or has hooks, a forward of its own or weights that are no parameters"
    layers = list(module._modules.items())  # not named_children, which leaves out a layer that it has met before
    if odd := [name for name, layer in layers if not changes_nothing(layer) and type(layer) not in _STEPS]:
        return None, f"network has the layer {odd[0]}, {type(module._modules[odd[0]]).__name__}"
    if len(input_shape) != 1 and type(layers[0][1]) is not nn.Flatten:
        return None, f"its inputs have the shape {tuple(input_shape)} and aren't flattened"
    dense = [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear)]
    if len({id(layer.weight) for _, layer in dense}) < len(dense):
        return None, "network uses a weight twice"
    own = {f"{name}.{kind}" for name, layer in dense for kind, p in layer._parameters.items() if p is not None}
    if own != set(moving):
        return None, "network has weights that aren't trained, are used twice, or stand beside those of its layers"
    steps = {
        name: Dense(f"{name}.weight", layer.bias if layer.bias is None else f"{name}.bias") for name, layer in dense
    }
    return [steps.get(name, layer) for name, layer in layers if not changes_nothing(layer)], ""


def forward(chain: Chain, through: Callable[[Dense, Tensor], Tensor], x: Tensor) -> tuple[Tensor, list]:
    """The outputs, and of each dense layer, which is passed `through`, its input, of each other step its pullback."""
    tape = []
    for step in chain:
        if isinstance(step, Dense):
            tape.append(x)
            x = through(step, x)
        else:
            x, pullback = _with_pullback(step, x)
            tape.append(pullback)
    return x, tape


def backward(
    chain: Chain, back: Callable[[Dense, Tensor], Tensor], tape: list, delta: Tensor
) -> Iterator[tuple[Dense, Tensor, Tensor]]:
    """Of each dense layer, the last first, its input a, and the gradient δ at its output, which passes `back`."""
    first = next(step for step in chain if isinstance(step, Dense))
    for step, kept in zip(reversed(chain), reversed(tape), strict=True):
        if not isinstance(step, Dense):
            delta = kept(delta)
            continue
        yield step, kept, delta
        if step is first:
            return
        delta = back(step, delta)


def linear(params: Params, layer: Dense, x: Float[Tensor, "*models n inputs"]) -> Float[Tensor, "*models n units"]:
    """Wx + b. A stack's samples lie last in memory, where all that follows takes less time."""
    weight, bias = params[layer.weight], params.get(layer.bias)
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return (weight @ x.mT if bias is None else torch.baddbmm(bias.unsqueeze(2), weight, x.mT)).mT


def transposed(
    params: Params, layer: Dense, delta: Float[Tensor, "*models n units"]
) -> Float[Tensor, "*models n inputs"]:
    """Wᵀδ, laid out as `linear` lays it out."""
    weight = params[layer.weight]
    return delta @ weight if weight.dim() == 2 else (weight.mT @ delta.mT).mT


def of_weights(layer: Dense, a: Float[Tensor, "*models n inputs"], delta: Float[Tensor, "*models n units"]) -> Params:
    """The gradient in a layer's weights: Σ_i δ_i a_iᵀ, and Σ_i δ_i in its bias."""
    found = {layer.weight: delta.mT @ a}
    return found if layer.bias is None else found | {layer.bias: delta.sum(-2)}


@torch.no_grad()
def loss_and_gradient(
    chain: Chain, params: Params, inputs: Tensor, labels: Int[Tensor, "*models n"], loss: Loss
) -> tuple[Float[Tensor, "*models"], list[Tensor]]:
    """The mean loss and its gradient in each of `params`: of one network, or of each of a stack on its own samples.

    Cost: 1 forward pass, and 2 backward but for the first layer, which takes 1.
    """
    logits, tape = forward(chain, partial(linear, params), inputs.flatten(labels.dim()))
    losses, slope = loss_and_slope(loss, labels, logits, 1 / labels.shape[-1])
    found = {}
    for layer, a, delta in backward(chain, partial(transposed, params), tape, slope):
        found |= of_weights(layer, a, delta)
    return losses.mean(-1), [found[name] for name in params]


def _with_pullback(layer: nn.Module, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The operation's outputs, and the function that takes a gradient there to one at its inputs."""
    if type(layer) in _BY_HAND:
        activation, pullback = _BY_HAND[type(layer)]
        y = activation(x)
        return y, lambda g: pullback(g, y)
    if type(layer) is SimplifiedLayerNorm:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = 1 / norm.clamp_min(layer.epsilon)
        y, scaled = x * inverse, norm >= layer.epsilon
        return y, lambda g: torch.addcmul(g, y, (g * y).sum(-1, keepdim=True) * scaled, value=-1) * inverse
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = layer(x.clone() if getattr(layer, "inplace", False) else x)
    return y.detach(), lambda g: torch.autograd.grad(y, x, g)[0]


def loss_and_slope(
    loss: Loss, labels: Int[Tensor, "*models n"], logits: Float[Tensor, "*models n classes"], share: float = 1.0
) -> tuple[Float[Tensor, "*models n"], Float[Tensor, "*models n classes"]]:
    """One loss a sample, and the gradient of `share` of their sum in the logits."""
    classes = logits.shape[-1]
    if loss == "mse":
        residuals = logits - (F.one_hot(labels, classes) if classes > 1 else 2 * labels.unsqueeze(-1) - 1)
        return residuals.square().mean(-1), residuals * (2 * share / classes)
    if loss == "cross_entropy" and classes > 1:
        return _cross_entropy(labels, logits, share)
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        losses = sample_losses(per_sample_loss(loss), logits, labels)
        return losses.detach(), torch.autograd.grad(losses.sum() * share, logits)[0]


def _cross_entropy(labels: Tensor, logits: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """-ln p_y, and p less the one-hot label; of a stack the classes lie on axis 1 too, where a softmax takes less."""
    z = logits if labels.dim() == 1 else logits.mT
    log_p = z.log_softmax(1)
    one_hot = torch.zeros_like(log_p).scatter_(1, labels.unsqueeze(1), -share)
    slope = torch.ops.aten._log_softmax_backward_data(one_hot, log_p, 1, log_p.dtype)
    return F.nll_loss(log_p, labels, reduction="none"), slope if labels.dim() == 1 else slope.mT
