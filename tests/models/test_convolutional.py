"""Convolutional networks hold the stated layers, and take other images and classes."""

import itertools

import pytest
import torch
from models_cases import parameters
from torch import nn

from genlib import models
from genlib.models import build, inception_v3


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("width", [64, 3])
def test_vgg_holds_the_stated_layers(batch_norm, width):
    network = models.vgg(7, width=width, batch_norm=batch_norm).eval()
    channels, units = [3, *(width * times for times in (1, 1, 2, 2, 4, 4, 8, 8))], 8 * width
    weights = sum(9 * a * b + b for a, b in itertools.pairwise(channels)) + units * units + units + units * 7 + 7
    assert parameters(network) == weights + (2 * (sum(channels[1:]) + units) if batch_norm else 0)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("depth", "shape"), [(1, (3, 32, 32)), (2, (1, 9, 12)), (6, (3, 8, 8))])
def test_network_in_network_holds_the_stated_layers(depth, shape):
    network = models.network_in_network(7, width=5, depth=depth, input_shape=shape, dropout=0.1).eval()
    blocks = [9 * shape[0] * 5, *[9 * 5 * 5] * (depth - 1)]
    assert parameters(network) == sum(blocks) + depth * (2 * 5 * 5 + 3 * (5 + 2 * 5)) + 5 * 7 + 7 + 2 * 7
    assert sum(isinstance(layer, nn.Dropout) for layer in network) == depth
    assert network(torch.zeros(2, *shape)).shape == (2, 7)


def test_convolutional_networks_take_other_images_and_classes():
    for name, shape in (("small_inception", (1, 9, 12)), ("small_alexnet", (1, 9, 13)), ("vgg", (1, 32, 64))):
        assert build(name, shape, 3).eval()(torch.zeros(2, *shape)).shape == (2, 3)


def test_inception_v3_returns_plain_logits():
    network = inception_v3(5, dropout=0.0)
    assert network(torch.zeros(2, 3, 75, 75)).shape == (2, 5)  # in training mode, where an auxiliary head would answer


def test_inception_blocks_see_fixed_scales_only_as_buffers():
    network = models.small_inception()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 19 == sum(name.endswith("bias") for name, _ in network.named_parameters()) - 1
    x = torch.randn(4, 96, 5, 5, generator=torch.Generator().manual_seed(0))
    norms[0].bias.data.fill_(0.5)
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt() + 0.5
    torch.testing.assert_close(norms[0](x), expected)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: models.small_inception(0), "classes is 0"),
        (lambda: models.vgg(input_shape=(3, 28, 28)), "at least 32 pixels a side"),
        (lambda: models.vgg(dropout=-0.1), "dropout is -0.1"),
        (lambda: inception_v3(input_shape=(1, 299, 299)), "takes 3 channels"),
    ],
)
def test_bad_input_names_the_argument_and_the_mend(call, says):
    with pytest.raises(ValueError, match=says):
        call()
