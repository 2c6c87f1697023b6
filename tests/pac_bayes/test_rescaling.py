"""The least divergence over rescalings of units, and the distance of functions."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from cases import dense, dense_layers, rescaled, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from genlib.network import Network
from genlib.pac_bayes import function_distance, gaussian_kl, rescaled_kl


def spreads(network, std):
    return {name: torch.full_like(p, std).detach() for name, p in network.named_parameters()}


def rescale(network, std, factors):
    """The network with its units rescaled, and the deviations that go with them."""
    moved = rescaled(network, factors)
    noisy = copy.deepcopy(network)
    with torch.no_grad():
        for name, p in noisy.named_parameters():
            p.copy_(std[name])
    return moved, {name: p.detach() for name, p in rescaled(noisy, factors).named_parameters()}


def kl(network, std, t):
    return sum(gaussian_kl(p.detach().flatten(), std[n].flatten(), 0.0, t) for n, p in network.named_parameters())


def tiny(seed, bias=True, widths=(2, 3, 2, 2)):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(widths):
        layer = nn.Linear(a, b, bias=bias).double()
        for p in layer.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        layers += [layer, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def by_search(network, std):
    """Over ln c of each unit and ln t, by a quasi-Newton method that knows nothing of the closed form."""
    layers = dense_layers(network)
    names = [name for name, layer in network.named_children() if isinstance(layer, nn.Linear)]
    widths = [layer.out_features for layer in layers[:-1]]

    def at(logs):
        logs = torch.from_numpy(logs).requires_grad_()
        t, total = logs[0].exp(), torch.zeros((), dtype=torch.float64)
        factors = [torch.ones(layers[0].in_features), *(c.exp() for c in logs[1:].split(widths)), torch.ones(1)]
        for name, layer, inner, outer in zip(names, layers, factors, factors[1:], strict=False):
            for part, p in layer.named_parameters():
                factor = outer[:, None] / inner if part == "weight" else outer
                posterior = torch.distributions.Normal(p.detach() * factor, std[f"{name}.{part}"] * factor)
                total = total + torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, t)).sum()
        total.backward()
        return total.item(), logs.grad.numpy()

    return minimize(at, np.zeros(1 + sum(widths)), method="BFGS", jac=True, options={"gtol": 1e-8}).fun


@settings(max_examples=15)
@given(seed=st.integers(0, 999), std=st.floats(0.05, 2), bias=st.booleans())
def test_it_is_the_least_that_a_search_over_all_rescalings_finds(seed, std, bias):
    network = tiny(seed, bias)
    found = rescaled_kl(network, std)
    assert found.item() == pytest.approx(by_search(network, spreads(network, std)), rel=1e-6)


def test_each_weight_may_have_its_own_deviation():
    network = tiny(1)
    std = {name: (0.1 + p.detach().abs()) for name, p in network.named_parameters()}
    assert rescaled_kl(network, std).item() == pytest.approx(by_search(network, std), rel=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 99), std=st.floats(0.01, 1), depth=st.integers(1, 3))
def test_an_adversarial_rescaling_is_undone(seed, std, depth):
    network, generator = dense(seed, depth=depth), torch.Generator().manual_seed(seed)
    factors = [10.0 ** (2 * torch.randint(2, (6,), generator=generator) - 1).double() for _ in range(depth)]
    other, moved = rescale(network, spreads(network, std), factors)
    least = rescaled_kl(network, std)
    torch.testing.assert_close(rescaled_kl(other, moved), least, rtol=1e-8, atol=0)
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    t = (weights.square() + std**2).mean().sqrt().item()
    assert 0 < least <= kl(network, spreads(network, std), t) * (1 + 1e-12)  # the best of one t without rescaling
    assert rescaled_kl(other, std) != pytest.approx(least.item(), rel=1e-3)  # where the noise stays as it was


def test_a_stack_gives_one_value_a_model_and_nothing_is_changed():
    networks = [dense(seed) for seed in range(3)]
    with unchanged(networks[0]):
        alone = torch.stack([rescaled_kl(one, s) for one, s in zip(networks, (0.1, 0.1, 0.3), strict=True)])
    stack = Network.stack(networks)
    torch.testing.assert_close(
        rescaled_kl(stack, torch.tensor([0.1, 0.1, 0.3], dtype=torch.float64)), alone, rtol=1e-9, atol=0
    )
    torch.testing.assert_close(rescaled_kl(stack, 0.1)[:2], alone[:2], rtol=1e-9, atol=0)
    half = copy.deepcopy(networks[0]).bfloat16()
    torch.testing.assert_close(rescaled_kl(half, 0.1), rescaled_kl(copy.deepcopy(half).float(), 0.1))


REFUSED = {
    "a convolution": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), 0.1, "network is no Sequential of dense layers"),
    "tanh": (nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), 0.1, "network has Tanh between its layers"),
    "no layer": (nn.Sequential(nn.ReLU()), 0.1, "network is no Sequential of dense layers"),
    "part of it": (Network.of(tiny(0)).moving(["0.weight"]), 0.1, "network has weights that don't move"),
    "no noise": (tiny(0), 0.0, "std must be positive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rescaling_is_refused_by_name(name):
    network, std, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        rescaled_kl(network, std)


def test_activations_at_the_ends_may_be_any():
    inner = tiny(0)
    torch.testing.assert_close(
        rescaled_kl(nn.Sequential(nn.Tanh(), *inner, nn.Softplus()), 0.1), rescaled_kl(inner, 0.1)
    )


@settings(max_examples=20)
@given(seed=st.integers(0, 99), outputs=st.integers(1, 4))
def test_the_distance_of_functions_is_the_mean_divergence_of_probabilities(seed, outputs):
    network, start = tiny(seed, widths=(3, 4, outputs)), tiny(seed + 1, widths=(3, 4, outputs))
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def probabilities(module, one):
        z = module(one[None]).detach()[0]
        return (torch.cat([z.new_zeros(1), z]) if outputs == 1 else z).softmax(0)

    pairs = [(probabilities(network, one), probabilities(start, one)) for one in x]
    expected = np.mean([(p * (p / q).log()).sum().item() for p, q in pairs])
    found = function_distance(network, start, x)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12) and found >= 0
    assert function_distance(network, network, x, chunk_size=2) == 0
    stack, starts = Network.stack([network, start]), Network.stack([start, start])
    torch.testing.assert_close(function_distance(stack, starts, x), torch.stack([found, 0 * found]))


def test_functions_of_other_outputs_have_no_distance():
    with pytest.raises(ValueError, match="initial gives outputs of the shape"):
        function_distance(tiny(0), tiny(0, widths=(2, 3)), torch.ones(4, 2, dtype=torch.float64))
