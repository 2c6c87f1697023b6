"""Weights are drawn by the stated law, and from the seed alone."""

import numpy as np
import pytest
import torch

from genlib import models
from genlib.models import deep_memorizing_network, inception_v3, memorizing_network, mlp


def test_initialization_laws():
    inputs, width = 400, 600
    std = {"default": (3 * inputs) ** -0.5, "xavier": (2 / (inputs + width)) ** 0.5, "he": (2 / inputs) ** 0.5}
    for law, expected in std.items():
        first = mlp(inputs, 2, width=width, initialization=law)[1]
        # 240,000 draws: the standard deviation of the sample's own is below 0.15 %, and this is over six of them.
        assert first.weight.std().item() == pytest.approx(expected, rel=0.01)
        assert (first.bias.abs().max().item() == 0) == (law != "default")
    assert mlp(inputs, 2)[1].weight.abs().max() <= inputs**-0.5


def test_init_scale_multiplies_weights_alone():
    plain, scaled = (
        mlp(6, 2, width=5, normalization="batch"),
        mlp(6, 2, width=5, normalization="batch", init_scale=10.0),
    )
    for (name, p), q in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        grows = name in ("1.weight", "4.weight")
        torch.testing.assert_close(q, 10 * p if grows else p)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: mlp(5, 2, width=4, initialization="xavier", seed=seed),
        lambda seed: models.two_layer(5, width=4, normalization="batch", training_inputs=torch.eye(5), seed=seed),
        lambda seed: models.small_inception(seed=seed),
        lambda seed: models.small_alexnet(input_shape=(1, 8, 8), seed=seed),
        lambda seed: models.vgg(input_shape=(1, 32, 32), seed=seed),
        lambda seed: inception_v3(2, seed=seed),
        lambda seed: memorizing_network(torch.eye(4), torch.arange(4), seed=seed),
        lambda seed: deep_memorizing_network(torch.eye(4), torch.arange(4), 2, seed=seed),
    ],
)
def test_a_seed_fixes_the_weights_and_the_global_state_stays(make):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = make(3), make(3), make(4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    state, same = first.state_dict(), again.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert not all(torch.equal(state[name], value) for name, value in other.state_dict().items())
