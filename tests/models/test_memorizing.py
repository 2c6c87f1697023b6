"""Memorizing networks are the theorem's, and fit any values."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models_cases import parameters
from sklearn.datasets import load_digits
from torch import nn

from genlib.models import deep_memorizing_network, memorizing_network
from genlib.models.by_hand import whole


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[:1297]
    return torch.from_numpy(x[order] / 16), torch.from_numpy(y[order])


def test_memorizing_network_fits_the_digits_and_random_labels(digits):
    x, y = digits
    noise = torch.randint(10, (len(y),), generator=torch.Generator().manual_seed(0))
    for labels in (y, noise):
        network = memorizing_network(x, labels)
        assert parameters(network) == 2 * 1297 + 64 == 2658
        assert (network(x) - labels).abs().max().item() < 1e-6


def test_memorizing_network_is_the_theorems(digits):
    x, y = digits[0][:60], F.one_hot(digits[1][:60], 10)
    network = memorizing_network(x, y, seed=1)
    assert parameters(network) == 64 + 60 + 600  # a and b are shared
    z = (x @ network.direction).detach().sort().values
    b = network.biases.detach()
    assert (b < z).all() and (z[:-1] < b[1:]).all()
    matrix = torch.relu(z[:, None] - b)
    assert torch.equal(matrix, matrix.tril())
    assert network.smallest_eigenvalue == pytest.approx(torch.linalg.eigvals(matrix).real.min().item(), rel=1e-6)
    by_hand = sum(torch.relu(x @ network.direction - b[j])[:, None] * network.weights[j] for j in range(60))
    torch.testing.assert_close(network(x), by_hand, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network(x), y.double(), rtol=0, atol=1e-8)


@given(
    targets=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    dimension=st.integers(1, 4),
    depth=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_memorizing_networks_take_any_values(targets, dimension, depth, seed):
    y = torch.tensor(targets, dtype=torch.float64)
    x = torch.randn(len(y), dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    network = memorizing_network(x, y, seed=seed)
    assert parameters(network) == 2 * len(y) + dimension
    # Rounding grows with the slopes, and they with the height of the targets over the distance of the samples.
    tolerance = 1e-13 * len(y) * (1 + y.abs().max().item()) * (1 + 1 / network.smallest_eigenvalue)
    assert (network(x) - y).abs().max().item() <= tolerance
    depth = min(depth, len(y))
    deep = deep_memorizing_network(x, y, depth, seed=seed)
    assert (deep(x) - y).abs().max().item() <= tolerance


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_deep_memorizing_network_is_the_shallow_one_in_narrow_layers(digits, depth):
    x, y = digits
    shallow, deep = memorizing_network(x, y), deep_memorizing_network(x, y, depth)
    widths = [layer.out_features for layer in deep if isinstance(layer, nn.Linear)]
    assert len(widths) == depth + 1
    assert max(widths) <= -(-1297 // depth) + 3
    assert (deep(x) - y).abs().max().item() < 1e-6
    elsewhere = torch.rand(50, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(deep(elsewhere), shallow(elsewhere), rtol=1e-6, atol=1e-6)


def test_deep_memorizing_network_with_several_outputs(digits):
    x, y = digits[0][:50].reshape(50, 1, 8, 8), F.one_hot(digits[1][:50], 10)
    deep = deep_memorizing_network(x, y, 3)
    torch.testing.assert_close(deep(x), y.double(), rtol=0, atol=1e-7)
    assert max(layer.out_features for layer in deep if isinstance(layer, nn.Linear)) == 17 + 1 + 20


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: whole(0.5), "seed is 0.5"),
        (lambda: memorizing_network(torch.zeros(0, 2), torch.zeros(0)), "not empty"),
        (lambda: memorizing_network(torch.eye(3), torch.zeros(2)), r"labels has the shape \(2,\) for 3 inputs"),
        (
            lambda: memorizing_network(torch.eye(3), torch.full((3,), torch.nan)),
            "labels holds values that are not finite",
        ),
        (lambda: memorizing_network(torch.eye(3) / 0, torch.zeros(3)), "inputs holds values that are not finite"),
        (
            lambda: memorizing_network(torch.eye(3)[[0, 1, 2, 1]], torch.arange(4)),
            r"inputs\[1\] and inputs\[3\] are equal",
        ),
        (
            lambda: memorizing_network(torch.tensor([[0.0], [5e-324]], dtype=torch.float64), torch.arange(2)),
            "too close",
        ),
        (lambda: memorizing_network(torch.tensor([[1.0, 0.0], [1.0, 1e-30]]), torch.arange(2)), "too close"),
        (lambda: deep_memorizing_network(torch.eye(3), torch.arange(3), 4), "depth is 4; .* between 1 and .* 3"),
        (lambda: deep_memorizing_network(torch.eye(3), torch.arange(3), 0), "depth is 0"),
    ],
)
def test_bad_input_names_the_argument_and_the_mend(call, says):
    with pytest.raises(ValueError, match=says):
        call()
