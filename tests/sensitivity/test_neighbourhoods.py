"""Units that change their piece near a sample."""

import copy

import pytest
import torch
from cases import unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from sensitivity_cases import convolutional, dense, normal
from torch import nn

from genlib.network import Network
from genlib.sensitivity import local_complexity, typical_radius


def around(inputs, radius, directions, seed):
    """x ± r v_i, by Gram and Schmidt, one vector after the other."""
    generator = torch.Generator().manual_seed(seed)
    for x in inputs:
        drawn = torch.randn(x.numel(), directions, generator=generator, dtype=x.dtype)
        frame = []
        for v in drawn.T:
            v = v - sum((v @ u) * u for u in frame)
            frame.append(v / v.norm())
        yield torch.stack([x.flatten() + side * radius * v for v in frame for side in (1, -1)]).view(-1, *x.shape)


def changing(codes):
    """Units that have not one code at all points."""
    return sum(len(set(unit)) > 1 for code in codes for unit in code.flatten(1).T.tolist())


@settings(max_examples=10)
@given(seed=st.integers(0, 99), radius=st.floats(0.05, 2), directions=st.integers(1, 3))
def test_units_of_a_dense_network_are_counted_once_each(seed, radius, directions):
    network, inputs = dense(seed), normal(6, 3, seed=seed)
    expected = []
    for points in around(inputs, radius, directions, seed):
        codes = []
        for layer in network:
            points = layer(points)
            codes += [points > 0] if isinstance(layer, nn.ReLU) else []
        expected.append(changing(codes))
    generator = torch.Generator().manual_seed(seed)
    found = local_complexity(network, inputs, radius=radius, directions=directions, generator=generator)
    assert found.tolist() == expected


def test_all_kinds_of_units_of_a_convolutional_network():
    network, inputs = convolutional(), normal(4, 2, 8, 8)
    expected = []
    for points in around(inputs, 0.6, 5, 3):
        x, codes = points, []
        for layer in network:
            if isinstance(layer, nn.ReLU6):
                codes += [x > 0, x > 6]
            elif isinstance(layer, nn.Hardtanh):
                codes += [x > -0.5, x > 0.7]
            elif isinstance(layer, nn.MaxPool2d):
                codes.append(nn.functional.max_pool2d(x, 2, return_indices=True)[1])
            elif isinstance(layer, nn.AdaptiveMaxPool2d):
                codes.append(nn.functional.adaptive_max_pool2d(x, 1, return_indices=True)[1])
            x = layer(x)
        expected.append(changing(codes))
    for chunk_size in (None, 20, 1):
        generator = torch.Generator().manual_seed(3)
        options = {"radius": 0.6, "directions": 5, "generator": generator, "chunk_size": chunk_size}
        assert local_complexity(network, inputs, **options).tolist() == expected
    assert min(expected) > 0


def test_the_radius_is_a_twentieth_of_the_median_distance():
    network, inputs = dense(), normal(9, 3)
    pairs = torch.stack([(a - b).norm() for i, a in enumerate(inputs) for b in inputs[:i]])
    radius = 0.05 * pairs.median().item()
    with unchanged(network, inputs):
        found = local_complexity(network, inputs)
    assert torch.equal(found, local_complexity(network, inputs, radius=radius))
    assert torch.equal(found, local_complexity(network, inputs, radius=radius, directions=3))  # no more than numbers
    other = copy.deepcopy(network)
    other[1].bias.data += 0.3
    stack = local_complexity(Network.stack([other, network]), inputs)
    assert torch.equal(stack[1], found) and torch.equal(stack[0], local_complexity(other, inputs))
    assert (local_complexity(network, inputs, radius=3.0).sum() > found.sum()).item()


REFUSED = {
    "smooth": (nn.Sequential(nn.Linear(3, 2), nn.Tanh()), normal(4, 3), {}, "is not piecewise linear"),
    "one sample": (nn.Linear(3, 2), normal(1, 3), {}, "inputs holds one sample"),
    "all the same": (nn.Linear(3, 2), normal(1, 3).expand(4, 3), {}, "radius is 0; give a positive number"),
    "no radius": (nn.Linear(3, 2), normal(4, 3), {"radius": -1.0}, "radius is -1"),
    "no directions": (nn.Linear(3, 2), normal(4, 3), {"directions": 0}, "directions is 0"),
    "whole numbers": (nn.Linear(3, 2), torch.ones(4, 3).long(), {}, "inputs is of torch.int64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    network, inputs, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        local_complexity(network.double(), inputs, **options)


def test_the_typical_distance_of_many_samples_takes_no_more_memory_than_that_of_two_thousand(monkeypatch):
    counts, pdist = [], torch.nn.functional.pdist
    monkeypatch.setattr(torch.nn.functional, "pdist", lambda x: counts.append(len(x)) or pdist(x))
    inputs = torch.arange(6001.0).unsqueeze(1)
    assert typical_radius(inputs) == pytest.approx(0.05 * 6001 * (1 - 0.5**0.5), rel=0.01)  # of uniform numbers
    assert typical_radius(inputs[:2000]) == pytest.approx(0.05 * 2000 * (1 - 0.5**0.5), rel=0.01)
    assert counts == [1501, 2000]
