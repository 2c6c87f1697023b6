"""Path norms are sums over all paths."""

import copy
import itertools
import math
from fractions import Fraction

import idioms
import pytest
import torch
import torch.nn.functional as F
from cases import drawn
from idioms import BENT, CONSTANT, LINEAR, MEETING
from norms_cases import Block, dense
from torch import nn

from genlib import norms
from genlib.network import Network


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
            x = F.relu(self.conv(x))
            x = F.avg_pool2d(F.max_pool2d(x, 2), 2, stride=1, padding=1)
            x = F.adaptive_avg_pool2d(F.dropout(x, training=self.training), 2)
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


class Between(nn.Module):
    """A function between a convolution and a dense layer."""

    def __init__(self, function, outputs):
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(2, 4, 2), nn.Linear(outputs, 2), function

    def forward(self, x):
        return self.head(torch.flatten(self.function(self.conv(x)), 1))


SUMS = {  # what isn't linear, and counts as the sum of what it chooses from, or casts to another precision
    "amax": lambda x: torch.amax(x, dim=(2, 3)),
    "amin of an axis": lambda x: x.amin(1, keepdim=True),
    "max of an axis": lambda x: x.max(1, keepdim=True)[0],
    "max unpacked": lambda x: BENT["max unpacked"][0](x),
    "torch.min": lambda x: torch.min(x, 2).values,
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, (3, 2)),
    "maximum": lambda x: torch.maximum(x, torch.roll(x, 1, 1)),
    "maxout": lambda x: torch.stack([x, x.flip(1)]).max(0)[0],
    "max of two": lambda x: torch.max(x, x.roll(1, 2)).min(x.roll(1, 3)),
    "float": lambda x: x.float().double(),
    "to": lambda x: x.to(torch.float32).to(dtype=torch.float64).to("cpu"),
}
AS_SUMS = {
    "amax": lambda x: x.sum((2, 3)),
    "amin of an axis": lambda x: x.sum(1, keepdim=True),
    "max of an axis": lambda x: x.sum(1, keepdim=True),
    "max unpacked": lambda x: x.sum(-1),
    "torch.min": lambda x: x.sum(2),
    "adaptive maximum": lambda x: 4 * F.adaptive_avg_pool2d(x, (3, 2)),
    "maximum": lambda x: x + torch.roll(x, 1, 1),
    "maxout": lambda x: x + x.flip(1),
    "max of two": lambda x: x + x.roll(1, 2) + x.roll(1, 3),
}


