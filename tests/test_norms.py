import copy
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from cases import HostReads, Untraceable, drawn, permuted, rescaled, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genlib import models, norms
from genlib.network import Network, weights
from genlib.norms import operators


def dense(layer, shape):
    """The matrix of an affine layer, from all unit images, in float64."""
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
        return (layer(units) - layer(torch.zeros_like(units[:1]))).flatten(1).T


class Block(nn.Module):
    """conv - norm - relu - conv - norm, plus the input; then a norm of its own, pooling and a dense layer."""

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.second, self.second_norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.last_norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        y = torch.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        y += x
        return self.head(torch.relu(self.last_norm(y)).mean((2, 3)))


GEOMETRIES = {
    "one axis": (nn.Conv1d(3, 5, 3, padding=1), (3, 9)),
    "two axes": (nn.Conv2d(3, 5, 3, padding=1), (3, 7, 6)),
    "three axes": (nn.Conv3d(2, 3, 3, padding=1), (2, 4, 5, 4)),
    "stride": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 7, 8)),
    "dilation": (nn.Conv2d(3, 5, 3, dilation=2, padding=2), (3, 7, 6)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 6, 6)),
    "all of them": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2, padding=(2, 0)), (4, 7, 7)),
    "no padding": (nn.Conv2d(3, 5, 3), (3, 6, 6)),
    "same": (nn.Conv2d(3, 5, (3, 5), padding="same"), (3, 6, 6)),
    "one pixel": (nn.Conv2d(4, 6, 1, stride=2, groups=2), (4, 5, 5)),
    "circular": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 7, 6)),
    "circular, one axis": (nn.Conv1d(3, 5, 5, padding=2, padding_mode="circular"), (3, 9)),
    "circular, three axes": (nn.Conv3d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 5, 3)),
    "circular, many frequencies": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), (3, 16, 15)),
    "circular, groups, dilation": (
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, padding_mode="circular"),
        (4, 11, 12),
    ),
    "circular, wrapped": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 2, 2)),
    "circular, stride": (nn.Conv2d(3, 5, 3, padding=1, stride=2, padding_mode="circular"), (3, 6, 7)),
    "circular, larger output": (nn.Conv2d(3, 5, 3, padding=2, padding_mode="circular"), (3, 5, 5)),
    "reflect": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (3, 6, 7)),
    "replicate": (nn.Conv2d(3, 5, 3, padding=1, stride=2, padding_mode="replicate"), (3, 6, 7)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 4)),
    "transposed, one axis": (nn.ConvTranspose1d(3, 2, 3, stride=2, dilation=2), (3, 5)),
    "transposed, three axes": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 2, 3)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_conv_norm_and_stable_rank_are_those_of_the_dense_matrix(name):
    convolution, shape = GEOMETRIES[name]
    matrix = dense(drawn(convolution), shape)
    largest = torch.linalg.svdvals(matrix)[0]
    norm = norms.conv_norm(convolution, shape)
    torch.testing.assert_close(norm.value.double(), largest, rtol=1e-5, atol=0)
    assert norm.residual <= 1e-4 * norm.value
    torch.testing.assert_close(norms.spectral_norms(convolution, input_shape=shape)[0], norm.value)
    ranks = norms.stable_ranks(convolution, input_shape=shape)
    torch.testing.assert_close(ranks[0].double(), matrix.square().sum() / largest**2, rtol=1e-4, atol=0)


@settings(max_examples=15)
@given(
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
    seed=st.integers(0, 99),
)
def test_conv_norm_in_float64_is_as_exact_as_asked(inputs, outputs, kernel, stride, padding, mode, seed):
    geometry = {"stride": stride, "padding": padding, "padding_mode": mode}
    convolution = drawn(nn.Conv2d(inputs, outputs, kernel, **geometry), seed).double()
    norm = norms.conv_norm(convolution, (inputs, 6, 5), rtol=1e-8)
    largest = torch.linalg.svdvals(dense(convolution, (inputs, 6, 5)))[0]
    torch.testing.assert_close(norm.value, largest, rtol=1e-8, atol=0)


