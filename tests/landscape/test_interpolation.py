"""Lines and planes between networks are the loss of blended copies."""

import pytest
import torch
from cases import CASES, data, dense, flat, linear, residual
from landscape_cases import blended, cross_entropy, moved

from genlib.landscape import line, plane
from genlib.network import Network


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [None, 12, 5, 40])  # side by side or not, one pass, several, side by side
def test_a_line_is_the_loss_of_blended_copies(name, chunk_size):
    start, inputs, labels = CASES[name]()
    end = CASES[name](seed=1)[0]
    found = line(start, end, inputs, labels, points=5, limits=(-0.25, 1.25), chunk_size=chunk_size)
    assert found.positions.tolist() == [-0.25, 0.125, 0.5, 0.875, 1.25]
    expected = [cross_entropy(blended((start, end), (1 - t, t)), inputs, labels) for t in found.positions]
    expected = torch.stack(expected).nan_to_num(nan=torch.inf)
    torch.testing.assert_close(found.losses, expected)


@pytest.mark.parametrize("name", CASES)
def test_a_line_ends_at_the_networks_themselves(name):
    start, inputs, labels = CASES[name]()
    end = CASES[name](seed=1)[0]
    found = line(start, end, inputs, labels, points=2).losses
    torch.testing.assert_close(found[0], cross_entropy(start, inputs, labels), rtol=1e-14, atol=0)
    torch.testing.assert_close(found[1], cross_entropy(end, inputs, labels), rtol=1e-14, atol=0)


def test_a_line_of_error_rates():
    (start, inputs, labels), end = CASES["dense"](), dense(seed=1)
    found = line(start, end, inputs, labels, points=3, loss="error")
    midway = blended((start, end), (0.5, 0.5))
    assert found.losses[1] == (midway(inputs).argmax(1) != labels).double().mean()


def test_a_line_of_squared_errors_of_a_linear_network_is_a_parabola():
    inputs, labels = data()
    found = line(linear(), linear(1), inputs, labels, points=6, loss="mse").losses
    third = found.diff(n=3)
    torch.testing.assert_close(third, torch.zeros_like(third), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_a_line_backwards_is_the_same_line(name):
    start, inputs, labels = CASES[name]()
    end = CASES[name](seed=1)[0]
    there, back = (line(*pair, inputs, labels, points=4).losses for pair in ((start, end), (end, start)))
    torch.testing.assert_close(there, back.flip(0))


@pytest.mark.parametrize("name", CASES)
def test_lines_between_two_stacks(name):
    starts, ends = ([CASES[name](seed=seed)[0] for seed in seeds] for seeds in ((0, 1), (2, 3)))
    _, inputs, labels = CASES[name]()
    found = line(Network.stack(starts), Network.stack(ends), inputs, labels, points=3).losses
    each = [line(a, b, inputs, labels, points=3).losses for a, b in zip(starts, ends, strict=True)]
    torch.testing.assert_close(found, torch.stack(each))


def test_each_line_of_a_stack_on_its_own_data():
    starts, ends, sets = [dense(0), dense(1)], [dense(2), dense(3)], [data(0), data(1)]
    inputs, labels = (torch.stack(tensors) for tensors in zip(*sets, strict=True))
    found = line(Network.stack(starts), Network.stack(ends), inputs, labels, points=3).losses
    each = [line(a, b, *own, points=3).losses for a, b, own in zip(starts, ends, sets, strict=True)]
    torch.testing.assert_close(found, torch.stack(each))


def test_a_variance_below_zero_makes_the_loss_infinite():
    inputs, labels = data(shape=(3, 4, 4))
    start, end = residual(0), residual(0)
    end.norm.running_var.mul_(0.5)
    found = line(start, end, inputs, labels, points=4, limits=(0.0, 3.0)).losses
    assert found[:2].isfinite().all() and found[3] == torch.inf


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [None, 40])
def test_a_plane_is_the_loss_of_blended_copies(name, chunk_size):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1, 2)]
    _, inputs, labels = CASES[name]()
    found = plane(*networks, inputs, labels, points=4, margin=0.1, chunk_size=chunk_size)
    origin, first, second = found.networks
    for row, y in enumerate(found.y):
        for column, x in enumerate(found.x):
            there = torch.stack([x, y])
            s, t = torch.linalg.solve(torch.stack([first - origin, second - origin], 1), there - origin)
            expected = cross_entropy(blended(networks, (1 - s - t, s, t)), inputs, labels).nan_to_num(nan=torch.inf)
            torch.testing.assert_close(found.losses[row, column], expected)


@pytest.mark.parametrize("name", CASES)
def test_distances_on_a_plane_are_those_of_the_weights(name):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1, 2)]
    found = plane(*networks, *CASES[name]()[1:], points=2).networks
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(*[torch.stack([*map(flat, networks)])] * 2))
    assert found[0].tolist() == [0, 0] and found[1, 0] > 0 and found[1, 1] == 0 and found[2, 1] > 0


def test_a_plane_leaves_a_margin_around_its_networks():
    found = plane(dense(0), dense(1), dense(2), *data(), points=3, margin=0.5)
    for axis, places in zip((found.x, found.y), found.networks.T, strict=True):
        low, high = places.min(), places.max()
        torch.testing.assert_close(
            axis, torch.stack([1.5 * low - 0.5 * high, (low + high) / 2, 1.5 * high - 0.5 * low])
        )


def test_the_corner_of_a_plane_is_the_origin():
    weights = dense(0)
    right = moved(weights, {name: torch.eye(*w.shape) if w.dim() == 2 else 0 for name, w in weights.named_parameters()})
    up = moved(weights, {name: 0 if w.dim() == 2 else 1 for name, w in weights.named_parameters()})
    inputs, labels = data()
    found = plane(weights, right, up, inputs, labels, points=2, margin=0.0)
    for place, network in (((0, 0), weights), ((0, 1), right), ((1, 0), up)):
        torch.testing.assert_close(found.losses[place], cross_entropy(network, inputs, labels))
