"""Surfaces are the loss of moved copies, along directions of the filters' own norms."""

import pytest
import torch
from cases import CASES, data, dense
from landscape_cases import cross_entropy, moved
from torch import nn

from genlib.landscape import filter_normalized_directions, surface
from genlib.network import Network


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [None, 40])
def test_a_surface_is_the_loss_of_moved_copies(name, chunk_size):
    network, inputs, labels = CASES[name]()
    first, second = ({n: torch.randn_like(w) for n, w in network.named_parameters()} for _ in range(2))
    found = surface(network, inputs, labels, directions=[first, second], radius=0.5, points=3, chunk_size=chunk_size)
    assert found.x.tolist() == found.y.tolist() == [-0.5, 0, 0.5] and found.networks.tolist() == [[0, 0]]
    for row, y in enumerate(found.y):
        for column, x in enumerate(found.x):
            expected = cross_entropy(moved(moved(network, first, x), second, y), inputs, labels)
            torch.testing.assert_close(found.losses[row, column], expected)


@pytest.mark.parametrize("name", CASES)
def test_a_surface_goes_along_filter_normalized_directions(name):
    network, inputs, labels = CASES[name]()
    directions = filter_normalized_directions(network, generator=torch.Generator().manual_seed(4))
    found = surface(network, inputs, labels, points=3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(found.losses, surface(network, inputs, labels, points=3, directions=directions).losses)


def test_directions_in_another_precision_are_taken():
    network, inputs, labels = dense().float(), *data()
    directions = [{name: d.double() for name, d in one.items()} for one in filter_normalized_directions(network)]
    found = surface(network, inputs, labels, points=3, directions=directions).losses
    assert torch.equal(found, surface(network, inputs, labels, points=3).losses)


@pytest.mark.parametrize("name", CASES)
def test_a_surface_of_each_network_of_a_stack(name):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1)]
    _, inputs, labels = CASES[name]()
    found = surface(Network.stack(networks), inputs, labels, points=3).losses
    each = [surface(network, inputs, labels, points=3).losses for network in networks]
    torch.testing.assert_close(found, torch.stack(each))


@pytest.mark.parametrize("name", CASES)
def test_each_filter_of_a_direction_has_the_norm_of_the_weights(name):
    network = CASES[name]()[0]
    for direction in filter_normalized_directions(network, 3):
        for key, w in network.named_parameters():
            if w.dim() > 1:
                for row, filter_ in zip(direction[key], w.detach(), strict=True):
                    torch.testing.assert_close(row.norm(), filter_.norm())


@pytest.mark.parametrize("name", CASES)
def test_biases_and_batch_norm_do_not_move(name):
    # A known fault: biases normalized element by element, which makes every direction ± the bias itself.
    network = CASES[name]()[0]
    vectors = [key for key, w in network.named_parameters() if w.dim() == 1]
    assert vectors
    for direction in filter_normalized_directions(network):
        assert all(direction[key].count_nonzero() == 0 for key in vectors)


def test_directions_are_gaussian_up_to_their_length():
    network = nn.Sequential(nn.Linear(400, 50)).double()
    direction = filter_normalized_directions(network, 1)[0]["0.weight"]
    values = (direction / network[0].weight.norm(dim=1, keepdim=True)).flatten() * 400**0.5
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.02 and abs((values**4).mean() - 3) < 0.15


@pytest.mark.parametrize("groups", [1, 2])
def test_a_filter_of_a_transposed_convolution_leads_to_one_output_channel(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()
    inner = nn.Sequential(layer)
    direction = filter_normalized_directions(inner, 1)[0]["0.weight"]
    for channel in range(6):
        group, place = divmod(channel, 6 // groups)
        rows = slice(group * 4 // groups, (group + 1) * 4 // groups)
        torch.testing.assert_close(direction[rows, place].norm(), layer.weight[rows, place].detach().norm())


@pytest.mark.parametrize("name", CASES)
def test_directions_of_a_stack_are_those_of_its_networks(name):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1)]
    found = filter_normalized_directions(Network.stack(networks))
    for i, network in enumerate(networks):
        for direction, expected in zip(found, filter_normalized_directions(network), strict=True):
            for key, tensor in expected.items():
                torch.testing.assert_close(direction[key][i], tensor)


def test_two_directions_differ_and_come_again_for_the_same_generator():
    network = dense()
    first, second = filter_normalized_directions(network)
    again, _ = filter_normalized_directions(network, generator=None)
    other, _ = filter_normalized_directions(network, generator=torch.Generator().manual_seed(1))
    key = next(iter(first))
    assert torch.equal(first[key], again[key])
    assert not torch.allclose(first[key], second[key]) and not torch.allclose(first[key], other[key])


def test_a_filter_of_zeros_does_not_move():
    network = dense()
    with torch.no_grad():
        network[1].weight[0] = 0
    assert isinstance(network[1], nn.Linear)
    direction = filter_normalized_directions(network, 1)[0]["1.weight"]
    assert direction[0].count_nonzero() == 0 and direction[1:].norm() > 0