@pytest.mark.parametrize("stride, channels", [(1, 32), (2, 64)])
def test_the_hard_case_in_sixty_passes(stride, channels):
    convolution, shape = drawn(nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)), (channels, 8, 8)
    matrix = dense(convolution, shape)
    largest = torch.linalg.eigvalsh(matrix @ matrix.T)[-1].sqrt().item()
    norm = norms.conv_norm(convolution, shape, rtol=1e-9, max_passes=60)
    assert norm.passes == 60
    assert (1 - 2e-3) * largest < norm.value <= (1 + 1e-6) * largest
    assert largest - norm.value <= norm.residual
    assert norms.conv_norm(convolution, shape, rtol=1e-5).value == pytest.approx(largest, rel=1e-5)


def test_lanczos_reads_from_the_device_once_in_eight_steps(monkeypatch):
    reads = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: reads.append(tensor.shape) or cpu(tensor))
    norm = norms.conv_norm(drawn(nn.Conv2d(8, 8, 3, padding=1)), (8, 8, 8), rtol=1e-5)
    assert norm.passes == 16 * len(reads)


@pytest.mark.parametrize("chunk", [2**23, 5000])
@pytest.mark.parametrize("sizes", [(12, 13), (13, 12)])
def test_circular_norm_is_the_largest_of_all_frequencies(monkeypatch, sizes, chunk):
    monkeypatch.setattr(operators, "_SPECTRUM_CHUNK", chunk)
    convolution = drawn(nn.Conv2d(9, 7, 3, padding=1, padding_mode="circular"))
    transform = np.fft.fft2(convolution.weight.detach().double().numpy(), sizes)
    largest = np.linalg.svd(transform.transpose(2, 3, 0, 1), compute_uv=False).max()
    assert norms.conv_norm(convolution, (9, *sizes)).value.item() == pytest.approx(largest, rel=1e-5)


def test_padding_and_stride_count_and_the_reshaped_kernel_is_too_small():
    kinds = [{"padding_mode": "circular"}, {}, {"stride": 2}]
    convolutions = [nn.Conv2d(16, 16, 3, padding=1, **kind) for kind in kinds]
    for convolution in convolutions:
        convolution.weight = drawn(convolutions[0]).weight
    circular, zeros, stride = (norms.conv_norm(c, (16, 16, 16)).value.item() for c in convolutions)
    reshaped = torch.linalg.svdvals(convolutions[0].weight.detach().flatten(1))[0].item()
    assert reshaped < 0.8 * circular
    assert stride < 0.9 * zeros < 0.9 * circular


@pytest.mark.parametrize("limit", [1024, 4])
@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (12, 12), (1, 9)])
def test_dense_norms_by_gram_matrix_and_by_lanczos(monkeypatch, shape, limit):
    monkeypatch.setattr(operators, "_GRAM_LIMIT", limit)
    layer = drawn(nn.Linear(*shape))
    largest = torch.linalg.svdvals(layer.weight.detach().double())[0]
    measured = norms.spectral_norms(layer, input_shape=(shape[0],))[0]
    torch.testing.assert_close(measured.double(), largest, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.0])
def test_norms_scale_with_the_weights_however_large_or_small(mode, scale):
    network = drawn(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), nn.Flatten(), nn.Linear(48, 4)))
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(scale)
    for norm in (
        norms.frobenius_norms,
        lambda n: norms.group_norms(n, 2, 1),
        lambda n: norms.spectral_norms(n, input_shape=(2, 4, 4)),
    ):
        torch.testing.assert_close(norm(scaled).double(), norm(network).double() * scale, rtol=1e-5, atol=0)


def test_layers_in_the_order_in_which_they_run_with_batch_norm_folded():
    block = drawn(Block())
    assert norms.layer_names(block) == ["first", "second", "last_norm", "head"]
    own = block.last_norm.weight.detach() / (block.last_norm.running_var + block.last_norm.eps).sqrt()
    spectral = norms.spectral_norms(block, input_shape=(3, 5, 5))
    for i, folded in enumerate([("first", "first_norm"), ("second", "second_norm")]):
        pair = nn.Sequential(*(getattr(block, name) for name in folded))
        largest = torch.linalg.svdvals(dense(pair, (3, 5, 5)))[0]
        assert spectral[i].item() == pytest.approx(largest.item(), rel=1e-5)
    torch.testing.assert_close(spectral[2], own.abs().max())
    torch.testing.assert_close(norms.frobenius_norms(block)[2], own.norm())


