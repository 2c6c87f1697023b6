"""Transitions between linear regions, counted unit by unit, and the breakpoints between them."""

import copy
import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from cases import Untraceable, unchanged
from hypothesis import given, settings
from sensitivity_cases import PIECEWISE, convolutional, dense, normal
from torch import nn

from genlib import models
from genlib.network import Network
from genlib.sensitivity import breakpoints, ellipse, transitions


def codes(module, x):
    """The index of the linear piece of every unit at one point, number by number."""
    found = []
    x = x.unsqueeze(0)
    for layer in module:
        below = x
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d | nn.AdaptiveMaxPool2d):
            pool = F.max_pool2d if isinstance(layer, nn.MaxPool2d) else F.adaptive_max_pool2d
            size = 2 if isinstance(layer, nn.MaxPool2d) else 1
            found += [("argmax", i) for i in pool(below, size, return_indices=True)[1].flatten().tolist()]
        elif type(layer) in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid):
            low, high = {
                nn.ReLU: lambda layer: (0, math.inf),
                nn.ReLU6: lambda layer: (0, 6),
                nn.Hardtanh: lambda layer: (layer.min_val, layer.max_val),
                nn.Hardsigmoid: lambda layer: (-3, 3),
            }[type(layer)](layer)
            found += [0 if z <= low else 1 if z <= high else 2 for z in below.flatten().tolist()]
    return found


def naive_transitions(module, path):
    with torch.no_grad():
        at = [codes(module, x) for x in path]
    return torch.tensor(
        [
            sum(int(p != q) if isinstance(p, tuple) else abs(p - q) for p, q in zip(here, there, strict=True))
            for here, there in zip(at, at[1:] + at[:1], strict=True)
        ]
    )


@pytest.mark.parametrize("activation", PIECEWISE)
def test_transitions_of_dense_networks_are_those_counted_unit_by_unit(activation):
    module = dense(activation=activation)
    path = 8 * ellipse(*normal(3, 3), points=30)
    expected = naive_transitions(module, path)
    assert torch.equal(transitions(module, path), expected)
    assert expected.sum() > 10


def test_transitions_of_convolutions_and_pools_are_those_counted_unit_by_unit():
    module, path = convolutional(), 3 * ellipse(*normal(3, 2, 6, 6), points=20)
    expected = naive_transitions(module, path)
    assert torch.equal(transitions(module, path), expected)
    assert expected.sum() > 10


def test_one_neuron_changes_twice_on_a_loop_however_many_points():
    module = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    module[0].weight.data, module[0].bias.data = torch.tensor([[1.0, 0.3]]).double(), torch.tensor([0.2]).double()
    for points in (7, 100, 200):
        angles = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
        circle = torch.stack([angles.cos(), angles.sin()], 1)
        found = transitions(module, circle)
        assert found.sum() == 2 and found.max() == 1
    assert transitions(module, 0.01 * circle).sum() == 0


def test_the_last_step_leads_back_to_the_first_point():
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2)).double()
    module[0].weight.data.fill_(1)
    path = torch.tensor([[-1.0], [-2.0], [3.0]]).double()
    assert transitions(module, path).tolist() == [0, 1, 1]
    assert transitions(module, path, chunk_size=1).tolist() == [0, 1, 1]


def test_a_piece_jumped_over_counts_twice():
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU6(), nn.Linear(1, 2)).double()
    module[0].weight.data.fill_(1)
    assert transitions(module, torch.tensor([[-1.0], [9.0]]).double()).tolist() == [2, 2]
    assert transitions(module, torch.tensor([[-1.0], [3.0], [9.0]]).double()).tolist() == [1, 1, 2]


@pytest.mark.parametrize("chunk_size", [1, 4, 9, 10, 35, 1000])
def test_many_paths_and_chunks_change_nothing(chunk_size):
    module = dense()
    paths = 4 * ellipse(*normal(3, 2, 3, 3), points=10, dim=2)
    assert paths.shape == (2, 3, 10, 3)
    found = transitions(module, paths, dim=2, chunk_size=chunk_size)
    expected = torch.stack([transitions(module, path) for path in paths.flatten(0, 1)]).view(2, 3, 10)
    assert torch.equal(found, expected)


