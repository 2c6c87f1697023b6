"""The mean over a batch of each sample's own SAM gradient: in closed form for dense networks, else sample by sample."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import grad, vmap

from genlib.network import Params, aliases, called, over_models
from genlib.network.chains import (
    Chain,
    Dense,
    backward,
    dense_chain,
    forward,
    linear,
    loss_and_slope,
    of_weights,
    transposed,
)
from genlib.network.chunks import side_by_side
from genlib.network.losses import Loss

__all__ = ["MeanSAM"]

_METHODS = ("auto", "closed form", "per sample")


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
        chain, why = dense_chain(module, moving, input_shape)
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
        if self.chain is not None:
            return _closed_form(self.chain, params, inputs, labels, self.loss, self.rho)
        params = {name: param.detach() for name, param in params.items()}
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
        with torch.no_grad():
            logits = vmap(of_one, (None, 0), randomness="different")(params, inputs)
            losses, slopes = loss_and_slope(self.loss, labels, logits)
            g = vmap(grad(along), (None, 0, 0), randomness="different")(params, inputs, slopes)
            norms = torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1) for part in g.values()])
            step = _step_length(norms.square().sum(0), self.rho)
            for name, part in g.items():  # not in place, for the zeros of an unused weight are one number
                g[name] = part * over_models(step, part)
        with torch.enable_grad():
            leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
            there = {name: leaves[name] + part for name, part in g.items()}
            logits = vmap(of_one, randomness="different")(there, inputs)
            slopes = loss_and_slope(self.loss, labels, logits)[1]
            return losses.sum(), torch.autograd.grad(logits, list(leaves.values()), slopes, materialize_grads=True)


def _require_samples_alone(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            raise ValueError(
                f"network: {name} is BatchNorm that normalizes by the batch, but here each sample is taken by itself; "
                "what is covered are networks that take a sample alone: freeze its statistics, or train by SAM"
            )


class _Record(NamedTuple):
    """Of a dense layer at θ: its input a, the gradient δ at its output, and |a|², with a bias |a|² + 1."""

    a: Tensor
    delta: Tensor
    square: Tensor


@torch.no_grad()
def _closed_form(
    chain: Chain, params: Params, inputs: Tensor, labels: Int[Tensor, "..."], loss: Loss, rho: float
) -> tuple[Float[Tensor, "*models"], Params]:
    """A sample's gradient in (W, b) is δ(a, 1)ᵀ, so W + s δaᵀ, b + s δ take ã to Wã + b + s δ(a·ã + 1), s = ρ/‖g‖.

    With s, δ and a held fixed, the gradient of those outputs' mean loss in W and b is the mean of the gradients.
    """
    x, outputs, records, square = inputs.flatten(labels.dim()), {}, {}, 0.0

    def through(layer: Dense, a: Tensor) -> Tensor:
        outputs[layer] = linear(params, layer, a)
        return outputs[layer]

    logits, tape = forward(chain, through, x)
    losses, slopes = loss_and_slope(loss, labels, logits)
    for layer, a, delta in backward(chain, partial(transposed, params), tape, slopes):
        square_in = a.square().sum(-1, keepdim=True) + (layer.bias is not None)
        square = delta.square().sum(-1, keepdim=True).mul_(square_in).add_(square)
        records[layer] = _Record(a, delta, square_in)
    s = _step_length(square, rho)  # times δ first, of which it may be the inverse
    records = {layer: record._replace(delta=s * record.delta) for layer, record in records.items()}

    def perturbed(layer: Dense, x: Tensor) -> Tensor:
        a, delta, product = records[layer]
        if a is x:  # the first layer sees what it saw; not in place, for a layer above may have seen its output itself
            return outputs[layer].addcmul(delta, product)
        product = (a * x).sum(-1, keepdim=True) + (layer.bias is not None)
        return linear(params, layer, x).addcmul_(delta, product)

    def back(layer: Dense, slope: Tensor) -> Tensor:
        a, delta, _ = records[layer]
        return transposed(params, layer, slope).addcmul_(a, (delta * slope).sum(-1, keepdim=True))

    logits, tape = forward(chain, perturbed, x)
    slopes, gradient = loss_and_slope(loss, labels, logits, 1 / labels.shape[-1])[1], {}
    for layer, a, delta in backward(chain, back, tape, slopes):
        gradient |= of_weights(layer, a, delta)
    return losses.mean(-1), {name: gradient[name] for name in params}


def _step_length(square: Tensor, rho: float) -> Tensor:
    """ρ/‖g‖; a gradient of zero moves nothing, and below this one its square leaves the numbers."""
    return rho * square.clamp_min(torch.finfo(square.dtype).tiny).rsqrt()
