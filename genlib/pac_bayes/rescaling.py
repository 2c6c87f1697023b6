"""The divergence of Gaussian weights from a prior, less what a rescaling of the units alone adds to it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.network import Network, Params, dense_steps
from genlib.network.precision import upcast_network
from genlib.pac_bayes.divergences import total_of_each

__all__ = ["rescaled_kl"]

_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity)
_SWEEPS, _TOLERANCE = 1000, 1e-12  # nats a weight by which a sweep must lower the divergence


@torch.no_grad()
def rescaled_kl(
    network: nn.Module | Network, std: float | Float[Tensor, "*models"] | Params
) -> Float[Tensor, "*models"]:
    """The least KL(N(w_c, s_c²) ‖ N(0, t²)) over rescalings c of the hidden units, and over t; nats, float64.

    A unit's incoming weights times c and its outgoing ones over c leave what the network says as it is, and of weights
    drawn from N(w, s²) too, where s goes with w. So the PAC-Bayes bound holds with the least of these divergences
    (Rouchouse et al. 2025), t from a fine grid at the price of the grid's logarithm. With a_i = w_i² + s_i² it is
    ½ Σ_i (a_i eˣⁱ - xᵢ) up to constants, xᵢ linear in ln c and ln t: convex, so that sweeps over the layers find it:
    c² = (Δ + √(Δ² + 4AB))/2A for all units of a layer at once, A and B the sums of a_i/t² over a unit's incoming and
    outgoing weights, Δ how many more come in, and t² the mean of a_i. Stopped sooner it is an upper bound.
    `std` s: one for all weights, or each weight's own by name. Cost: two products with the weights a sweep, no pass.
    ValueError: another network than a Sequential of dense layers with ReLU, LeakyReLU or nothing between them, weights
    that don't move, a std that isn't positive.
    """
    network = upcast_network(Network.of(network))
    names = _layers(network)
    spread = std if isinstance(std, dict) else dict.fromkeys(network.params, std)
    variances = {name: _variance(spread[name], w, network.size) for name, w in network.params.items()}
    a = {name: w.double().square() + variances[name] for name, w in network.params.items()}
    weights = [a[f"{name}.weight"] for name in names]
    biases = [
        a.get(f"{name}.bias", weight.new_zeros(weight.shape[:-1])) for name, weight in zip(names, weights, strict=True)
    ]
    extra = [weight.shape[-1] + (f"{name}.bias" in a) - following.shape[-2]
             for name, weight, following in zip(names, weights, weights[1:], strict=False)]  # fmt: skip
    count = sum(w.numel() for w in a.values()) / (network.size or 1)
    entropy = sum(
        total_of_each(variance.log().expand_as(a[name]), network.size) for name, variance in variances.items()
    )
    c = [torch.ones_like(weights[0][..., 0, :]), *(torch.ones_like(bias) for bias in biases)]  # squares
    value, before = None, None
    for _ in range(_SWEEPS):
        t = sum((c[i + 1] * _incoming(weights[i], biases[i], c[i])).sum(-1) for i in range(len(names))) / count
        value = (count * t.log() - entropy - sum(d * c[i].log().sum(-1) for i, d in enumerate(extra, 1))) / 2
        if before is not None and not (before - value > _TOLERANCE * count).any():
            break
        before = value
        for i, d in enumerate(extra):
            incoming = _incoming(weights[i], biases[i], c[i]) / t.unsqueeze(-1)
            outgoing = (weights[i + 1].mT @ c[i + 2].unsqueeze(-1)).squeeze(-1) / t.unsqueeze(-1)
            root = (d**2 + 4 * incoming * outgoing).sqrt()
            c[i + 1] = (d + root) / (2 * incoming) if d >= 0 else 2 * outgoing / (root - d)
    return value


def _incoming(weight: Tensor, bias: Tensor, c: Float[Tensor, "*models inputs"]) -> Float[Tensor, "*models units"]:
    """Σ a_i over the weights that come into each unit, rescaled at their other end."""
    return (weight @ (1 / c).unsqueeze(-1)).squeeze(-1) + bias


def _variance(std: float | Tensor, weight: Tensor, size: int | None) -> Float[Tensor, "..."]:
    std = torch.as_tensor(std, dtype=torch.float64, device=weight.device)
    if not (std.isfinite() & (std > 0)).all():
        raise ValueError("std must be positive and finite for every weight; give the deviation of the noise")
    own = size is not None and std.dim() == 1 and weight.dim() > 1  # one a model
    return (std.view(-1, *[1] * (weight.dim() - 1)) if own else std).square()


def _layers(network: Network) -> list[str]:
    """The names of the dense layers of a chain that units may be rescaled in."""
    steps = dense_steps(network.module)
    names = [name for name, layer in steps or [] if isinstance(layer, nn.Linear)]
    if not names:
        raise ValueError(
            "network is no Sequential of dense layers and elementwise activations, and it is not known which "
            "rescalings leave it as it is; take pac_bayes.gaussian_kl"
        )
    places = [i for i, (name, _) in enumerate(steps) if name in names]
    between = steps[places[0] : places[-1] + 1]
    if odd := [layer for _, layer in between if not isinstance(layer, (nn.Linear, *_HOMOGENEOUS))]:
        raise ValueError(
            f"network has {type(odd[0]).__name__} between its layers, so that rescaled units make another network; "
            "only ReLU, LeakyReLU and Identity let a factor through"
        )
    own = {f"{name}.{part}" for name, layer in steps if name in names for part, _ in layer.named_parameters()}
    if own != set(network.params):
        raise ValueError(
            "network has weights that don't move, or that stand beside those of its layers; measure all of them"
        )
    return names