def test_a_stack_counts_for_each_network():
    modules = [dense(seed) for seed in range(3)]
    paths = 4 * ellipse(*normal(3, 2, 3), points=10, dim=1)
    found = transitions(Network.stack(modules), paths, dim=1)
    assert torch.equal(found, torch.stack([transitions(module, paths, dim=1) for module in modules]))
    assert transitions(Network.stack(modules[:1]), paths[0]).shape == (1, 10)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(PIECEWISE))
def test_more_points_never_miss_what_fewer_have_seen(seed, activation):
    module, (a, b, c) = dense(seed % 5, activation=activation), 4 * normal(3, 3, seed=seed)
    counts = [transitions(module, ellipse(a, b, c, points=points)).sum().item() for points in (10, 20, 40)]
    assert counts == sorted(counts)


def test_a_linear_network_has_no_transitions():
    assert transitions(nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 3)).tolist() == [0, 0, 0, 0]


def test_nothing_is_touched_by_transitions():
    module, path = convolutional(), normal(6, 2, 6, 6)
    with unchanged(module, path):
        transitions(module, path)


class Merged(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(torch.relu(x.reshape(-1, 2))).view(-1, 3)


@pytest.mark.parametrize(
    ("module", "path", "options", "message"),
    [
        (models.mlp(4, 3, activation="tanh"), torch.ones(3, 4), {}, "^network: 2 is not piecewise linear"),
        (models.mlp(4, 3, normalization="layer"), torch.ones(3, 4), {}, "^network: 2 is not piecewise linear"),
        (nn.Sequential(nn.Linear(4, 3), nn.Hardswish()), torch.ones(3, 4), {}, "operations 1 are unknown"),
        (Untraceable(nn.Linear(4, 3)), torch.ones(3, 4), {}, r"torch\.fx can't trace"),
        (models.mlp(4, 3), torch.ones(1, 4), {}, "^path has 1 points along axis 0; give at least 2"),
        (models.mlp(4, 3), torch.ones(3, 1, 4), {"dim": 1}, "^path has 1 points along axis 1"),
        (models.mlp(4, 3), torch.ones(3, 4), {"dim": 1}, "^dim is 1"),
        (models.mlp(4, 3), torch.ones(3, 4), {"chunk_size": 0}, "^chunk_size is 0"),
        (models.mlp(4, 3), torch.ones(3, 4).long(), {}, r"^path is of torch\.int64"),
        (models.mlp(4, 3), torch.full((3, 4), torch.nan), {}, "^path is not finite"),
        (models.mlp(4, 3, normalization="batch"), torch.ones(3, 4), {}, "BatchNorm in training mode"),
        (Merged(), torch.ones(3, 4), {}, r"^network: its output on 3 samples has the shape \(6, 3\)"),
    ],
)
def test_transitions_refuse(module, path, options, message):
    with pytest.raises(ValueError, match=message):
        transitions(module, path, **options)


@pytest.mark.parametrize("activation", PIECEWISE)
@pytest.mark.parametrize("seed", range(3))
def test_breakpoints_are_those_of_dense_sampling(activation, seed):
    module, (start, end) = dense(seed, 20, activation=activation), 6 * normal(2, 3, seed=seed)
    found = breakpoints(module, start, end)
    t = torch.linspace(0, 1, 50_001, dtype=torch.float64)
    counts = transitions(module, torch.lerp(start, end, t.unsqueeze(1)))[:-1]
    expected = t[:-1][counts > 0]
    assert len(found) > 5 and len(expected) == len(found) == counts.sum()  # so fine that none share an interval
    assert (found >= expected).all() and (found <= expected + t[1]).all()
    assert (found.diff() > 0).all()


@pytest.mark.parametrize("activation", PIECEWISE)
def test_the_network_is_affine_between_breakpoints(activation):
    module, (start, end) = dense(activation=activation), 6 * normal(2, 3)
    inner = breakpoints(module, start, end)
    t = torch.cat([torch.zeros(1), inner, torch.ones(1)]).double()

    def at(t):
        with torch.no_grad():
            return module(torch.lerp(start, end, t.unsqueeze(1)))

    torch.testing.assert_close(at((t[1:] + t[:-1]) / 2), (at(t[1:]) + at(t[:-1])) / 2)


def test_breakpoints_by_hand():
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.Hardtanh(0.0, 0.1), nn.Linear(1, 2)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        module[0].bias.copy_(torch.tensor([-0.5, 0.5]))
        module[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
        module[2].bias.fill_(0)
    # |x − 1/2| has both its units bend at 1/2 and is above 0.1 outside [0.4, 0.6].
    found = breakpoints(module, torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(found, torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64))
    reversed_ = breakpoints(module, torch.ones(1), torch.zeros(1))
    torch.testing.assert_close(1 - reversed_.flip(0), found)


def test_breakpoints_add_up_to_the_transitions_along_a_polygon():
    module, corners = dense(width=20), 4 * normal(3, 3)
    sides = list(zip(corners, corners.roll(-1, 0), strict=True))
    exact = sum(len(breakpoints(module, a, b)) for a, b in sides)
    t = torch.arange(5000, dtype=torch.float64).unsqueeze(1) / 5000
    path = torch.cat([torch.lerp(a, b, t) for a, b in sides])
    assert transitions(module, path).sum() == exact > 20


def test_without_kinks_there_are_no_breakpoints():
    assert (
        len(
            breakpoints(
                nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Identity()), torch.zeros(2, 2), torch.ones(2, 2)
            )
        )
        == 0
    )
    dead = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False), nn.ReLU())
    dead[0].weight.data = -dead[0].weight.data.abs()
    assert len(breakpoints(dead, torch.zeros(2), torch.ones(2))) == 0


