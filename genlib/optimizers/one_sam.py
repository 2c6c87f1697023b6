"""The mean over a batch of each sample's own SAM gradient: in closed form for dense networks, else sample by sample."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import grad, vmap

from genlib.network import ELEMENTWISE, Params, aliases, called, over_models, plainly_called
from genlib.network.chunks import side_by_side
from genlib.network.losses import Loss, per_sample_loss, sample_losses
from genlib.network.normalizations import SimplifiedLayerNorm

__all__ = ["MeanSAM"]

Pullback = Callable[[Tensor], Tensor]
_METHODS = ("auto", "closed form", "per sample")
_OF_EACH_SAMPLE = (*ELEMENTWISE, SimplifiedLayerNorm)


class _Dense(NamedTuple):
    """The names of a dense layer's parameters."""

    weight: str
    bias: str | None


Chain = list[_Dense | nn.Module]


@dataclass(frozen=True)
class MeanSAM:
    """(1/B) Σ_i ∇ℓ_i(θ + ρ g_i/‖g_i‖), g_i = ∇ℓ_i(θ), of one network or a stack; by its `chain` in closed form."""

    module: nn.Module
    rho: float
    loss: Loss
    stacked: bool
    chain: Chain | None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        rho: float,
        loss: Loss,
        *,
        moving: Collection[str],
        input_shape: Sequence[int],
        stacked: bool = False,
        method: str = "auto",
    ) -> "MeanSAM":
        """The gradient in the parameters named in `moving`; ValueError where no method covers the module."""
        chain, why = _dense_chain(module, moving, input_shape)
        if method not in _METHODS:
            raise ValueError(f"method is {method!r}; choose {', '.join(_METHODS)}")
        if method == "closed form" and chain is None:
            raise ValueError(
                f"method is 'closed form', but {why}; that covers a Sequential of dense layers, each used once and "
                "trained, with operations on each sample alone between them; method='per sample' covers the rest"
            )
        if chain is None or method == "per sample":
            _require_samples_alone(module)
            chain = None
        return cls(module, rho, loss, stacked, chain)

    def __call__(
        self, params: Params, buffers: Params, inputs: Tensor, labels: Int[Tensor, "..."]
    ) -> tuple[Float[Tensor, "*models"], Params]:
        """The mean loss at θ, and the gradient; each network of a stack has its own inputs and labels."""
        params = {name: param.detach() for name, param in params.items()}
        if self.chain is not None:
            return _closed_form(self.chain, params, inputs, labels, self.loss, self.rho)
        if not self.stacked:
            return self._per_sample(params, buffers, inputs, labels)
        found = [
            self._per_sample({n: p[i] for n, p in params.items()}, {n: b[i] for n, b in buffers.items()}, x, y)
            for i, (x, y) in enumerate(zip(inputs, labels, strict=True))
        ]
        losses, gradients = zip(*found, strict=True)
        return torch.stack(losses), {name: torch.stack([g[name] for g in gradients]) for name in params}

    def _per_sample(self, params: Params, buffers: Params, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Params]:
        size = side_by_side(params)
        parts = [self._sums(params, buffers, x, y) for x, y in zip(inputs.split(size), labels.split(size), strict=True)]
        gradients = [sum(found) / len(labels) for found in zip(*(g for _, g in parts), strict=True)]
        return sum(loss for loss, _ in parts) / len(labels), dict(zip(params, gradients, strict=True))

    def _sums(
        self, params: Params, buffers: Params, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The samples' losses at θ, and their SAM gradients, summed."""
        names = aliases(self.module)

        def of_one(params: Params, x: Tensor) -> Tensor:
            # A clone, for an operation in place may not touch the sample, which passes twice.
            return called(self.module, names, params | buffers, x.unsqueeze(0).clone()).squeeze(0)

        def along(params: Params, x: Tensor, slope: Tensor) -> Tensor:
            return (of_one(params, x) * slope).sum()

        # The loss stays outside of vmap, for not every operation of a loss can go inside.
        loss_and_slope = _loss_and_slope(self.loss, labels)
        with torch.no_grad():
            losses, slopes = loss_and_slope(vmap(of_one, (None, 0), randomness="different")(params, inputs))
            g = vmap(grad(along), (None, 0, 0), randomness="different")(params, inputs, slopes)
            norms = torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1) for part in g.values()])
            step = _step_length(norms.square().sum(0), self.rho)
            for name, part in g.items():  # not in place, for the zeros of an unused weight are one number
                g[name] = part * over_models(step, part)
        with torch.enable_grad():
            leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
            there = {name: leaves[name] + part for name, part in g.items()}
            logits = vmap(of_one, randomness="different")(there, inputs)
            slopes = loss_and_slope(logits)[1]
            return losses.sum(), torch.autograd.grad(logits, list(leaves.values()), slopes, materialize_grads=True)


