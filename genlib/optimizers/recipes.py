"""Training that looks for flat minima: SAM, the mean of 1-SAM over a batch, and noise on the labels."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from genlib.network import Network, Params, over_models
from genlib.network.losses import Loss
from genlib.network.objective import Objective, parameter_norm
from genlib.network.precision import full_precision, upcast
from genlib.network.targets import Compared
from genlib.optimizers.one_sam import MeanSAM
from genlib.optimizers.statistics import kept_wherever

__all__ = ["SAM", "Ascent", "LabelNoise", "OneSAM", "Recipe", "one_sam_gradient", "project_first_layer"]

Base = str | type[torch.optim.Optimizer]
Gradients = Sequence[Tensor | None]
_BASES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}


@dataclass(frozen=True)
class SAM:
    """Sharpness-aware minimization: the base optimizer's step with ∇L(θ + ρ g/‖g‖), g = ∇L(θ), L the batch's loss.

    `adaptive`: the ascent is ρ T²g/‖Tg‖, T = |θ|, which no rescaling of the units changes (Kwon et al. 2021, without
    the constant that they add to T). `base`: sgd, adam, rmsprop, or a class of torch optimizers, to which `fit` gives
    those of its lr, momentum and weight_decay that it takes. For a loop of one's own, `SAM(0.05)(net.parameters(),
    lr=0.1)` is a torch optimizer, whose `step` needs a closure that zeroes the gradients, computes the loss, calls its
    backward and returns it; a group of parameters may have a `rho` of its own, while ‖g‖ is that of all groups. Where
    g = 0 nothing is perturbed. BatchNorm's running statistics, momentum and weight decay are those of θ. Cost a step: 6
    forward passes; memory: one more copy of the weights.
    ValueError: rho not positive and finite, an unknown base. Foret et al. 2021.
    """

    rho: float
    base: Base = "sgd"
    adaptive: bool = False

    def __post_init__(self):
        _require_radius(self.rho)
        _require_base(self.base)

    def __call__(self, params, **options) -> torch.optim.Optimizer:
        """The torch optimizer; `options` are the base's."""
        return _SharpnessAware(self, params, options)


@dataclass(frozen=True)
class OneSAM:
    """SAM of batch size one, averaged over the batch: the base's step with (1/B) Σ_i ∇ℓ_i(θ + ρ g_i/‖g_i‖), g_i = ∇ℓ_i.

    With batches of one it is the 1-SAM of Wen, Li and Ma (2023), on the full batch that step's exact expectation. To be
    given to `fit`; in a loop of one's own take `one_sam_gradient`, which says what it costs and covers.
    ValueError: rho not positive and finite, an unknown base.
    """

    rho: float
    base: Base = "sgd"

    def __post_init__(self):
        _require_radius(self.rho)
        _require_base(self.base)


@dataclass(frozen=True)
class LabelNoise:
    """At each step every label of the batch is replaced, with this `probability`, by a class drawn uniformly.

    To be given to `fit`; in a loop of one's own train on `noisy(labels, classes)` with any optimizer.
    ValueError: a probability outside (0, 1], an unknown base. Blanc et al. 2020, Damian et al. 2021.
    """

    probability: float
    base: Base = "sgd"

    def __post_init__(self):
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability is {self.probability}; it must be above 0 and at most 1")
        _require_base(self.base)

    def noisy(
        self, labels: Int[Tensor, " n"], classes: int, *, generator: torch.Generator | None = None
    ) -> Int[Tensor, " n"]:
        """A new draw; the class that is drawn may be the true one."""
        replaced = torch.rand(labels.shape, generator=generator, device=labels.device) < self.probability
        drawn = torch.randint(classes, labels.shape, generator=generator, device=labels.device)
        return torch.where(replaced, drawn, labels)


Recipe = SAM | OneSAM | LabelNoise


@dataclass(frozen=True)
class _FirstLayerProjection:
    norm: float

    def __call__(self, params: Params) -> None:
        first = next(iter(params)).rpartition(".")[0]
        own = [tensor for name, tensor in params.items() if name.rpartition(".")[0] == first]
        factor = self.norm / parameter_norm(own, len(own[0]))
        torch._foreach_mul_(own, [over_models(factor, tensor) for tensor in own])


def project_first_layer(norm: float) -> Callable[[Params], None]:
    """For `fit(…, project=…)`: after each step the first layer's weights and biases together have this Frobenius norm.

    It scales (W₁, b₁), of each network by itself. ValueError: a norm that isn't positive and finite.
    """
    if not 0 < norm < math.inf:
        raise ValueError(f"norm is {norm}; it must be positive and finite")
    return _FirstLayerProjection(norm)


@full_precision()
def one_sam_gradient(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Shaped[Tensor, "..."],
    rho: float,
    *,
    loss: Loss = "cross_entropy",
    method: str = "auto",
) -> tuple[Float[Tensor, "*models"], Params]:
    """The mean loss L(θ), and (1/n) Σ_i ∇ℓ_i(θ + ρ g_i/‖g_i‖), g_i = ∇ℓ_i(θ), of one network or of each of a stack.

    `closed form` covers a Sequential of dense layers, each used once, with operations on each sample alone between
    them (elementwise ones, simplified LayerNorm): a dense layer's g_i is δ_i(a_i, 1)ᵀ, so that each sample's perturbed
    layer costs no matrix of its own. Cost: 5 forward passes. `per sample` covers what takes a sample by itself, so no
    BatchNorm in training mode: 6 passes with weights of each sample's own; memory: 3 copies of the weights a sample,
    up to 192 MB. `auto` takes the first that covers the network. A sample whose gradient is zero is not perturbed.
    ValueError: as the measures; rho not positive and finite; a network that the method doesn't cover.
    Wen, Li and Ma 2023 take one sample a step; this is the mean of that over the sample.
    """
    _require_radius(rho)
    objective = Objective.of(network, inputs, labels, loss)
    found = objective.network
    mean_sam = MeanSAM.of(
        found.module,
        rho,
        objective.loss if isinstance(objective.loss, Compared) else loss,
        moving=found.params,
        input_shape=objective.inputs.shape[objective.labels.dim() :],
        stacked=found.size is not None,
        method=method,
    )
    mean, gradient = 0.0, {name: torch.zeros_like(w) for name, w in found.params.items()}
    for x, y in objective.batches:
        if found.size is not None and not objective.of_each:
            x, y = (part.expand(found.size, *part.shape) for part in (x, y))
        loss_here, gradient_here = mean_sam(found.params, found.buffers, x, y)
        share = y.shape[-1] / objective.samples
        mean = mean + share * loss_here
        for name, part in gradient_here.items():
            gradient[name].add_(part, alpha=share)
    return mean, gradient


class Ascent:
    """What takes the gradient at θ + ε: it moves the parameters there and back, each network's of a stack by itself.

    `kept` makes the context of the pass there, which keeps running statistics: they are to be those of θ.
    """

    def __init__(self, recipe: SAM, *, kept: Callable[[], AbstractContextManager], stacked: bool = False):
        self.recipe, self.kept, self.stacked = recipe, kept, stacked
        self.radii: dict[Tensor, float] = {}  # of parameters that have their own
        self.memory: dict[Tensor, Tensor] = {}  # for θ + ε: to allocate it at each step would take a tenth of the time

    def gradient(
        self, evaluate: Callable[[], tuple[Tensor, Gradients]], params: list[Tensor]
    ) -> tuple[Tensor, Gradients]:
        """The loss at θ, and the gradient at θ + ε."""
        loss, gradients = evaluate()
        used = [(p, g) for p, g in zip(params, gradients, strict=True) if g is not None]
        kept = [(p, p.data) for p, _ in used]
        there = self._perturbed([p for p, _ in used], [g for _, g in used])
        del used, gradients  # the next ones take their place in memory
        try:
            for (p, _), weights in zip(kept, there, strict=True):
                p.data = weights
            with self.kept():
                _, gradients = evaluate()
        finally:
            for p, weights in kept:
                p.data = weights
        return loss, gradients

    @torch.no_grad()
    def _perturbed(self, params: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """θ + ρ g/‖g‖, or θ + ρ T²g/‖Tg‖ with T = |θ|."""
        gradients = [upcast(g.to_dense() if g.is_sparse else g) for g in gradients]
        magnitudes = torch._foreach_abs(params) if self.recipe.adaptive else None
        if magnitudes:
            gradients = torch._foreach_mul(gradients, magnitudes)
        if self.stacked:
            norm = parameter_norm(gradients, len(gradients[0]))
        else:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # A gradient of zero moves nothing; below this its squares leave the numbers.
        inverse = norm.clamp_min_(torch.finfo(norm.dtype).tiny ** 0.5).reciprocal_()
        radii = [self.radii.get(p, self.recipe.rho) for p in params]
        steps = {rho: inverse * rho for rho in set(radii)}
        if magnitudes:
            gradients = torch._foreach_mul(gradients, magnitudes)
        for p in params:
            if p not in self.memory:
                self.memory[p] = torch.empty_like(p)
        return [
            torch.addcmul(p, g, over_models(steps[rho], g), out=self.memory[p])
            for p, g, rho in zip(params, gradients, radii, strict=True)
        ]


class _SharpnessAware(torch.optim.Optimizer):
    """A base optimizer that steps with the gradient at the perturbed weights; it shares the base's state and groups."""

    def __init__(self, recipe: SAM, params, options: dict):
        self.ascent = Ascent(recipe, kept=kept_wherever)
        self.base = (_BASES[recipe.base] if isinstance(recipe.base, str) else recipe.base)(params, **options)
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:
        """One step, and the loss before it. ValueError: no closure, or one that leaves no gradient."""
        if closure is None:
            raise ValueError("closure is None; SAM takes two gradients a step: give step a closure that computes them")
        params = [p for group in self.param_groups for p in group["params"]]
        own = [] if "rho" in self.base.defaults else [group for group in self.param_groups if "rho" in group]
        for group in own:
            _require_radius(group["rho"])
        self.ascent.radii = {p: group["rho"] for group in own for p in group["params"]}

        def evaluate() -> tuple[Tensor, Gradients]:
            self.zero_grad()  # also for a closure that forgets to
            with torch.enable_grad():
                loss = closure()
            if loss is None or all(p.grad is None for p in params):
                what = "gives no loss" if loss is None else "leaves no gradient in any of the optimizer's parameters"
                raise ValueError(f"closure {what}; have it call backward on a loss that hangs on them, and return that")
            return torch.as_tensor(loss).detach(), [None if p.grad is None else p.grad.clone() for p in params]

        loss, gradients = self.ascent.gradient(evaluate, params)
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        self.base.step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """As the base's."""
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state


def _require_radius(rho: float) -> None:
    if not 0 < rho < math.inf:
        raise ValueError(f"rho is {rho}; it must be positive and finite")


def _require_base(base: Base) -> None:
    known = isinstance(base, type) and issubclass(base, torch.optim.Optimizer) and base is not torch.optim.LBFGS
    if not known and base not in _BASES:
        raise ValueError(f"base is {base!r}; choose {', '.join(_BASES)}, or a class of torch optimizers but LBFGS")
