"""Sharpness: how much the training loss rises when the weights move, on average or at worst."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from genlib._losses import Loss, per_sample_loss
from genlib.estimates import Estimate, Maximum
from genlib.network import ELEMENTWISE, Network, Params

__all__ = [
    "ExpectedSharpness",
    "Objective",
    "deviations",
    "expected_sharpness",
    "keskar_sharpness",
    "perturbed_losses",
    "sam_sharpness",
    "worst_case_sharpness",
]

Noise = str | Mapping[str, Tensor]

_FLOOR = 1e-3  # ε of the magnitude-aware noise, so that a weight of zero moves too (Dziugaite et al. 2020)
_NUMBERS = 2**24  # of all draws that lie side by side, 64 MB
_STRIDE = 0.2  # of the radius, a step of the ascent: 20 steps find 92 to 100 % of what 200 find


@dataclass(frozen=True, kw_only=True)
class ExpectedSharpness(Estimate):
    """An estimate with the number of draws whose loss was not finite; where there is one, `value` is infinite."""

    not_finite: Int[Tensor, "..."]


@dataclass(frozen=True)
class Objective:
    """The mean loss over the data as a function of the parameters: one value, or one a model of a stack.

    `labels` [samples]; a stack may have [models, samples], and then inputs [models, samples, …] of each too.
    `chunk_size` is the number of samples that pass at a time; where it holds several draws' samples, they share a pass.
    """

    network: Network
    inputs: Tensor
    labels: Int[Tensor, "..."]
    loss: Callable[[Tensor, Tensor], Tensor]
    chunk_size: int
    classes: int

    @classmethod
    def of(
        cls,
        network: nn.Module | Network,
        inputs: Tensor,
        labels: Int[Tensor, "..."],
        loss: Loss = "cross_entropy",
        chunk_size: int | None = None,
    ) -> "Objective":
        """The objective, after one look at the data; half precision is upcast.

        ValueError: BatchNorm or dropout in training mode, no data, labels that don't match the inputs or the classes,
        an unknown loss or one that gives other than one number a sample.
        """
        network = upcast(Network.of(network))
        if not network.params:
            raise ValueError("network has no parameters; there is nothing to move")
        network.require_eval()
        dtype = next(iter(network.params.values())).dtype
        inputs = inputs.detach().to(dtype) if inputs.is_floating_point() else inputs
        if chunk_size is None:
            sample = math.prod(inputs.shape[labels.dim() :])
            chunk_size = max(1, min(4096, 2**22 // max(1, (network.size or 1) * sample)))
            if inputs.device.type == "cpu":  # gains nothing from several draws side by side
                chunk_size = min(chunk_size, max(1, labels.shape[-1]))
        loss = per_sample_loss(loss, error=True)
        return cls(network, inputs, labels, loss, chunk_size, _require_data(network, inputs, labels, loss, chunk_size))

    @property
    def samples(self) -> int:
        return self.labels.shape[-1]

    @property
    def of_each(self) -> bool:
        """Whether each network of a stack has its own data."""
        return self.labels.dim() == 2

    @property
    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        axis = int(self.of_each)
        return zip(self.inputs.split(self.chunk_size, axis), self.labels.split(self.chunk_size, axis), strict=True)

    def losses(self, logits: Float[Tensor, "*models n classes"], labels: Tensor) -> Float[Tensor, "*models n"]:
        """One loss a sample."""
        shape = logits.shape[:-1]
        return self.loss(logits.flatten(0, -2), labels.expand(shape).flatten()).view(shape)

    def __call__(self, params: Params, draws: int | None = None) -> Float[Tensor, "*models"]:
        """The mean loss at these parameters, or at `draws` of them that lie along a leading axis. One forward pass."""
        network, buffers = self.network, self.network.buffers
        if draws is not None:
            network = replace(network, size=draws)
            buffers = {name: buffer.expand(draws, *buffer.shape) for name, buffer in buffers.items()}
        sums = [
            self.losses(network.apply(params, inputs, buffers=buffers, inputs_of_each=self.of_each), labels).sum(-1)
            for inputs, labels in self.batches
        ]
        return sum(sums) / self.samples

    def gradient(self, params: Params) -> tuple[Float[Tensor, "*models"], Params]:
        """The mean loss and its gradient; of a stack each model's own. Three forward passes."""
        total = 0.0
        with torch.enable_grad():
            leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
            for inputs, labels in self.batches:
                logits = self.network.apply(leaves, inputs, inputs_of_each=self.of_each)
                loss = self.losses(logits, labels).sum(-1) / self.samples
                loss.sum().backward(inputs=list(leaves.values()))  # adds up in place, in the leaves' own gradients
                total = total + loss.detach()
        return total, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}

    def finite(self, loss: Float[Tensor, "*models"]) -> Float[Tensor, "*models"]:
        """The loss at the network's own weights, refused where it isn't finite. One host read."""
        if not loss.isfinite().all():
            raise ValueError(
                "network: its loss on these data is not finite; check inputs, or measure it before it diverged"
            )
        return loss