def _dense_chain(module: nn.Module, moving: Collection[str], input_shape: Sequence[int]) -> tuple[Chain | None, str]:
    """The steps of a network that the closed form covers, or None and why it doesn't."""
    if type(module).forward is not nn.Sequential.forward or not plainly_called(module):
        return None, "network is no Sequential, or has hooks or a forward of its own"
    layers = list(module._modules.items())  # not named_children, which leaves out a layer that it has met before
    if odd := [name for name, layer in layers if _unknown(layer)]:
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
        name: _Dense(f"{name}.weight", layer.bias if layer.bias is None else f"{name}.bias") for name, layer in dense
    }
    return [steps.get(name, layer) for name, layer in layers if not isinstance(layer, nn.Flatten | nn.Dropout)], ""


def _unknown(layer: nn.Module) -> bool:
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) != (1, -1)
    if type(layer) is nn.Dropout:
        return layer.training
    return type(layer) is not nn.Linear and type(layer) not in _OF_EACH_SAMPLE


def _require_samples_alone(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                f"network: {name} is BatchNorm that normalizes by the batch, but here each sample is taken by itself; "
                "what is covered are networks that take a sample alone: freeze its statistics, or train by SAM"
            )


class _Record(NamedTuple):
    """Of a dense layer at θ: its input a, its output z, the gradient δ there, and |a|², with a bias |a|² + 1."""

    a: Tensor
    z: Tensor
    delta: Tensor
    square: Tensor


@torch.no_grad()
def _closed_form(
    chain: Chain, params: Params, inputs: Tensor, labels: Int[Tensor, "..."], loss: Loss, rho: float
) -> tuple[Float[Tensor, "*models"], Params]:
    """A sample's gradient in (W, b) is δ(a, 1)ᵀ, so W + s δaᵀ, b + s δ take ã to Wã + b + s δ(a·ã + 1), s = ρ/‖g‖.

    With s, δ and a held fixed, the gradient of those outputs' mean loss in W and b is the mean of the gradients.
    """
    x, loss_and_slope = inputs.flatten(labels.dim()), _loss_and_slope(loss, labels)
    logits, tape = _forward(chain, params, x)
    losses, slopes = loss_and_slope(logits)
    records, square = {}, 0.0
    for layer, a, z, delta in _backward(chain, params, tape, slopes):
        square_in = a.square().sum(-1, keepdim=True) + (layer.bias is not None)
        square = delta.square().sum(-1, keepdim=True).mul_(square_in).add_(square)
        records[layer] = _Record(a, z, delta, square_in)
    s = _step_length(square, rho)
    ascent = {layer: record._replace(delta=s * record.delta) for layer, record in records.items()}
    logits, tape = _forward(chain, params, x, ascent)
    slopes = loss_and_slope(logits)[1] / labels.shape[-1]
    gradients = {}
    for layer, a, _, delta in _backward(chain, params, tape, slopes, ascent):
        gradients[layer.weight] = delta.mT @ a
        if layer.bias is not None:
            gradients[layer.bias] = delta.sum(-2)
    return losses.mean(-1), {name: gradients[name] for name in params}


