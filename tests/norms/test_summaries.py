"""All norms of a layer at once: they are those that each kernel gives, and each is computed once."""

import numpy as np
import pytest
import torch
from cases import drawn
from norms_cases import Block
from torch import nn

from genlib import norms
from genlib.network import Network

SHAPE = (3, 5, 5)


def mixed(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4), nn.Flatten(), nn.LayerNorm(16)]
    return drawn(nn.Sequential(*layers, nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)).double(), seed)


CASES = {
    "block": (lambda seed: drawn(Block(), seed), SHAPE, {}),
    "parts": (mixed, (3, 5), {"exclude": "5"}),
    "include": (mixed, (3, 5), {"include": ["0", "6"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_they_are_what_each_kernel_gives(name):
    make, shape, parts = CASES[name]
    modules, starts = [make(0), make(1)], [make(2), make(3)]
    for network, initial in ((modules[0], starts[0]), (Network.stack(modules), Network.stack(starts))):
        found = norms.layer_norms(network, initial=initial, input_shape=shape, **parts)
        assert found.names == norms.layer_names(network, **parts)
        assert found.shapes == norms.layer_shapes(network, **parts)
        for values, expected in (
            (found.frobenius, norms.frobenius_norms(network, **parts)),
            (found.operator_frobenius, norms.operator_frobenius_norms(network, input_shape=shape, **parts)),
            (found.spectral, norms.spectral_norms(network, input_shape=shape, **parts)),
            (found.group, norms.group_norms(network, 2, 1, **parts)),
            (found.distances, norms.distances(network, initial, **parts)),
        ):
            assert torch.equal(values, expected)
        assert found.singular_values == [None] * len(found.names)
    assert norms.layer_norms(modules[0], input_shape=shape, **parts).distances is None


def test_types_and_folded_batch_norms_are_named():
    found = norms.layer_norms(mixed(), input_shape=(3, 5), exclude="5")
    assert found.types == ["Conv1d", "BatchNorm1d", "Linear", "Linear"]
    assert found.batch_norms == ["1", "", "", ""]
    rnn = norms.layer_norms(nn.GRU(2, 3))
    assert rnn.types == ["GRU"] * 6 and rnn.batch_norms == [""] * 6


def test_singular_values_in_falling_order_but_for_convolutions():
    networks = [mixed(seed) for seed in range(2)]
    alone = norms.layer_norms(networks[1], input_shape=(3, 5), exclude="5", singular_values=4)
    stack = norms.layer_norms(Network.stack(networks), input_shape=(3, 5), exclude="5", singular_values=4)
    scale = networks[1][3].weight / (networks[1][3].running_var + networks[1][3].eps).sqrt()
    by_hand = [
        np.sort(np.abs(scale.detach().numpy()))[::-1],
        np.linalg.svd(networks[1][6].weight.detach().numpy(), compute_uv=False)[:4],
        np.linalg.svd(networks[1][8].weight.detach().numpy(), compute_uv=False),  # there are three
    ]
    assert alone.singular_values[0] is None is stack.singular_values[0]
    for place, expected in enumerate(by_hand, start=1):
        np.testing.assert_allclose(alone.singular_values[place], expected, rtol=1e-12)
        np.testing.assert_allclose(stack.singular_values[place][1], expected, rtol=1e-12)
        assert alone.spectral[place] == pytest.approx(expected[0], rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: norms.layer_norms(drawn(Block())), "input_shape is missing; first is a convolution"),
        (lambda: norms.layer_norms(nn.Linear(3, 2), singular_values=-1), "singular_values is -1"),
        (lambda: norms.layer_norms(nn.PReLU()), "network: the module itself is of type PReLU"),
        (lambda: norms.layer_norms(nn.Linear(3, 2), initial=nn.Linear(3, 4)), "initial differs from network at"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_dense_layers_need_no_shape():
    layer = nn.Linear(3, 2)
    assert norms.layer_norms(layer).spectral.item() == pytest.approx(
        torch.linalg.matrix_norm(layer.weight.detach(), 2).item()
    )
