"""Path norms are sums over all paths."""

import copy
import itertools
import math
from fractions import Fraction

import pytest
import torch
from cases import drawn
from norms_cases import Block, dense
from torch import nn

from genlib import norms


def enumerated(layers, p):
    """Over the paths of a dense network, one by one: from each input and from each bias."""
    total = 0.0
    for start, layer in enumerate(layers):
        sources = layer.in_features + 1 if start == 0 else 1  # the last is the bias; inputs feed the first layer only
        for source in range(sources):
            units = [range(later.out_features) for later in layers[start:]]
            for path in itertools.product(*units):
                bias = source == sources - 1
                weight = layer.bias[path[0]] if bias else layer.weight[path[0], source]
                product = abs(weight.item()) ** p
                for a, b, later in zip(path, path[1:], layers[start + 1 :], strict=False):
                    product *= abs(later.weight[b, a].item()) ** p
                total += product
    return total


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_path_norm_is_the_sum_over_all_paths(p):
    layers = [drawn(nn.Linear(3, 4), 1), drawn(nn.Linear(4, 3), 2), drawn(nn.Linear(3, 2), 3)]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Tanh(), layers[2]).double()
    measured = norms.path_norm(network, input_shape=(3,), p=p)
    assert measured.item() == pytest.approx(enumerated(layers, p), rel=1e-12)


def chained(module, shape, p):
    """Through a sequence of layers as dense matrices |A|^p in float64, biases as |b|^p."""
    x = torch.ones(math.prod(shape), dtype=torch.float64)
    layers = [layer for layer in module if not isinstance(layer, nn.ReLU | nn.Dropout)]
    while layers:
        layer = layers.pop(0)
        if layers and isinstance(layers[0], nn.modules.batchnorm._BatchNorm):
            layer = nn.Sequential(layer, layers.pop(0))
        zero = copy.deepcopy(layer).double()(torch.zeros(1, *shape, dtype=torch.float64)).detach()
        kernel = layer.kernel_size if isinstance(layer, nn.MaxPool2d | nn.MaxPool1d) else None
        matrix = dense(layer, shape)
        if kernel is not None:  # of unit images max-pool gives the windows that hold the pixel
            matrix = matrix.ceil()
        x = matrix.abs() ** p @ x + zero.flatten().abs() ** p
        shape = tuple(zero.shape[1:])
    return x.sum().item()


SEQUENCES = {
    "convolutions": (nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, stride=2), nn.Flatten()),
    "max-pool": (nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(27, 2)),
    "ragged max-pool": (nn.Conv2d(2, 3, 3), nn.MaxPool2d(2, 2, ceil_mode=True), nn.ReLU(), nn.Conv2d(3, 2, 2)),
    "average pool": (nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)),
    "padded average pool": (nn.Conv2d(2, 3, 3), nn.AvgPool2d(3, 2, padding=1, ceil_mode=True), nn.Conv2d(3, 2, 1)),
    "average of what is there": (nn.Conv2d(2, 3, 3), nn.AvgPool2d(2, 1, padding=1, count_include_pad=False)),
    "uneven adaptive pool": (nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(18, 2)),
    "batch norm": (nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4), nn.BatchNorm1d(4)),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, stride=2), nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular")),
    "one axis": (nn.Conv1d(2, 3, 3), nn.MaxPool1d(2), nn.AvgPool1d(2, 1, padding=1), nn.Flatten(), nn.Dropout()),
}  # fmt: skip


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("name", SEQUENCES)
def test_path_norm_is_the_chain_of_dense_matrices(name, p):
    network = drawn(nn.Sequential(*SEQUENCES[name]))
    shape = (2, 8) if name == "one axis" else (2, 5, 5)
    measured = norms.path_norm(network, input_shape=shape, p=p)
    assert measured.dtype == torch.float64
    assert measured.item() == pytest.approx(chained(network, shape, p), rel=1e-5)


@pytest.mark.parametrize("p", [1, 2])
def test_path_norm_of_a_residual_network(p):
    block = drawn(Block())
    pair = [dense(nn.Sequential(block.first, block.first_norm), (3, 4, 4)).abs() ** p]
    pair.append(dense(nn.Sequential(block.second, block.second_norm), (3, 4, 4)).abs() ** p)
    zero = torch.zeros(1, 3, 4, 4)
    with torch.no_grad():
        biases = [
            block.first_norm(block.first(zero)),
            block.second_norm(block.second(zero) * 0 + block.second.bias[:, None, None]),
        ]
        # of a zero image the convolutions give their biases, one a channel
        biases = [b.double().flatten().abs() ** p for b in biases]
        x = torch.ones(48, dtype=torch.float64)
        y = pair[1] @ (pair[0] @ x + biases[0]) + biases[1] + x
        last, shift = dense(block.last_norm, (3, 4, 4)), block.last_norm(zero).double().flatten()
        y = last.abs() ** p @ y + shift.abs() ** p
        y = y.view(3, 16).sum(1) / 16**p
        total = (block.head.weight.double().abs() ** p @ y + block.head.bias.double().abs() ** p).sum()
    measured = norms.path_norm(block, input_shape=(3, 4, 4), p=p)
    assert measured.item() == pytest.approx(total.item(), rel=1e-5)


def test_functions_count_as_their_modules():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(12, 2)

        def forward(self, x):
            x = nn.functional.relu(self.conv(x))
            x = nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 2), 2, stride=1, padding=1)
            x = nn.functional.adaptive_avg_pool2d(nn.functional.dropout(x, training=self.training), 2)
            return self.head(x.view(x.shape[0], -1))

    functions = drawn(Functions())
    pools = (nn.MaxPool2d(2), nn.AvgPool2d(2, 1, padding=1), nn.AdaptiveAvgPool2d(2))
    layers = nn.Sequential(functions.conv, nn.ReLU(), *pools, nn.Flatten(), functions.head).eval()
    a, b = (norms.path_norm(network, input_shape=(2, 4, 4), p=1) for network in (functions, layers))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.1), nn.Hardtanh(), nn.ReLU6(inplace=True), nn.Identity()])
def test_activations_count_as_one_where_their_slopes_are_at_most_one(activation):
    first, last = drawn(nn.Linear(3, 4), 1), drawn(nn.Linear(4, 2), 2)
    with_it, without = nn.Sequential(first, activation, last), nn.Sequential(first, last)
    assert torch.equal(*(norms.path_norm(network, input_shape=(3,)) for network in (with_it, without)))
    for steep in (nn.LeakyReLU(2.0), nn.Hardtanh(1.0, 2.0), nn.Sigmoid(), nn.GELU()):
        with pytest.raises(ValueError, match="has no known paths"):
            norms.path_norm(nn.Sequential(first, steep, last), input_shape=(3,))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_path_norms_of_deep_networks_neither_overflow_nor_underflow(scale, bias):
    layers = [nn.Linear(2, 2, bias=bias) for _ in range(60)]
    for layer in layers:
        nn.init.constant_(layer.weight, scale)
        if bias:
            nn.init.constant_(layer.bias, 1.0)
    measured = norms.log_path_norm(nn.Sequential(*layers), input_shape=(2,))
    total = 2
    for _ in range(60):  # exactly
        total = 2 * Fraction(scale) ** 2 * total + 2 * bias
    expected = math.log(total.numerator) - math.log(total.denominator)
    assert measured.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