def test_breakpoints_of_single_precision_are_float64_and_touch_nothing():
    module, (start, end) = dense().float(), 6 * normal(2, 3).float()
    with unchanged(module, start, end):
        found = breakpoints(module, start, end)
    exact = breakpoints(copy.deepcopy(module).double(), start, end)
    assert found.dtype == torch.float64 and torch.equal(found, exact)


@pytest.mark.parametrize(
    ("module", "start", "end", "message"),
    [
        (convolutional(), normal(2, 6, 6), normal(2, 6, 6, seed=1), r"^network is no Sequential of dense.*transitions"),
        (models.mlp(4, 3, activation="tanh"), torch.zeros(4), torch.ones(4), "^network: 2 is not piecewise linear"),
        (models.mlp(4, 3), torch.zeros(4), torch.ones(5), "^start has the shape"),
        (models.mlp(4, 3), torch.zeros(4), torch.zeros(4), "^start and end are equal or not finite"),
        (models.mlp(4, 3), torch.zeros(4), torch.full((4,), torch.nan), "^start and end are equal or not finite"),
        (Network.stack([models.mlp(4, 3)]), torch.zeros(4), torch.ones(4), r"^network is a stack.*network\.each"),
    ],
)
def test_breakpoints_refuse(module, start, end, message):
    with pytest.raises(ValueError, match=message):
        breakpoints(module, start, end)


def test_a_constant_made_in_the_forward_pass_changes_no_transition():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 7)

        def forward(self, x):
            return torch.relu(self.layer(nn.functional.linear(x, torch.eye(4))))

    network, path = Turned(), torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    plain = nn.Sequential(network.layer, nn.ReLU())
    assert torch.equal(transitions(network, path), transitions(plain, path)) and transitions(plain, path).sum() > 0


class Shifted(nn.Module):
    """Arithmetic on a buffer, which torch.fx does once and for all."""

    def __init__(self, shift):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 7), nn.Linear(7, 2)
        self.register_buffer("shift", torch.full((7,), shift))

    def forward(self, x):
        return self.head(torch.relu(self.layer(x) + 2 * self.shift))


def test_what_one_network_of_a_stack_computes_from_its_buffers_is_not_that_of_the_others():
    path = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    alike = [Shifted(0.1) for _ in range(2)]
    found = transitions(Network.stack(alike), path)
    assert torch.equal(found, torch.stack([transitions(module, path) for module in alike])) and found.sum() > 0
    with pytest.raises(ValueError, match=r"^network: torch\.fx can't trace"):
        transitions(Network.stack([Shifted(0.1), Shifted(0.5)]), path)