def _forward(
    chain: Chain, params: Params, x: Tensor, ascent: dict[_Dense, _Record] | None = None
) -> tuple[Tensor, list[tuple[Tensor, Tensor] | Pullback]]:
    """The outputs, and of each dense layer its input and output, of each other operation its pullback."""
    tape = []
    for layer in chain:
        if not isinstance(layer, _Dense):
            x, kept = _with_pullback(layer, x)
        elif ascent is None:
            kept = x, _linear(params, layer, x)
        elif (rest := ascent[layer]).a is x:  # the first layer sees what it saw
            kept = x, rest.z.addcmul(rest.delta, rest.square)
        else:
            product = (rest.a * x).sum(-1, keepdim=True) + (layer.bias is not None)
            kept = x, _linear(params, layer, x).addcmul_(rest.delta, product)
        if isinstance(layer, _Dense):
            x = kept[1]
        tape.append(kept)
    return x, tape


def _backward(
    chain: Chain,
    params: Params,
    tape: list[tuple[Tensor, Tensor] | Pullback],
    delta: Tensor,
    ascent: dict[_Dense, _Record] | None = None,
) -> Iterator[tuple[_Dense, Tensor, Tensor, Tensor]]:
    """Of each dense layer, the last first, its input, its output, and the gradient there."""
    first = next(layer for layer in chain if isinstance(layer, _Dense))
    for layer, kept in zip(reversed(chain), reversed(tape), strict=True):
        if not isinstance(layer, _Dense):
            delta = kept(delta)
            continue
        yield layer, *kept, delta
        if layer is first:
            return
        below = delta @ params[layer.weight]
        if ascent is not None:
            rest = ascent[layer]
            below.addcmul_(rest.a, (rest.delta * delta).sum(-1, keepdim=True))
        delta = below


def _linear(params: Params, layer: _Dense, x: Tensor) -> Tensor:
    weight, bias = params[layer.weight], params.get(layer.bias)
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return x @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


def _with_pullback(layer: nn.Module, x: Tensor) -> tuple[Tensor, Pullback]:
    """The operation's outputs, and the function that takes a gradient there to one at its inputs."""
    if type(layer) is nn.ReLU:  # by hand, which is several times as fast
        y = x.relu()
        return y, lambda g: torch.ops.aten.threshold_backward(g, y, 0)
    if type(layer) is SimplifiedLayerNorm:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = 1 / norm.clamp_min(layer.epsilon)
        y, scaled = x * inverse, norm >= layer.epsilon
        return y, lambda g: torch.addcmul(g, y, (g * y).sum(-1, keepdim=True) * scaled, value=-1) * inverse
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = layer(x.clone() if getattr(layer, "inplace", False) else x)
    return y.detach(), lambda g: torch.autograd.grad(y, x, g)[0]


def _loss_and_slope(loss: Loss, labels: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The function from logits to one loss a sample, and its gradient there."""

    def by_autograd(logits: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            losses = sample_losses(per_sample_loss(loss), logits, labels)
            return losses.detach(), torch.autograd.grad(losses.sum(), logits)[0]

    def by_hand(logits: Tensor) -> tuple[Tensor, Tensor]:
        r = logits.detach() - sides
        return r.square().squeeze(-1), 2 * r

    sides = (2.0 * labels - 1).unsqueeze(-1)
    return lambda logits: (by_hand if loss == "mse" and logits.shape[-1] == 1 else by_autograd)(logits)


def _step_length(square: Tensor, rho: float) -> Tensor:
    """ρ/‖g‖; a gradient of zero moves nothing, and below this one its square leaves the numbers."""
    return rho * square.clamp_min(torch.finfo(square.dtype).tiny).rsqrt()