def deviations(params: Params, scale: float | Float[Tensor, "..."], noise: Noise = "isotropic") -> Params:
    """The standard deviation σ_i of the noise on each weight, of the weight's shape or to be broadcast to it.

    `isotropic`: σ. `scaled`: σ(10|w_i| + 1) (Neyshabur et al. 2017). `magnitude`: √(σ²w_i² + ε²), ε = 1e-3 (Dziugaite
    et al. 2020). A mapping of tensors a: σ a_i. `scale` is σ, one number or one a model of a stack.
    """
    if isinstance(noise, str) and noise not in ("isotropic", "scaled", "magnitude"):
        raise ValueError(f"noise is {noise!r}; choose isotropic, scaled or magnitude, or give each weight's deviation")
    if not isinstance(noise, str) and set(noise) != set(params):
        raise ValueError(f"noise lacks or adds {sorted(set(params) ^ set(noise))}; give one tensor for each parameter")
    first = next(iter(params.values()))
    scale = torch.as_tensor(scale, dtype=first.dtype, device=first.device)
    return {name: _deviation(w, _over(scale, w), noise, name) for name, w in params.items()}


def _deviation(w: Tensor, scale: Tensor, noise: Noise, name: str) -> Tensor:
    if not isinstance(noise, str):
        return (scale * noise[name].to(w)).expand_as(w)
    if noise == "isotropic":
        return scale
    return scale * (10 * w.abs() + 1) if noise == "scaled" else torch.hypot(scale * w, w.new_tensor(_FLOOR))


