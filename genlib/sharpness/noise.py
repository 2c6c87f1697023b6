"""The loss under Gaussian noise on the weights, drawn by weights or by pre-activations."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Params, dense_steps, over_models
from genlib.network.objective import Objective, random_params, seeded_generator
from genlib.network.precision import full_precision

__all__ = [
    "FLOOR",
    "Noise",
    "deviations",
    "mean_of_pairs",
    "perturbed_losses",
    "require_pairs",
    "require_scale",
    "same_draws",
]

Noise = str | Mapping[str, Tensor] | tuple[str, Mapping[str, Tensor]]
FLOOR = 1e-3  # ε of the magnitude-aware noise, so that a weight of zero moves too (Dziugaite et al. 2020)


def deviations(params: Params, scale: float | Float[Tensor, "..."], noise: Noise = "isotropic") -> Params:
    """The standard deviation σ_i of the noise on each weight, of the weight's shape or to be broadcast to it.

    `isotropic`: σ. `scaled`: σ(10|w_i| + 1) (Neyshabur et al. 2017). `magnitude`: √(σ²w_i² + ε²), ε = 1e-3 (Dziugaite
    et al. 2020); the pair (`magnitude`, a) has a_i for w_i, such as w − w⁰. A mapping of tensors a: σ a_i.
    `scale` is σ, one number or one a model of a stack.
    """
    kind, sizes = _kind(noise, params)
    first = next(iter(params.values()))
    scale = torch.as_tensor(scale, dtype=first.dtype, device=first.device)
    return {name: _deviation(w, over_models(scale, w), kind, sizes[name].to(w)) for name, w in params.items()}


def _kind(noise: Noise, params: Params) -> tuple[str, Mapping[str, Tensor]]:
    """The law by which the deviation depends on the size of a weight, and these sizes."""
    if isinstance(noise, Mapping):
        kind, sizes = "given", noise
    else:
        kind, sizes = (noise, params) if isinstance(noise, str) else noise
        if kind not in ("isotropic", "scaled", "magnitude"):
            raise ValueError(
                f"noise is {kind!r}; choose isotropic, scaled or magnitude, or give each weight's deviation"
            )
    if set(sizes) != set(params):
        raise ValueError(f"noise lacks or adds {sorted(set(params) ^ set(sizes))}; give one tensor for each parameter")
    return kind, sizes


def _deviation(w: Tensor, scale: Tensor, kind: str, size: Tensor) -> Tensor:
    if kind == "isotropic":
        return scale
    if kind == "given":
        return (scale * size).expand_as(w)
    return scale * (10 * size.abs() + 1) if kind == "scaled" else torch.hypot(scale * size, w.new_tensor(FLOOR))


@full_precision()
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
        require_scale(scale)
    if draws < 1 or (antithetic and draws % 2):
        raise ValueError(
            f"draws is {draws}; give {'an even number, for draws come in pairs' if antithetic else '1 or more'}"
        )
    generator = seeded_generator(generator, objective.device)
    steps = _dense_steps(objective)
    if sampling not in ("auto", "weights", "preactivations"):
        raise ValueError(f"sampling is {sampling!r}; choose auto, weights or preactivations")
    if sampling == "preactivations" and steps is None:
        raise ValueError("network is no Sequential of dense layers each used once; sampling='weights' measures it")
    rounds, signs = (draws // 2, (1.0, -1.0)) if antithetic else (draws, (1.0,))
    if steps is not None and sampling != "weights":
        return _by_preactivations(objective, steps, scale, noise, rounds, signs, generator)
    return _by_weights(objective, scale, noise, rounds, signs, generator)


def same_draws(
    objective: Objective, noise: Noise, generator: torch.Generator | None, sampling: str
) -> Callable[[float | Tensor, int], Float[Tensor, "draws ..."]]:
    """The losses at a scale and a number of draws, the same draws whatever the scale."""
    generator = seeded_generator(generator, objective.device)
    state = generator.get_state()

    def losses(scale: float | Tensor, draws: int) -> Float[Tensor, "draws ..."]:
        generator.set_state(state)
        return perturbed_losses(
            objective, scale=scale, noise=noise, draws=draws, generator=generator, sampling=sampling
        )

    return losses


def mean_of_pairs(rises: Float[Tensor, "draws *models"]) -> tuple[Tensor, Tensor, Tensor]:
    """The mean, its standard error from the pairs ±ν, both infinite where a rise isn't finite, and how many aren't."""
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
    weights, size = objective.network.params, objective.network.size
    together, losses = objective.together, []
    for first in range(0, rounds, together):
        lead = () if together == 1 else (min(together, rounds - first),)
        noises = random_params(weights, size, generator, lead)
        for name, deviation in deviations(weights, scale, noise).items():
            noises[name] = noises[name] * deviation
        both = [
            objective({name: torch.add(w, noises[name], alpha=sign) for name, w in weights.items()}, *lead)
            for sign in signs
        ]
        losses.append(torch.stack(both, len(lead)).flatten(0, len(lead)))
    return torch.cat(losses)


def _by_preactivations(
    objective: Objective,
    steps: list[tuple[str, nn.Module]],
    scale: float | Tensor,
    noise: Noise,
    rounds: int,
    signs: tuple[float, ...],
    generator: torch.Generator,
) -> Float[Tensor, "draws *models"]:
    params, spread = objective.network.params, deviations(objective.network.params, scale, noise)
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
            hidden = _noisy(mean, deviation, signed, generator)
            for name, layer in rest:
                if isinstance(layer, nn.Linear):
                    wide = _affine(hidden, params, name)
                    hidden = _noisy(wide, _unit_spread(hidden, spread, variances, name), signed, generator)
                else:
                    hidden = layer(hidden)
            sums.append(objective.losses(hidden, labels).sum(-1))
        total = total + torch.stack(sums)
    return total.flatten(0, 1) / objective.samples


def _noisy(mean: Tensor, deviation: Tensor, signed: Tensor, generator: torch.Generator) -> Tensor:
    """mean ± deviation · N(0, 1), the same numbers for both signs and all models."""
    draw = torch.randn(mean.shape[-2:], generator=generator, device=mean.device, dtype=mean.dtype)
    return torch.addcmul(mean, deviation, signed * draw)


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
    return norms * spread[f"{name}.weight"]


def _dense_steps(objective: Objective) -> list[tuple[str, nn.Module]] | None:
    """The layers of a Sequential that starts with a dense layer, and whose parameters are those of dense layers."""
    network = objective.network
    steps = dense_steps(network.module)
    if not steps or not isinstance(steps[0][1], nn.Linear):
        return None
    flat = objective.inputs.dim() == objective.labels.dim() + 1 or isinstance(network.module[0], nn.Flatten)
    dense = [(name, layer) for name, layer in steps if isinstance(layer, nn.Linear)]
    names = {f"{name}.{part}" for name, layer in dense for part, _ in layer.named_parameters()}
    return steps if flat and names == set(network.params) else None


def require_pairs(draws: int) -> None:
    if draws < 4 or draws % 2:
        raise ValueError(f"draws is {draws}; give an even number, at least 4, for the error comes from pairs ±ν")


def require_scale(scale: float | Tensor) -> None:
    scale = torch.as_tensor(scale, device=getattr(scale, "device", "cpu"))
    if not (scale.isfinite() & (scale >= 0)).all():
        raise ValueError(f"scale is {scale.tolist()}; it must be a finite number, not negative")
