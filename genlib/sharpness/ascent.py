"""Projected ascent of the loss in a ball around the weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from genlib.estimates import Maximum
from genlib.network import Params, over_models
from genlib.network.derivatives import require_derivatives
from genlib.network.losses import zero_one_loss
from genlib.network.objective import Objective, parameter_norm, random_params, seeded_generator

__all__ = ["Ball", "ascent"]

_STRIDE = 0.2  # of the radius, a step of the ascent: 20 steps find 92 to 100 % of what 200 find
_SCATTER = 0.1  # of the radius, how far from the weights a search starts


@dataclass(frozen=True)
class Ball:
    """All points within `radius` of the weights, each model's own: `box`, `l2` or `adaptive`."""

    kind: str
    radius: float
    weights: Params
    size: int | None

    @classmethod
    def around(cls, objective: Objective, kind: str, radius: float) -> "Ball":
        if objective.loss is zero_one_loss:
            raise ValueError("loss is 'error', which has no gradient; choose cross_entropy or mse")
        if kind not in ("box", "l2", "adaptive"):
            raise ValueError(f"ball is {kind!r}; choose box, l2 or adaptive")
        if not 0 < radius < torch.inf:
            raise ValueError(f"radius is {radius}; it must be positive and finite")
        require_derivatives(objective, twice=False)
        return cls(kind, radius, objective.network.params, objective.network.size)

    def center(self) -> Params:
        return {name: w.clone() for name, w in self.weights.items()}

    def climb(self, point: Params, gradient: Params, share: float) -> None:
        """A step of steepest ascent, `share` of the radius long in the ball's norm, and the projection, in place."""
        stride = share * self.radius
        if self.kind == "box":
            for name, w in self.weights.items():
                room = w.abs() + 1
                point[name].addcmul_(room, gradient[name].sign(), value=stride)
                torch.clamp(point[name], w - self.radius * room, w + self.radius * room, out=point[name])
            return
        norm = self._norm(self._unit(w) * gradient[name] for name, w in self.weights.items())
        for name, w in self.weights.items():
            point[name].addcmul_(self._unit(w).square() * gradient[name], over_models(stride / norm, w))
        length = self._norm(_ratio(point[name] - w, self._unit(w)) for name, w in self.weights.items())
        factor = (self.radius / length).clamp_max(1)
        for name, w in self.weights.items():
            torch.lerp(w, point[name], over_models(factor, w), out=point[name])

    def scatter(self, point: Params, generator: torch.Generator) -> None:
        """Move to a random place a tenth of the ball away: uniform in the box, or on the sphere."""
        distance = _SCATTER * self.radius
        if self.kind == "box":
            for name, draw in random_params(self.weights, self.size, generator, sample=torch.rand).items():
                point[name].addcmul_(point[name].abs() + 1, (2 * draw - 1).expand_as(point[name]), value=distance)
            return
        draws = random_params(self.weights, self.size, generator)
        length = parameter_norm(draws.values(), None)
        for name, draw in draws.items():
            point[name].add_(self._unit(point[name]) * draw * (distance / length))

    def _unit(self, w: Tensor) -> Tensor:
        return w.abs() if self.kind == "adaptive" else w.new_ones(())

    def _norm(self, tensors: Iterable[Tensor]) -> Float[Tensor, "*models"]:
        norm = parameter_norm(tensors, self.size)
        return norm.clamp_min(torch.finfo(norm.dtype).tiny)


@torch.no_grad()
def ascent(
    objective: Objective, ball: Ball, steps: int, restarts: int, generator: torch.Generator | None
) -> tuple[Float[Tensor, "*models"], Maximum]:
    """The loss at the weights, and the largest rise that was found."""
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps is {steps} and restarts {restarts}; both must be at least 1")
    generator = seeded_generator(generator, objective.device)
    at_rest, runs = None, []
    for restart in range(restarts):
        point = ball.center()
        if restart:
            ball.scatter(point, generator)
        found = []
        for step in range(steps):
            value, gradient = objective.gradient(point)
            if at_rest is None:
                at_rest = objective.finite(value)
                ball.scatter(point, generator)
            if step:
                found.append(value)
            ball.climb(point, gradient, _STRIDE)
            del gradient  # else two of them are held while the next one is computed
        found.append(objective(point))
        runs.append(torch.stack(found))
    rises = torch.stack(runs) - at_rest
    rises = torch.where(rises.isfinite(), rises, torch.inf).clamp_min(0)
    history = rises.amax(0).cummax(0).values
    return at_rest, Maximum(history[-1], history, restarts * (3.0 * steps + 1))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return a / b.clamp_min(torch.finfo(b.dtype).tiny)  # a weight of zero stays where it is: 0/0 is 0 here