@torch.no_grad()
def perturbed_losses(
    objective: Objective,
    *,
    scale: float | Float[Tensor, "..."],
    noise: Noise = "isotropic",
    draws: int,
    generator: torch.Generator | None = None,
    sampling: str = "auto",
    antithetic: bool = True,
) -> Float[Tensor, "draws *models"]:
    """The mean loss at `draws` random perturbations w + ν, ν_i ~ N(0, σ_i²), σ_i as in `deviations`.

    Antithetic draws come in pairs, +ν beside −ν; the models of a stack share their draws. `sampling`: `weights` draws
    ν; `preactivations` draws what ν does to each unit for each sample on its own, N(Wa + b, σ²(|a|² + 1)), of the same
    mean and less spread, for a Sequential of dense layers each used once (Kingma et al. 2015); `auto` takes it there.
    Cost: `draws` forward passes; memory: twice the parameters and one chunk. ValueError: as `Objective.of`, an unknown
    noise or sampling, a scale below zero.
    """
    if not isinstance(scale, Tensor):  # whose reading would stop a search on a GPU at every step
        _require_scale(scale)
    if draws < 1 or (antithetic and draws % 2):
        raise ValueError(
            f"draws is {draws}; give {'an even number, for draws come in pairs' if antithetic else '1 or more'}"
        )
    generator = seeded_generator(generator, objective.inputs.device)
    steps = _dense_steps(objective)
    if sampling not in ("auto", "weights", "preactivations"):
        raise ValueError(f"sampling is {sampling!r}; choose auto, weights or preactivations")
    if sampling == "preactivations" and steps is None:
        raise ValueError("network is no Sequential of dense layers each used once; sampling='weights' measures it")
    rounds, signs = (draws // 2, (1.0, -1.0)) if antithetic else (draws, (1.0,))
    if steps is not None and sampling != "weights":
        return _by_preactivations(objective, steps, scale, noise, rounds, signs, generator)
    return _by_weights(objective, scale, noise, rounds, signs, generator)


def expected_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
    *,
    scale: float | Float[Tensor, "..."],
    noise: Noise = "isotropic",
    draws: int,
    loss: Loss = "cross_entropy",
    generator: torch.Generator | None = None,
    sampling: str = "auto",
    chunk_size: int | None = None,
) -> ExpectedSharpness:
    """The expected rise of the loss under Gaussian noise on the weights, E L(w + ν) − L(w), ν_i ~ N(0, σ_i²).

    `scale` is the standard deviation σ, `noise` how σ_i comes of it (`deviations`); `draws` is even, for they come in
    antithetic pairs, and the standard error is that of the pairs' mean. `loss`: `cross_entropy`, `mse` (to one-hot
    labels), `error` (the share of wrong labels), or a function to one loss a sample. A stack gives one value a model,
    from shared draws. Without a generator the draws are those of seed 0. A draw whose loss isn't finite is counted in
    `not_finite` and makes the value infinite. `sampling` as in `perturbed_losses`.
    Cost: draws + 1 forward passes. ValueError: as `perturbed_losses`. Neyshabur et al. 2017.
    """
    if draws < 4 or draws % 2:
        raise ValueError(f"draws is {draws}; give an even number, at least 4, for the error comes from pairs ±ν")
    _require_scale(scale)
    objective = Objective.of(network, inputs, labels, loss, chunk_size)
    with torch.no_grad():
        at_rest = objective.finite(objective(objective.network.params))
    losses = perturbed_losses(objective, scale=scale, noise=noise, draws=draws, generator=generator, sampling=sampling)
    mean, error, not_finite = mean_of_pairs(losses - at_rest)
    return ExpectedSharpness(mean, error, draws + 1.0, not_finite=not_finite)


def mean_of_pairs(rises: Float[Tensor, "draws *models"]) -> tuple[Tensor, Tensor, Tensor]:
    pairs = rises.unflatten(0, (-1, 2)).mean(1)
    not_finite = (~rises.isfinite()).sum(0)
    infinite = torch.full_like(pairs[0], torch.inf)
    mean = torch.where(not_finite > 0, infinite, pairs.mean(0))
    error = pairs.std(0) / len(pairs) ** 0.5 if len(pairs) > 1 else infinite
    return mean, torch.where(not_finite > 0, infinite, error), not_finite