@pytest.mark.parametrize(
    "layers, shape",
    [
        ((nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 5, 5)),
        ((nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6, affine=False)), (4, 3, 3)),
        ((nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3)), (5,)),
    ],
)
def test_folding_is_exact(layers, shape):
    module = drawn(nn.Sequential(*layers))
    largest = torch.linalg.svdvals(dense(module, shape))[0].item()
    assert norms.spectral_norms(module, input_shape=shape).tolist() == [pytest.approx(largest, rel=1e-5)]
    [weight] = weights.folded_weights(Network.of(module))
    assert weight.rows.shape == (1, layers[1].num_features, weight.value[0].numel() // layers[1].num_features)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    y = operators.apply_linear(layers[0], weight.value[0], x)
    y = y + weight.bias[0].view(1, -1, *[1] * (y.ndim - 2))
    torch.testing.assert_close(y, module(x).detach(), rtol=1e-4, atol=1e-5)


def test_group_norms_by_hand():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert norms.group_norms(layer, 2, 1).tolist() == [7.0]
    assert norms.group_norms(layer, 1, math.inf).tolist() == [7.0]
    assert norms.group_norms(layer, math.inf, 2).tolist() == pytest.approx([math.sqrt(20)])
    assert norms.frobenius_norms(layer).tolist() == pytest.approx([math.sqrt(29)])
    transposed = drawn(nn.ConvTranspose1d(4, 6, 3, groups=2))
    columns = [transposed.weight[g * 2 : g * 2 + 2, o].norm() for g in range(2) for o in range(3)]
    torch.testing.assert_close(norms.group_norms(transposed, 2, 1)[0], sum(columns).detach())


def test_distances_fold_each_network_with_its_own_statistics_and_change_neither():
    start, end = drawn(Block(), 1), drawn(Block(), 2)
    before = copy.deepcopy(start.state_dict())

    def folded(block):
        scale = block.first_norm.weight / (block.first_norm.running_var + block.first_norm.eps).sqrt()
        return (block.first.weight * scale[:, None, None, None]).detach()

    difference = folded(end) - folded(start)
    for _ in range(2):
        torch.testing.assert_close(norms.distances(end, start)[0], difference.norm())
    torch.testing.assert_close(norms.distances(end, start, norm=(2, 1))[0], difference.flatten(1).norm(dim=1).sum())
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    convolution.weight.data = difference
    largest = torch.linalg.svdvals(dense(convolution, (3, 5, 5)))[0].item()
    assert norms.distances(end, start, norm="spectral", input_shape=(3, 5, 5))[0] == pytest.approx(largest, rel=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert not norms.distances(end, end).any()


def test_spectral_complexity_by_hand():
    start, end = (models.mlp(6, 3, width=5, depth=2, seed=seed) for seed in range(2))
    weights = [
        (e.weight.detach().double(), s.weight.detach().double()) for e, s in zip(end[1::2], start[1::2], strict=True)
    ]
    sigma = [torch.linalg.svdvals(w)[0].item() for w, _ in weights]
    moved = [(w - w0).norm(dim=1).sum().item() for w, w0 in weights]
    by_hand = math.prod(sigma) * sum((m / s) ** (2 / 3) for m, s in zip(moved, sigma, strict=True)) ** 1.5
    measured = norms.spectral_complexity(end, start, input_shape=(6,))
    assert measured.dtype == torch.float64
    assert measured.item() == pytest.approx(by_hand, rel=1e-5)
    squares = [h * (w - w0).square().sum().item() for h, (w, w0) in zip((5, 5, 3), weights, strict=True)]
    by_hand = 3 * math.prod(sigma) * sum(q / s**2 for q, s in zip(squares, sigma, strict=True)) ** 0.5
    measured = norms.log_frobenius_complexity(end, start, input_shape=(6,))
    assert measured.item() == pytest.approx(math.log(by_hand), rel=1e-5)


def test_complexities_of_a_stack():
    ends, starts = ([drawn(Block(), seed) for seed in seeds] for seeds in (range(3), range(5, 8)))
    for complexity in (norms.log_spectral_complexity, norms.log_frobenius_complexity):
        together = complexity(Network.stack(ends), Network.stack(starts), input_shape=(3, 5, 5))
        each = [complexity(end, start, input_shape=(3, 5, 5)) for end, start in zip(ends, starts, strict=True)]
        torch.testing.assert_close(together, torch.stack(each), rtol=1e-5, atol=0)


def test_products_of_many_layers_neither_overflow_nor_underflow():
    for scale in (1e-20, 1e20):
        product = norms.log_product(torch.full((400,), scale))
        assert product.item() == pytest.approx(400 * math.log(scale), rel=1e-6)
    assert norms.log_product(torch.tensor([1.0, 0.0])) == -math.inf


# Path norms


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


# Invariances


@settings(max_examples=15)
@given(
    depth=st.integers(1, 3),
    width=st.integers(1, 6),
    seed=st.integers(0, 99),
    logs=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_rescaling_units_leaves_path_norms_and_rescaling_layers_products(depth, width, seed, logs):
    network = drawn(models.mlp(4, 3, width=width, depth=depth), seed)
    generator = torch.Generator().manual_seed(seed)
    by_layer = [torch.full((width,), math.exp(log)) for log in logs]
    by_unit = [c * torch.randn(width, generator=generator).exp() for c in by_layer]
    for p in (1, 2):
        path = norms.log_path_norm(network, input_shape=(4,), p=p)
        torch.testing.assert_close(
            norms.log_path_norm(rescaled(network, by_unit), input_shape=(4,), p=p), path, rtol=0, atol=1e-4
        )
    other = rescaled(network, by_layer)
    for norm in (
        norms.frobenius_norms,
        lambda n: norms.spectral_norms(n, input_shape=(4,)),
        lambda n: norms.group_norms(n, 2, 1),
    ):
        torch.testing.assert_close(norms.log_product(norm(other)), norms.log_product(norm(network)), rtol=0, atol=1e-4)


def test_rescaling_units_changes_products():
    network = drawn(models.mlp(4, 3, width=5, depth=2))
    other = rescaled(network, [torch.arange(1.0, 6), torch.arange(1.0, 6)])
    assert norms.log_product(norms.frobenius_norms(other)) > norms.log_product(norms.frobenius_norms(network)) + 0.1


@settings(max_examples=15)
@given(seed=st.integers(0, 99), width=st.integers(2, 6))
def test_the_order_of_units_does_not_matter(seed, width):
    network = drawn(models.mlp(4, 3, width=width, depth=2), seed)
    other = permuted(network, torch.randperm(width, generator=torch.Generator().manual_seed(seed)))
    for measure in (
        norms.frobenius_norms,
        lambda n: norms.group_norms(n, 2, 1),
        lambda n: norms.stable_ranks(n, input_shape=(4,)),
        lambda n: norms.path_norm(n, input_shape=(4,)),
    ):
        torch.testing.assert_close(measure(other), measure(network), rtol=1e-4, atol=0)


# Stacks, other types, what is left alone, what is refused

START = drawn(Block(), 7)
MEASURES = {
    "frobenius": norms.frobenius_norms,
    "group": lambda n: norms.group_norms(n, 2, 1),
    "spectral": lambda n: norms.spectral_norms(n, input_shape=(3, 6, 6)),
    "stable rank": lambda n: norms.stable_ranks(n, input_shape=(3, 6, 6)),
    "path": lambda n: norms.log_path_norm(n, input_shape=(3, 6, 6)),
    "distance": lambda n: norms.distances(n, START),
}


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "distance"])
def test_a_stack_gives_one_value_a_model(name):
    stacked = [drawn(Block(), seed) for seed in range(3)]
    each = torch.stack([MEASURES[name](block) for block in stacked])
    torch.testing.assert_close(MEASURES[name](Network.stack(stacked)), each, rtol=1e-4, atol=1e-5)


def test_distances_of_a_stack():
    stacked, starts = ([drawn(Block(), seed) for seed in seeds] for seeds in (range(3), range(5, 8)))
    together = norms.distances(Network.stack(stacked), Network.stack(starts))
    each = [norms.distances(end, start) for end, start in zip(stacked, starts, strict=True)]
    torch.testing.assert_close(together, torch.stack(each))


def test_a_stack_of_circular_convolutions():
    stacked = [drawn(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), seed) for seed in range(3)]
    together = norms.spectral_norms(Network.stack(stacked), input_shape=(4, 12, 12))
    each = [norms.spectral_norms(convolution, input_shape=(4, 12, 12)) for convolution in stacked]
    torch.testing.assert_close(together, torch.stack(each))


