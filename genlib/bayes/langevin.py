"""Langevin dynamics of many weights at once, whose law on a normal distribution is exact at any stable step."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from genlib.network import Params, dense_steps
from genlib.network.chains import dense_chain, loss_and_gradient
from genlib.network.losses import LOSSES, Loss
from genlib.network.objective import Objective, random_params

__all__ = ["Chains"]

_FRICTION = 1.5  # times √γ: less or more, and the losses of trained networks hang together for longer


class Chains:
    """Weights w that move by w' = p, p' = −∇U(w) − ηp + √(2η) ξ, η = 1.5 √γ, all from w*, p of its law.

    U(w) = nβ L(w) + γ/2 ‖w − w*‖². `losses`: L at the weights of now, `slopes`: (w − w*)·∇L there.
    """

    def __init__(
        self,
        objective: Objective,
        loss: Loss,
        count: int,
        *,
        inverse_temperature: float,
        localization: float,
        generator: torch.Generator,
    ):
        self.center, self._generator = objective.network.params, generator
        self.inverse_temperature, self.localization = inverse_temperature, localization
        self._evaluate = _evaluation(objective, loss, count)
        self.weights = {name: w.expand(count, *w.shape).clone() for name, w in self.center.items()}
        self._momenta = random_params(self.center, None, generator, (count,))
        self.losses, self.gradient = self._evaluate(self.weights)

    def step(self, size: float) -> None:
        """One step of BAOAB, its two half kicks being one (Leimkuhler & Matthews 2013). Three passes a chain.

        Where U = κw²/2, w ~ N(0, 1/κ) stays so exactly, whatever the size below 2/√κ.
        """
        kept = math.exp(-_FRICTION * math.sqrt(self.localization) * size)
        for name, w in self.weights.items():
            p = self._momenta[name]
            p.add_(self.gradient[name], alpha=-size * self.inverse_temperature)
            p.add_(w - self.center[name], alpha=-size * self.localization)
            w.add_(p, alpha=size / 2)
            noise = torch.randn(w.shape, generator=self._generator, device=w.device, dtype=w.dtype)
            p.mul_(kept).add_(noise, alpha=math.sqrt(1 - kept**2))
            w.add_(p, alpha=size / 2)
        del self.gradient  # else two of them are held while the next one is computed
        self.losses, self.gradient = self._evaluate(self.weights)

    @property
    def slopes(self) -> Float[Tensor, " chains"]:
        """How the loss rises on the way out from w*, times the way that each has gone."""
        return sum(
            torch.linalg.vecdot((w - self.center[name]).flatten(1), self.gradient[name].flatten(1))
            for name, w in self.weights.items()
        )


def _evaluation(
    objective: Objective, loss: Loss, count: int
) -> Callable[[Params], tuple[Float[Tensor, " chains"], Params]]:
    """weights ↦ their losses and gradients: of a chain of dense layers in closed form, side by side where that pays."""
    network, of_classes = objective.network, loss in ("cross_entropy", "mse") and objective.loss is LOSSES[loss]
    chain = dense_chain(network.module, network.params, objective.inputs.shape[1:])[0] if of_classes else None
    if chain is not None:

        def evaluate(weights: Params) -> tuple[Tensor, Params]:
            total, summed = 0.0, {}
            for inputs, labels in objective.batches:
                share = len(labels) / objective.samples
                of_each = (tensor.expand(count, *tensor.shape) for tensor in (inputs, labels))
                losses, gradients = loss_and_gradient(chain, weights, *of_each, loss)
                total = total + losses * share
                if share == 1:
                    return total, dict(zip(weights, gradients, strict=True))
                for name, part in zip(weights, gradients, strict=True):
                    summed[name] = summed[name].add_(part, alpha=share) if name in summed else part * share
            return total, summed

        return evaluate
    if dense_steps(network.module) is not None or objective.together >= count:
        buffers = {name: buffer.expand(count, *buffer.shape) for name, buffer in network.buffers.items()}
        return replace(objective, network=replace(network, size=count, buffers=buffers)).gradient

    def one_by_one(weights: Params) -> tuple[Tensor, Params]:
        gradients = {name: torch.empty_like(w) for name, w in weights.items()}
        losses = []
        for i in range(count):
            value, found = objective.gradient({name: w[i] for name, w in weights.items()})
            losses.append(value)
            for name, part in found.items():
                gradients[name][i] = part
        return torch.stack(losses), gradients

    return one_by_one