def _by_weights(
    objective: Objective,
    scale: float | Tensor,
    noise: Noise,
    rounds: int,
    signs: tuple[float, ...],
    generator: torch.Generator,
) -> Float[Tensor, "draws *models"]:
    network = objective.network
    # Side by side as many draws as one chunk holds, of small networks; the models of a stack lie so already.
    weights = sum(param.numel() for param in network.params.values())
    together = (
        max(1, min(objective.chunk_size // objective.samples, _NUMBERS // weights)) if network.size is None else 1
    )
    shapes = {name: param.shape[network.size is not None :] for name, param in network.params.items()}
    losses = []
    for first in range(0, rounds, together):
        lead = () if together == 1 else (min(together, rounds - first),)
        noises = {
            name: torch.randn((*lead, *shapes[name]), generator=generator, device=w.device, dtype=w.dtype)
            for name, w in network.params.items()
        }
        for name, deviation in deviations(network.params, scale, noise).items():
            noises[name] = noises[name] * deviation
        for sign in signs:
            params = {name: torch.add(w, noises[name], alpha=sign) for name, w in network.params.items()}
            losses.append(objective(params, *lead))
    if together == 1:
        return torch.stack(losses)
    # [rounds, signs], as one draw after the other
    per_sign = [torch.cat(losses[i :: len(signs)]) for i in range(len(signs))]
    return torch.stack(per_sign, dim=1).flatten()


def _by_preactivations(
    objective: Objective,
    steps: list[tuple[str, nn.Module]],
    scale: float | Tensor,
    noise: Noise,
    rounds: int,
    signs: tuple[float, ...],
    generator: torch.Generator,
) -> Float[Tensor, "draws *models"]:
    params, samples = objective.network.params, objective.samples
    spread = deviations(params, scale, noise)
    variances = None if noise == "isotropic" else {name: deviation.square() for name, deviation in spread.items()}
    (head, _), rest = steps[0], steps[1:]
    total = 0.0
    for inputs, labels in objective.batches:
        x = inputs.flatten(labels.dim())
        # What the first layer sees is the same at every draw.
        mean, deviation = _affine(x, params, head), _unit_spread(x, spread, variances, head)
        signed = torch.tensor(signs, device=x.device, dtype=x.dtype).view(-1, *[1] * mean.dim())
        sums = []
        for _ in range(rounds):
            draw = torch.randn(mean.shape[-2:], generator=generator, device=x.device, dtype=x.dtype)
            hidden = torch.addcmul(mean, deviation, signed * draw)
            for name, layer in rest:
                if isinstance(layer, nn.Linear):
                    wide = _affine(hidden, params, name)
                    draw = torch.randn(wide.shape[-2:], generator=generator, device=x.device, dtype=x.dtype)
                    hidden = torch.addcmul(wide, _unit_spread(hidden, spread, variances, name), signed * draw)
                else:
                    hidden = layer(hidden)
            sums.append(objective.losses(hidden, labels).sum(-1))
        total = total + torch.stack(sums)
    return total.flatten(0, 1) / samples


def _affine(x: Float[Tensor, "... a"], params: Params, name: str) -> Float[Tensor, "... b"]:
    weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    x = x @ weight.mT
    return x if bias is None else x + bias.unsqueeze(-2)


def _unit_spread(x: Float[Tensor, "... a"], spread: Params, variances: Params | None, name: str) -> Tensor:
    """The standard deviation of each unit's noise: √(Σ_j σ_ij² x_j² + σ_i²)."""
    if variances is not None:
        return _affine(x.square(), variances, name).sqrt()
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if f"{name}.bias" in spread:
        norms = torch.hypot(norms, norms.new_ones(()))
    scale = spread[f"{name}.weight"]
    return norms * scale


def _dense_steps(objective: Objective) -> list[tuple[str, nn.Module]] | None:
    """The dense and elementwise layers of a Sequential of nothing else, from its first dense layer on, else None."""
    network = objective.network
    if type(network.module) is not nn.Sequential:
        return None
    # not named_children, which leaves out the second use of a layer
    steps = list(network.module._modules.items())
    flat = objective.inputs.dim() == objective.labels.dim() + 1
    if steps and type(steps[0][1]) is nn.Flatten and steps[0][1].start_dim == 1 and steps[0][1].end_dim == -1:
        steps, flat = steps[1:], True
    steps = [(name, layer) for name, layer in steps if not isinstance(layer, nn.Dropout)]
    dense = [(name, layer) for name, layer in steps if type(layer) is nn.Linear]
    names = {f"{name}.{kind}" for name, layer in dense for kind, p in layer.named_parameters(recurse=False)}
    fits = (
        flat and names == set(network.params) and all(type(s) is nn.Linear or type(s) in ELEMENTWISE for _, s in steps)
    )
    return steps if fits and steps and type(steps[0][1]) is nn.Linear else None


def worst_case_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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
    return _ascent(objective, loss, radius, ball, steps, restarts, generator)[1]


def keskar_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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
    at_rest, found = _ascent(objective, loss, radius, "box", steps, restarts, generator)
    factor = 100 / (1 + at_rest)
    return Maximum(factor * found.value, factor * found.history, found.passes)


def sam_sharpness(
    network: nn.Module | Network,
    inputs: Tensor,
    labels: Int[Tensor, "..."],
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
    _require_search(loss, radius, ball)
    weights = objective.network.params
    with torch.no_grad():
        at_rest, gradient = objective.gradient(weights)
        objective.finite(at_rest)
        edge = {name: w.clone() for name, w in weights.items()}
        _climb(edge, weights, gradient, radius, ball, radius, objective.network.size)
        risen = objective(edge)
    if not risen.isfinite().all():
        raise ValueError(f"radius is {radius}; the loss there is not finite, take a smaller one")
    return risen - at_rest


@torch.no_grad()
def _ascent(
    objective: Objective,
    loss: Loss,
    radius: float,
    ball: str,
    steps: int,
    restarts: int,
    generator: torch.Generator | None,
) -> tuple[Float[Tensor, "*models"], Maximum]:
    _require_search(loss, radius, ball)
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps is {steps} and restarts {restarts}; both must be at least 1")
    weights, size = objective.network.params, objective.network.size
    generator = seeded_generator(generator, objective.inputs.device)
    at_rest, runs = None, []
    for restart in range(restarts):
        point = {name: w.clone() for name, w in weights.items()}
        if restart:
            _scatter(point, radius / 10, ball, size, generator)
        found = []
        for step in range(steps):
            value, gradient = objective.gradient(point)
            if at_rest is None:
                at_rest = objective.finite(value)
                _scatter(point, radius / 10, ball, size, generator)
            if step:
                found.append(value)
            _climb(point, weights, gradient, _STRIDE * radius, ball, radius, size)
            del gradient  # else two of them are held while the next one is computed
        found.append(objective(point))
        runs.append(torch.stack(found))
    rises = torch.stack(runs) - at_rest
    rises = torch.where(rises.isfinite(), rises, torch.inf).clamp_min(0)
    history = rises.amax(0).cummax(0).values
    return at_rest, Maximum(history[-1], history, restarts * (3.0 * steps + 1))


def _climb(
    point: Params, weights: Params, gradient: Params, stride: float, ball: str, radius: float, size: int | None
) -> None:
    """One step of steepest ascent in the norm of the ball, then the projection back into it, in place."""
    if ball == "box":
        for name, w in weights.items():
            room = w.abs() + 1
            point[name].addcmul_(room, gradient[name].sign(), value=stride)
            torch.clamp(point[name], w - radius * room, w + radius * room, out=point[name])
        return
    norm = _norm((_unit(w, ball) * gradient[name] for name, w in weights.items()), size)
    for name, w in weights.items():
        point[name].addcmul_(_unit(w, ball).square() * gradient[name], _over(stride / norm, w))
    length = _norm((_ratio(point[name] - w, _unit(w, ball)) for name, w in weights.items()), size)
    factor = (radius / length).clamp_max(1)
    for name, w in weights.items():
        torch.lerp(w, point[name], _over(factor, w), out=point[name])


def _scatter(point: Params, radius: float, ball: str, size: int | None, generator: torch.Generator) -> None:
    """Move to a random place: uniform in the box, or on the sphere, of this radius."""
    shapes = {name: w.shape[size is not None :] for name, w in point.items()}
    if ball == "box":
        for name, w in point.items():
            draw = torch.rand(shapes[name], generator=generator, device=w.device, dtype=w.dtype)
            w.addcmul_(w.abs() + 1, (2 * draw - 1).expand_as(w), value=radius)
        return
    draws = {
        name: torch.randn(shapes[name], generator=generator, device=w.device, dtype=w.dtype)
        for name, w in point.items()
    }
    scale = radius / _norm(draws.values(), None)
    for name, w in point.items():
        w.add_(_unit(w, ball) * draws[name] * scale)


def _unit(w: Tensor, ball: str) -> Tensor:
    return w.abs() if ball == "adaptive" else w.new_ones(())


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return a / b.clamp_min(torch.finfo(b.dtype).tiny)  # a weight of zero stays where it is: 0/0 is 0 here


def _norm(tensors: Iterable[Tensor], size: int | None) -> Float[Tensor, "*models"]:
    flat = [t.flatten(1) if size is not None else t.flatten() for t in tensors]
    norms = torch.stack([torch.linalg.vector_norm(t, dim=-1) for t in flat])
    return torch.linalg.vector_norm(norms, dim=0).clamp_min(torch.finfo(norms.dtype).tiny)


def _over(value: Tensor, like: Tensor) -> Tensor:
    """One value a model, to be broadcast over its tensor; a single value as it is."""
    return value.view(-1, *[1] * (like.dim() - 1)) if value.dim() else value


def seeded_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    if generator is None:
        return torch.Generator(device).manual_seed(0)
    if generator.device.type != device.type:
        raise ValueError(
            f"generator is on {generator.device} but inputs on {device}; make it there: Generator({device})"
        )
    return generator


def upcast(network: Network) -> Network:
    def up(tensors: Params) -> Params:
        half = (torch.float16, torch.bfloat16)
        return {name: t.float() if t.dtype in half else t for name, t in tensors.items()}

    return replace(network, params=up(network.params), buffers=up(network.buffers))


def _require_scale(scale: float | Tensor) -> None:
    scale = torch.as_tensor(scale)
    if not (scale.isfinite() & (scale >= 0)).all():
        raise ValueError(f"scale is {scale.tolist()}; it must be a finite number, not negative")


def _require_search(loss: Loss, radius: float, ball: str) -> None:
    if loss == "error":
        raise ValueError("loss is 'error', which has no gradient; choose cross_entropy or mse")
    if ball not in ("box", "l2", "adaptive"):
        raise ValueError(f"ball is {ball!r}; choose box, l2 or adaptive")
    if not 0 < radius < torch.inf:
        raise ValueError(f"radius is {radius}; it must be positive and finite")


def _require_data(
    network: Network, inputs: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], chunk_size: int
) -> int:
    """Refuse what can't be measured; the number of classes."""
    of_each = labels.dim() == 2
    if labels.dim() > 2 or (of_each and network.size != labels.shape[0]) or labels.dim() == 0:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; give [samples], or [models, samples] for a stack")
    if inputs.shape[: labels.dim()] != labels.shape:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} but inputs {tuple(inputs.shape)}; give one label a sample"
        )
    if labels.numel() == 0:
        raise ValueError("inputs is empty; give at least one sample")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    one = (slice(None), slice(1)) if of_each else slice(1)
    with torch.no_grad():
        logits = network.apply(network.params, inputs[one], inputs_of_each=of_each)
    if logits.dim() != (2 if network.size is None else 3):
        raise ValueError(f"network gives logits of shape {tuple(logits.shape)}; it must give [samples, classes]")
    if ((labels < 0) | (labels >= logits.shape[-1])).any():
        raise ValueError(f"labels has values outside 0 … {logits.shape[-1] - 1}, the classes of the network")
    values = loss(logits.flatten(0, -2), labels[one].expand(logits.shape[:-1]).flatten())
    if values.shape != (logits.shape[:-1].numel(),):
        raise ValueError(f"loss gives shape {tuple(values.shape)}; it must give one number a sample")
    return logits.shape[-1]
