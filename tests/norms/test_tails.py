"""The exponents of spectra: fits of power laws by brute force, and whose singular values they are."""

import numpy as np
import pytest
import torch
from cases import drawn, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from norms_cases import dense
from scipy import stats
from torch import nn

from genlib import norms
from genlib.network import Network
from genlib.norms import tails


def by_brute_force(values):
    """Each value but the largest for x_min; the law by scipy, its distance from the values by its own test."""
    best = None
    for minimum in np.unique(values)[:-1]:
        tail = values[values >= minimum]
        alpha = 1 + len(tail) / np.log(tail / minimum).sum()
        distance = stats.kstest(tail, stats.pareto(alpha - 1, scale=minimum).cdf).statistic
        if best is None or distance < best[2] - 1e-12:
            best = (alpha, minimum, distance, len(tail))
    return best


@settings(max_examples=12)
@given(n=st.integers(50, 90), kind=st.sampled_from(["pareto", "exponential", "ties"]), seed=st.integers(0, 999))
def test_the_tail_is_the_best_of_all_minima(n, kind, seed):
    generator = np.random.default_rng(seed)
    values = {
        "pareto": lambda: 1 + generator.pareto(1.7, n),
        "exponential": lambda: generator.exponential(size=n) + 1e-3,
        "ties": lambda: generator.integers(1, 30, n).astype(float),
    }[kind]()
    alpha, minimum, distance, count = by_brute_force(values)
    found = norms.tail_exponent(torch.from_numpy(values))
    assert found.distance.item() == pytest.approx(distance, abs=1e-9)
    if kind != "ties":
        assert found.value.item() == pytest.approx(alpha, rel=1e-9)
        assert (found.minimum.item(), found.count.item()) == (minimum, count)
        assert found.standard_error.item() == pytest.approx((alpha - 1) / count**0.5)
    scaled = norms.tail_exponent(torch.from_numpy(1e-9 * values))
    assert scaled.value.item() == pytest.approx(found.value.item(), rel=1e-6)


def test_the_exponent_of_a_law_is_found_within_its_error_and_beyond_three():
    generator = np.random.default_rng(0)
    for alpha in (2.0, 3.5, 7.0):
        draws = torch.from_numpy(1 + generator.pareto(alpha - 1, (40, 400)))
        found = norms.tail_exponent(draws)
        assert found.value.shape == (40,)
        score = (found.value - alpha) / found.standard_error
        assert abs(score.mean()) < 4 * score.std() / 40**0.5 and 0.6 < score.std() < 2


def test_values_without_a_tail_are_refused():
    with pytest.raises(ValueError, match="values holds 49, and a tail needs 50"):
        norms.tail_exponent(torch.rand(49) + 1)
    with pytest.raises(ValueError, match="values must be positive and finite"):
        norms.tail_exponent(torch.arange(60.0))
    with pytest.raises(ValueError, match="values are all the same"):
        norms.tail_exponent(torch.ones(60))


CONVOLUTIONS = {
    "zeros": (nn.Conv2d(3, 4, 3, padding=1), (3, 5, 6)),
    "stride": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 9, 8)),
    "replicate": (nn.Conv1d(3, 5, 3, padding=1, padding_mode="replicate"), (3, 20)),
    "transposed": (nn.ConvTranspose2d(3, 5, 3, stride=2), (3, 5, 4)),
    "circular": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), (4, 7, 6)),
    "circular, groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular"), (4, 6, 6)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_has_the_spectrum_of_its_map(name):
    convolution, shape = CONVOLUTIONS[name]
    matrix = dense(drawn(convolution), shape)
    exact = torch.linalg.svdvals(matrix).square()
    (tail,) = norms.tail_exponents(convolution, input_shape=shape).values()
    if name.startswith("circular"):  # all but those of real frequencies are there twice
        weight = tails.folded(convolution, None, None, shape)
        found = tails._squares(weight[1][0], weight[2])[0]
        for value in (found.min(), found.max(), found.median()):
            assert ((exact - value).abs() < 1e-5 * value).any()
        assert ((exact.unsqueeze(1) - found).abs() < 1e-5 * exact.max()).any(1).all()
        assert len(exact) / 2 < len(found) < len(exact) * 0.6
        exact = found
    expected = norms.tail_exponent(exact[exact > 1e-9 * exact.max()])
    assert tail.value.item() == pytest.approx(expected.value.item(), rel=1e-4)
    assert tail.count == expected.count


def test_a_convolution_of_one_pixel_has_that_of_its_matrix():
    convolution = drawn(nn.Conv2d(60, 70, 1))
    (tail,) = norms.tail_exponents(convolution, input_shape=(60, 3, 3)).values()
    (of_matrix,) = norms.tail_exponents(_layer(convolution.weight[..., 0, 0]), input_shape=(60,)).values()
    assert tail.value == of_matrix.value


def _layer(weight):
    layer = nn.Linear(*weight.shape[::-1])
    layer.weight.data = weight.detach()
    return layer


def wide(seed=0):
    return drawn(nn.Sequential(nn.Linear(80, 60), nn.ReLU(), nn.Linear(60, 55), nn.ReLU(), nn.Linear(55, 3)), seed)


def test_the_layers_of_a_network_that_are_large_enough():
    network = wide().double()
    with unchanged(network):
        found = norms.tail_exponents(network, input_shape=(80,))
    assert list(found) == ["0", "2"]
    for name, tail in found.items():
        values = np.linalg.svd(network[int(name)].weight.detach().numpy(), compute_uv=False) ** 2
        assert tail.value.item() == pytest.approx(by_brute_force(values)[0], rel=1e-9)
    stack = norms.tail_exponents(Network.stack([wide(1).double(), network]), input_shape=(80,))
    assert stack["2"].value[1].item() == pytest.approx(found["2"].value.item(), rel=1e-9)
    assert list(norms.tail_exponents(network, input_shape=(80,), exclude="0")) == ["2"]


def test_spectra_too_small_or_too_large_are_refused(monkeypatch):
    network = wide()
    with pytest.raises(ValueError, match="the most singular values of a layer are 3, and a tail needs 50"):
        norms.tail_exponents(network, input_shape=(80,), include="4")
    network[0].weight.data[1:] = network[0].weight.data[:1]
    assert list(norms.tail_exponents(network, input_shape=(80,))) == ["2"]  # of rank one
    monkeypatch.setattr(tails, "_SIDE", 54)
    with pytest.raises(ValueError, match=r"the map of 0 is 60 × 80, too large .* leave it out by exclude"):
        norms.tail_exponents(network, input_shape=(80,))
    monkeypatch.setattr(tails, "_ENTRIES", 1000)
    with pytest.raises(ValueError, match="the map of 0 is 90 × 120, too large"):
        norms.tail_exponents(nn.Sequential(CONVOLUTIONS["zeros"][0]), input_shape=(3, 5, 6))
