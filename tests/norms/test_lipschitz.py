"""A bound on the Lipschitz constant between what is seen and the product of spectral norms."""

import copy
import itertools
import math

import pytest
import torch
from cases import unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genlib import norms
from genlib.network import Network

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardsigmoid, nn.ReLU6, nn.LeakyReLU)


def chain(widths, activation=nn.ReLU, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(widths):
        layer = nn.Linear(a, b).double()
        for p in layer.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


WIDTHS = st.lists(st.integers(1, 7), min_size=2, max_size=6)


@settings(max_examples=40)
@given(widths=WIDTHS, activation=st.sampled_from(ACTIVATIONS), seed=st.integers(0, 999))
def test_it_lies_between_the_jacobians_seen_and_the_product(widths, activation, seed):
    network = chain(widths, activation, seed)
    bound = norms.log_lipschitz_bound(network).item()
    generator = torch.Generator().manual_seed(seed)
    for x in torch.randn(20, widths[0], generator=generator, dtype=torch.float64):
        seen = torch.linalg.matrix_norm(torch.autograd.functional.jacobian(network, x), 2)
        assert seen.item() <= math.exp(bound) * (1 + 1e-9)
    depth = len(widths) - 1
    product = norms.log_product(norms.spectral_norms(network, input_shape=(widths[0],), rtol=1e-12)).item()
    assert product - (depth - 1) / 2 * math.log(2) - 1e-9 <= bound <= product + 1e-9
    assert depth > 1 or bound == pytest.approx(product)


@settings(max_examples=30)
@given(widths=WIDTHS, seed=st.integers(0, 999))
def test_its_multipliers_prove_it_by_a_matrix_inequality(widths, seed):
    """‖x‖² - ‖W_d v_{d-1}‖²/L² - Σ λ_i v_iᵀ(W_i v_{i-1} - v_i) ≥ 0 for all vectors: of no smaller L with these λ."""
    weights = [layer.weight.detach() for layer in chain(widths, seed=seed) if isinstance(layer, nn.Linear)]
    square = math.exp(2 * norms.log_lipschitz_bound(chain(widths, seed=seed)).item())
    multipliers, x = [], torch.eye(widths[0], dtype=torch.float64)
    for w in weights[:-1]:
        m = w @ torch.linalg.inv(x) @ w.T
        multipliers.append(2 / torch.linalg.eigvalsh(m)[-1].item())
        x = multipliers[-1] * torch.eye(len(w), dtype=torch.float64) - multipliers[-1] ** 2 / 4 * m

    def least(square):
        sizes = widths[:-1]
        blocks = [[torch.zeros(a, b, dtype=torch.float64) for b in sizes] for a in sizes]
        for i, factor in enumerate([1.0, *multipliers]):
            blocks[i][i] += factor * torch.eye(sizes[i], dtype=torch.float64)
        for i, (factor, w) in enumerate(zip(multipliers, weights, strict=False), 1):
            blocks[i][i - 1] -= factor / 2 * w
            blocks[i - 1][i] -= factor / 2 * w.T
        blocks[-1][-1] -= weights[-1].T @ weights[-1] / square
        matrix = torch.cat([torch.cat(row, 1) for row in blocks])
        return (torch.linalg.eigvalsh(matrix)[0] / max([1.0, *multipliers])).item()

    assert least(square) > -1e-9
    assert least(0.99 * square) < 0


def test_layers_with_nothing_between_are_one():
    network = chain((4, 6, 3), seed=3)
    linear = nn.Sequential(network[0], nn.Identity(), network[2])
    exact = torch.linalg.matrix_norm(network[2].weight @ network[0].weight, 2).log().item()
    assert norms.log_lipschitz_bound(linear).item() == pytest.approx(exact)
    ends = nn.Sequential(nn.Tanh(), *network, nn.Sigmoid())
    assert norms.log_lipschitz_bound(ends) == norms.log_lipschitz_bound(network)


def test_it_goes_with_the_scale_of_layers_and_no_product_overflows():
    network = chain((4, 6, 5, 3))
    found = norms.log_lipschitz_bound(network).item()
    for layer, factor in zip(network[::2], (1e200, 1e-100, 1e150), strict=True):
        layer.weight.data.mul_(factor**0.5)
    assert norms.log_lipschitz_bound(network).item() == pytest.approx(found + 125 * math.log(10), rel=1e-12)


def test_a_stack_gives_one_value_a_model_and_nothing_is_changed():
    networks = [chain((4, 6, 5, 3), seed=seed) for seed in range(3)]
    with unchanged(networks[0]):
        alone = torch.stack([norms.log_lipschitz_bound(network) for network in networks])
    torch.testing.assert_close(norms.log_lipschitz_bound(Network.stack(networks)), alone)
    half = copy.deepcopy(networks[0]).bfloat16()
    torch.testing.assert_close(norms.log_lipschitz_bound(half), norms.log_lipschitz_bound(half.float()))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), "network is no Sequential of dense layers"),
        (nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 2)), "network is no Sequential of dense layers"),
        (nn.Sequential(nn.ReLU()), "network is no Sequential of dense layers"),
        (nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(1.5)), "network: 1 is a LeakyReLU with a slope outside"),
        (nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(-0.1)), "network: 1 is a LeakyReLU with a slope outside"),
    ],
)
def test_what_it_does_not_bound_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        norms.log_lipschitz_bound(network)


def test_a_layer_of_zeros_is_refused():
    network = chain((3, 4, 2))
    network[0].weight.data.zero_()
    with pytest.raises(ValueError, match="a layer has no weight other than zero"):
        norms.log_lipschitz_bound(network)