@pytest.mark.parametrize("name", MEASURES)
def test_the_network_and_the_random_state_are_left_as_they_were(name):
    block = drawn(Block())
    with unchanged(block):
        first = MEASURES[name](block)
        assert torch.equal(first, MEASURES[name](Network.of(block)))
    assert not first.requires_grad


@pytest.mark.parametrize("name", MEASURES)
def test_float64_stays_and_half_is_upcast(name):
    block = drawn(Block())
    if name != "distance":
        assert MEASURES[name](copy.deepcopy(block).double()).dtype == torch.float64
        half = copy.deepcopy(block).to(torch.bfloat16)
        torch.testing.assert_close(MEASURES[name](half), MEASURES[name](copy.deepcopy(half).float()))


def test_weights_alone_are_read_without_a_host_read():
    network = Network.of(drawn(Block()))
    for name in ("frobenius", "group", "path"):
        with HostReads() as reads:
            MEASURES[name](network)
        assert reads.count == 0


def test_a_network_that_cannot_be_traced():
    module = Untraceable(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert norms.layer_names(module) == ["layers.0", "layers.2"]
    torch.testing.assert_close(norms.frobenius_norms(module), norms.frobenius_norms(module.layers))
    with pytest.raises(ValueError, match="can't trace this module, and a path norm needs its graph"):
        norms.path_norm(module, input_shape=(4,))
    with pytest.raises(ValueError, match=r"what layers\.1 normalizes is unknown; fold"):
        norms.frobenius_norms(Untraceable(nn.Linear(4, 5), nn.BatchNorm1d(5)).eval())


class Diagonal(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, width + 1))

    def forward(self, x):
        return x * self.scale