@pytest.mark.parametrize("p", [1, 2, 3.5])
@pytest.mark.parametrize("name", {**LINEAR, **CONSTANT, **SUMS})
def test_affine_functions_count_as_their_matrices_and_constants_as_biases(name, p):
    function = {**LINEAR, **CONSTANT, **SUMS}[name]
    network = drawn(idioms.Between(function)).double()
    counted = AS_SUMS.get(name, network.function)

    class Layer(nn.Module):
        forward = staticmethod(counted)

    first, middle, last = dense(network.conv, (2, 5, 4)), dense(Layer(), (4, 4, 3)), network.head
    shift = counted(torch.zeros(1, 4, 4, 3).double()).detach().flatten()
    x = first.abs().pow(p).sum(1) + network.conv.bias.detach().abs().pow(p).repeat_interleave(12)
    x = last.weight.detach().abs() ** p @ (middle.abs() ** p @ x + shift.abs() ** p) + last.bias.detach().abs() ** p
    measured = norms.path_norm(network, input_shape=(2, 5, 4), p=p)
    assert measured.item() == pytest.approx(x.sum().item(), rel=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_where_paths_meet_each_counts(p):
    """x + x/2 is two paths, not one of 3/2."""
    network, plain = (drawn(Between(f, 48)).double() for f in (lambda x: x + x.flip(1).flip(1) / 2, lambda x: x))
    for module in (network, plain):
        nn.init.zeros_(module.head.bias)
    measured, alone = (norms.path_norm(module, input_shape=(2, 5, 4), p=p) for module in (network, plain))
    assert measured.item() == pytest.approx((1 + 0.5**p) * alone.item(), rel=1e-12)


@pytest.mark.parametrize("name", MEETING)
def test_what_is_affine_and_of_no_known_paths_is_refused(name):
    if name in ("x + x", "less its mean"):
        return
    with pytest.raises(ValueError, match="has no known paths"):
        norms.path_norm(drawn(idioms.Between(MEETING[name])), input_shape=(2, 5, 4))


@pytest.mark.parametrize("name", ["abs", "relu_", "clamp", "clamp_", "clamp_min", "clamp_max", "leaky_", "softshrink"])
def test_however_written_an_activation_of_slope_one_counts_as_one(name):
    with_it, without = (drawn(Between(function, 48)) for function in (BENT[name][0], lambda x: x))
    assert torch.equal(*(norms.path_norm(network, input_shape=(2, 5, 4)) for network in (with_it, without)))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_constants_neither_overflow_nor_underflow(scale):
    network = drawn(Between(lambda x: ((x * scale + scale) * scale + scale**2) * torch.tensor(scale) / scale**2, 48))
    nn.init.zeros_(network.head.bias)
    plain = drawn(Between(lambda x: x + 1 + 1, 48))
    nn.init.zeros_(plain.head.bias)
    measured, alone = (norms.log_path_norm(module, input_shape=(2, 5, 4)) for module in (network, plain))
    assert measured.item() == pytest.approx(alone.item() + 2 * math.log(scale), rel=1e-5)


def test_a_buffer_is_that_of_the_network_and_none_in_a_stack():
    class Shifted(Between):
        def __init__(self, shift):
            super().__init__(None, 48)
            self.register_buffer("shift", torch.tensor(shift))

        def forward(self, x):
            return self.head(torch.flatten(self.conv(x) + self.shift, 1))

    class Computed(Shifted):
        def forward(self, x):
            return self.head(torch.flatten(self.conv(x) + 2 * (self.shift / 2), 1))

    modules = [drawn(Shifted(shift)).double() for shift in (0.0, 3.0)]
    stack = Network.stack(modules)
    for one, module in zip(stack.each, modules, strict=True):
        plain = drawn(Between(lambda x, shift=module.shift: x + shift.item(), 48)).double()
        found = [norms.path_norm(network, input_shape=(2, 5, 4)) for network in (one, module, plain)]
        torch.testing.assert_close(found[0], found[2])
        torch.testing.assert_close(found[1], found[2])
    for network in (stack, drawn(Computed(1.0)), Network.stack([drawn(Computed(c)) for c in (0.0, 1.0)]).each[1]):
        with pytest.raises(ValueError, match="a tensor that is no weight of a known layer"):
            norms.path_norm(network, input_shape=(2, 5, 4))


@pytest.mark.parametrize("p", [1, 2])
def test_a_part_of_a_split_waits_while_the_other_runs(p):
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.left, self.head = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(4, 2)

        def forward(self, x):
            parts = self.first(x).chunk(2, 1)
            return self.head(torch.cat([self.left(torch.relu(parts[0])), parts[1]], 1))

    network = drawn(Split()).double()
    first, left, head = ((x.weight.detach().abs() ** p, x.bias.detach().abs() ** p) for x in network.children())
    x = first[0].sum(1) + first[1]
    x = head[0] @ torch.cat([left[0] @ x[:2] + left[1], x[2:]]) + head[1]
    assert norms.path_norm(network, input_shape=(3,), p=p).item() == pytest.approx(x.sum().item(), rel=1e-12)


def test_factors_neither_overflow_nor_underflow():
    network = drawn(Between(lambda x: 1e-30 * (x * 1e-30) / 1e30, 48))
    plain = drawn(Between(lambda x: x, 48))
    for module in (network, plain):
        nn.init.zeros_(module.head.bias)
    measured, alone = (norms.log_path_norm(module, input_shape=(2, 5, 4)) for module in (network, plain))
    assert measured.item() == pytest.approx(alone.item() - 180 * math.log(10), rel=1e-6)


class Steep(nn.ReLU):
    def forward(self, x):
        return torch.exp(x)


class Gentle(nn.ReLU):
    def forward(self, x):
        return torch.tanh(x)


class _Of(nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.layer, self.constant = nn.Linear(3, 3), constant

    def forward(self, x):
        return x + self.layer(self.constant.to(x))


UNKNOWN = {
    "padded by ones": (lambda x: F.pad(x, (1, 1), value=1.0), "pad"),
    "product": (lambda x: x * torch.relu(x), "a product or ratio of two values"),
    "ratio": (lambda x: 1 / x, "a product or ratio of two values"),
    "rounded ratio": (lambda x: torch.div(x, 2, rounding_mode="floor"), "a product or ratio of two values"),
    "nothing's ratio": (lambda x: x / 0, "a product or ratio of two values"),
    "infinite constant": (lambda x: x + math.inf, "a constant that is not finite"),
    "constants in a list": (lambda x: torch.cat([x, torch.ones_like(x)], 1), "cat"),
    "clamped above zero": (lambda x: x.clamp(0.1, 1), "clamp"),
    "steep threshold": (lambda x: F.threshold(x, 0.1, 0.0), "_threshold"),
    "places": (lambda x: x + x.max(1, keepdim=True)[1], "getitem"),
    "masked": (lambda x: x.masked_fill(x < 0, 0), "lt"),
    "with a bias": (lambda x: F.linear(x, torch.ones(3, 3), torch.ones(3)), "a product or ratio of two values"),
    "layer of a constant": (_Of(torch.ones(1, 4, 4, 3)), "a layer of a constant"),
    "scaled sum": (lambda x: torch.add(x, x, alpha=2), "add"),
    "whole numbers": (lambda x: x.to(torch.long).float(), "to"),
    "steep leaky": (lambda x: F.leaky_relu(x, 2.0), "leaky_relu"),
    "shifted hardtanh": (lambda x: F.hardtanh(x, 1.0, 2.0), "hardtanh"),
    "dropout at work": (lambda x: F.dropout(x, 0.5), "dropout"),
    "indices": (nn.AdaptiveMaxPool2d(2, return_indices=True), "max-pool with indices"),
    "pooling of one image": (lambda x: F.avg_pool2d(x[0], 2)[None], "pooling of what isn't a batch of images"),
    "product of lists": (lambda x: torch.einsum("nchw,nchw->nchw", [x, x]), "einsum"),
    "steep subclass": (Steep(), "exp"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_operations_without_known_paths_are_named(name):
    function, said = UNKNOWN[name]
    with pytest.raises(ValueError, match=rf"^network: the operation \w+ \({said}\) has no known paths, which dense"):
        norms.path_norm(drawn(Between(function, 48)), input_shape=(2, 5, 4))


def test_a_subclass_counts_for_what_its_forward_does():
    gentle, plain = (drawn(Between(function, 48)) for function in (Gentle(), torch.tanh))
    assert torch.equal(*(norms.path_norm(network, input_shape=(2, 5, 4)) for network in (gentle, plain)))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_by_pixels_counts_only_where_no_two_taps_meet_one(mode):
    network = drawn(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode))
    shapes = [(2, 2, 5)] if mode == "circular" else [(2, 2, 5), (2, 5, 5)]
    for shape in shapes:
        with pytest.raises(ValueError, match=rf"a convolution with {mode} padding, two of whose taps meet one pixel"):
            norms.path_norm(network, input_shape=shape)
    if mode == "circular":
        path = (dense(network, (2, 3, 5)) ** 2).sum() + 15 * network.bias.detach().double().square().sum()
        assert norms.path_norm(network, input_shape=(2, 3, 5)).item() == pytest.approx(path.item(), rel=1e-5)


def test_an_error_of_torch_names_the_operation_at_which_the_shape_does_not_fit():
    for function in (lambda x: x.view(7, 9), lambda x: x.flatten(1, 9), lambda x: x.sum(axis=(5,)), lambda x: x[0, 9]):
        with pytest.raises(ValueError, match=r"^input_shape \(2, 5, 4\) does not fit the network at \w+: "):
            norms.path_norm(drawn(Between(function, 48)), input_shape=(2, 5, 4))


def test_of_weights_that_are_all_zero_no_path_is_left():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    for p in network.parameters():
        nn.init.zeros_(p)
    assert norms.path_norm(network, input_shape=(4,)).item() == 0
    nn.init.ones_(network[4].bias)
    assert norms.path_norm(network, input_shape=(4,)).item() == 2