def test_a_type_is_registered_by_its_matrix(monkeypatch):
    registry = {}
    monkeypatch.setattr("genlib.network.weights.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.layers.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.paths.REGISTERED", registry)
    module = nn.Sequential(nn.Linear(2, 3), Diagonal(3), nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"1 is of type Diagonal, whose norm is unknown; register it with norms\.register_norm"
    ):
        norms.frobenius_norms(module)
    norms.register_norm(Diagonal, lambda layer, tensors: torch.diag(tensors["scale"]))
    assert norms.layer_names(module) == ["0", "1", "2"]
    assert norms.spectral_norms(module, input_shape=(2,))[1] == pytest.approx(3.0)
    assert norms.frobenius_norms(Network.stack([module, module]))[1, 1] == pytest.approx(math.sqrt(14))
    with pytest.raises(ValueError, match="1 is of a registered type"):
        norms.path_norm(module, input_shape=(2,))


class Pair(nn.Module):
    """Two dense layers in a row, which run as often as `times` says."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.pair = Diagonals()

    def forward(self, x):
        for _ in range(self.times):
            x = torch.relu(self.pair(x))
        return x


class Diagonals(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.left(x) + self.right(x)


def test_a_registered_module_is_one_layer_whatever_it_holds(monkeypatch):
    registry = {}
    monkeypatch.setattr("genlib.network.weights.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.layers.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.paths.REGISTERED", registry)
    once, twice = Pair(1), Pair(2)
    assert norms.layer_names(once) == ["pair.left", "pair.right"]
    norms.register_norm(Diagonals, lambda layer, tensors: tensors["left.weight"] + tensors["right.weight"])
    assert norms.layer_names(once) == ["pair"]
    total = once.pair.left.weight + once.pair.right.weight
    torch.testing.assert_close(norms.frobenius_norms(once)[0], total.detach().norm())
    with pytest.raises(ValueError, match="pair runs more than once"):
        norms.layer_names(twice)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        return self.layer(x) + self.shift


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(self.layer(x))


def shared():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    return module


REFUSED = {
    "training mode": (lambda: norms.frobenius_norms(Block()), "BatchNorm in training mode"),
    "run twice": (lambda: norms.frobenius_norms(Tied()), "layer runs more than once"),
    "tied": (lambda: norms.frobenius_norms(shared()), r"0\.weight and 1\.weight are one tied weight"),
    "layer norm": (
        lambda: norms.frobenius_norms(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))),
        "1 is of type LayerNorm",
    ),
    "weight norm": (
        lambda: norms.frobenius_norms(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))),
        "the weight of the module is computed from other tensors",
    ),
    "no statistics": (
        lambda: norms.frobenius_norms(
            nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
        ),
        "1 keeps no running statistics",
    ),
    "no layer": (lambda: norms.frobenius_norms(nn.ReLU()), "no layer with weights"),
    "shape": (
        lambda: norms.spectral_norms(drawn(Block()), input_shape=(4, 5, 5)),
        r"input_shape \(4, 5, 5\) does not fit",
    ),
    "path shape": (
        lambda: norms.path_norm(drawn(Block()), input_shape=(4, 5, 5)),
        r"input_shape \(4, 5, 5\) does not fit",
    ),
    "negative shape": (lambda: norms.path_norm(drawn(Block()), input_shape=(3, -1, 5)), "positive whole numbers"),
    "channels": (lambda: norms.conv_norm(nn.Conv2d(3, 3, 3), (2, 5, 5)), "takes 3 channels"),
    "kernel": (lambda: norms.conv_norm(nn.Conv2d(3, 3, 7), (3, 5, 5)), "does not fit the convolution"),
    "not a convolution": (lambda: norms.conv_norm(nn.Linear(3, 3), (3,)), "convolution is a Linear"),
    "rtol": (lambda: norms.spectral_norms(drawn(Block()), input_shape=(3, 5, 5), rtol=0.0), "rtol is 0.0"),
    "p": (lambda: norms.group_norms(drawn(Block()), 0.5, 1), "p is 0.5"),
    "path p": (lambda: norms.path_norm(drawn(Block()), input_shape=(3, 5, 5), p=0), "p is 0"),
    "constant": (lambda: norms.path_norm(Shifted(), input_shape=(3,)), "a tensor that is no weight of a known layer"),
    "softplus": (
        lambda: norms.path_norm(nn.Sequential(nn.Linear(3, 3), nn.Softplus()), input_shape=(3,)),
        r"the operation _1 \(Softplus\) has no known paths",
    ),
    "zeros": (
        lambda: norms.stable_ranks(
            nn.utils.skip_init(nn.Linear, 3, 3).apply(lambda m: nn.init.zeros_(m.weight)), input_shape=(3,)
        ),
        "no weight other than zero",
    ),
    "other layers": (
        lambda: norms.distances(models.mlp(3, 2, width=4), models.mlp(3, 2, width=5)),
        "initial differs from network at the layer 1",
    ),
    "norm": (lambda: norms.distances(drawn(Block()), drawn(Block()), norm="nuclear"), "norm 'nuclear' is unknown"),
    "no input_shape": (
        lambda: norms.distances(drawn(Block()), drawn(Block()), norm="spectral"),
        "input_shape is missing",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_tolerance_out_of_reach_is_refused(monkeypatch):
    monkeypatch.setattr(operators, "MAX_PASSES", 16)
    with pytest.raises(ValueError, match=r"rtol 1e-09 is not reached for 0 in 16 passes"):
        norms.spectral_norms(nn.Sequential(drawn(nn.Conv2d(4, 4, 3, padding=1))), input_shape=(4, 9, 9), rtol=1e-9)
