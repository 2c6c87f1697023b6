"""Layers that only look known, and layers that are known by what they do: true norms, or a refusal by name."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import drawn
from torch import nn
from torch.nn.utils import parametrizations

from genlib import norms
from genlib.network import Network


def matrix(layer, shape):
    """The matrix of an affine layer, from all unit images."""
    with torch.no_grad():
        units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
        return (layer(units) - layer(torch.zeros_like(units[:1]))).flatten(1).T


class Equalized(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * math.sqrt(2 / self.in_features), self.bias)


class Masked(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.arange(inputs * outputs) % 3 > 0).view(outputs, inputs))

    def forward(self, x, scale=None):
        if scale is not None:
            x = x * scale
        return F.linear(x, bias=self.bias, weight=self.weight.masked_fill(~self.mask, 0.0))


class Merged(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(outputs, 2)), nn.Parameter(torch.randn(2, inputs))

    def forward(self, x):
        return F.linear(x, self.weight + self.up @ self.down)


class Buffered(nn.Linear):
    """A number that hangs on a buffer can't be read off the graph."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, x):
        return F.linear(x, self.weight * float(self.gain), self.bias)


class Loose(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.raw, self.shift = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return F.linear(x, torch.tanh(self.raw).t(), self.shift.exp())


class Renamed(nn.Linear):
    pass


class Standardized(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class Strided(nn.Conv2d):
    """The call says otherwise than the attributes, which count for nothing."""

    def forward(self, x):
        return F.conv2d(x, self.weight.flip(-1), stride=2, padding="valid", dilation=(1, 2), groups=self.groups)


class Doubled(nn.ConvTranspose1d):
    def forward(self, x):
        return F.conv_transpose1d(x, 2 * self.weight, self.bias, 2, 1, 1, self.groups)


KNOWN = {
    "equalized": (lambda: Equalized(5, 4), (5,)),
    "masked": (lambda: Masked(5, 4), (5,)),
    "merged": (lambda: Merged(5, 4), (5,)),
    "no subclass at all": (lambda: Loose(5, 4), (5,)),
    "subclass without a forward": (lambda: Renamed(5, 4), (5,)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 4)), (5,)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 4)), (5,)),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(5, 4)), (5,)),
    "weight norm of a convolution": (lambda: parametrizations.weight_norm(nn.Conv1d(2, 3, 3, padding=1)), (2, 6)),
    "standardized": (lambda: Standardized(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
    "strided": (lambda: Strided(4, 6, (2, 2), padding=1, groups=2), (4, 6, 6)),
    "transposed": (lambda: Doubled(4, 6, 3, groups=2), (4, 5)),
}


def made(name, seed=0):
    torch.manual_seed(seed)
    return drawn(KNOWN[name][0](), seed).double().eval()


@pytest.mark.parametrize("name", KNOWN)
def test_a_layer_of_one_call_has_the_norms_of_its_matrix(name):
    layer, shape = made(name), KNOWN[name][1]
    dense = matrix(layer, shape)
    network = nn.Sequential(nn.Identity(), layer, nn.ReLU()).double().eval()
    before = copy.deepcopy(network.state_dict())
    for module in (layer, network):
        spectral = norms.spectral_norms(module, input_shape=shape, rtol=1e-8)
        torch.testing.assert_close(spectral, torch.linalg.svdvals(dense)[:1], rtol=1e-7, atol=0)
        torch.testing.assert_close(norms.operator_frobenius_norms(module, input_shape=shape)[0], dense.norm())
        for p in (1, 2):
            bias = layer(torch.zeros(1, *shape).double()).detach().abs() ** p
            path = (dense.abs() ** p).sum() + bias.sum()
            torch.testing.assert_close(norms.path_norm(module, input_shape=shape, p=p), path, rtol=1e-12, atol=0)
    if len(shape) > 1:
        assert norms.conv_norm(layer, shape).value.item() == pytest.approx(spectral.item(), rel=1e-4)
    assert norms.layer_names(network) == ["1"]
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", KNOWN)
def test_a_stack_of_them_and_their_distances(name):
    layers, shape = [nn.Sequential(made(name, seed)) for seed in range(3)], KNOWN[name][1]
    tops = torch.stack([torch.linalg.svdvals(matrix(layer, shape))[:1] for layer in layers])
    stacked = norms.spectral_norms(Network.stack(layers), input_shape=shape, rtol=1e-8)
    torch.testing.assert_close(stacked, tops, rtol=1e-7, atol=0)
    moved = torch.linalg.svdvals(matrix(layers[1], shape) - matrix(layers[0], shape))[:1]
    apart = norms.distances(layers[1], layers[0], norm="spectral", input_shape=shape, rtol=1e-8)
    torch.testing.assert_close(apart, moved, rtol=1e-7, atol=0)


class ActNorm(nn.BatchNorm2d):
    """BatchNorm, dropout and activation in one, as some packages have it."""

    def __init__(self, channels, act):
        super().__init__(channels, eps=0.1)
        self.drop, self.act = nn.Dropout(0.3), act

    def forward(self, x):
        torch._assert(x.ndim == 4, "images")
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class Frozen(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.eps = 0.01
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


NORMS = {
    "activation": lambda: ActNorm(3, nn.ReLU(inplace=True)),
    "tanh": lambda: ActNorm(3, nn.Tanh()),
    "frozen": lambda: Frozen(3),
    "instance norm of running statistics": lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("before", [nn.Conv2d, Standardized])
@pytest.mark.parametrize("name", NORMS)
def test_what_acts_as_batch_norm_folds_and_stands_alone(name, before):
    torch.manual_seed(1)
    norm, shape = drawn(NORMS[name]().double()), (2, 5, 4)
    plain = nn.BatchNorm2d(3, eps=norm.eps).double().eval()
    plain.load_state_dict(norm.state_dict(), strict=False)
    first, head = drawn(before(2, 3, 2)).double(), drawn(nn.Linear(36, 2)).double()
    network = nn.Sequential(first, norm, nn.MaxPool2d(1), norm_again := copy.deepcopy(norm), nn.Flatten(), head).eval()
    reference = nn.Sequential(first, plain, nn.ReLU(), copy.deepcopy(plain), nn.ReLU(), nn.Flatten(), head).eval()
    assert norms.layer_names(network) == ["0", "3", "5"] and norm_again is network[3]
    spectral = norms.spectral_norms(network, input_shape=shape, rtol=1e-8)
    images = [matrix(reference[:2], shape), matrix(plain, (3, 4, 3)), matrix(head, (36,))]
    tops = torch.stack([torch.linalg.svdvals(image)[0] for image in images])
    torch.testing.assert_close(spectral, tops, rtol=1e-7, atol=0)
    for p in (1, 2):
        path = norms.path_norm(network, input_shape=shape, p=p)
        torch.testing.assert_close(path, norms.path_norm(reference, input_shape=shape, p=p))
    each = norms.frobenius_norms(Network.stack([network, network]))
    torch.testing.assert_close(each, norms.frobenius_norms(reference).expand(2, -1))


class OnePlus(Frozen):
    def forward(self, x):
        return super().forward(x) + x


class OfTheBatch(Frozen):
    def forward(self, x):
        return super().forward(x - x.mean((0, 2, 3), keepdim=True))


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Cosine(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


class Branches(Merged):
    def forward(self, x):
        return F.linear(x, self.weight) + x @ self.down.T @ self.up.T


class Noisy(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight + torch.randn_like(self.weight), self.bias)


class Dropped(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.dropout(self.weight), self.bias)


class PlainMask(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.mask = torch.ones(outputs, inputs)

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class OfTheInput(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * x.mean(), self.bias)


class PaddedFirst(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class Given(nn.Module):
    """Its layer gets a second argument, which changes what it does."""

    def __init__(self):
        super().__init__()
        self.layer = Masked(5, 4)

    def forward(self, x):
        return self.layer(x, 3.0)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.code, self.head = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(F.linear(torch.relu(self.code(x)), self.code.weight.t()))


class Directly(nn.Module):
    """Calls forward past the layer, which no hook and no module call sees."""

    def __init__(self):
        super().__init__()
        self.layer = Equalized(5, 4)

    def forward(self, x):
        return self.layer.forward(x)


def hooked(register):
    layer = nn.Linear(5, 4)
    getattr(layer, register)(lambda *_: None)
    return nn.Sequential(layer)


def patched():
    network = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    network[1].forward = lambda x: 3 * x
    return network


ONE_CALL = "isn't one F.linear or convolution of its input.*padding, as a module of its own.*or measure its curvature"
INSTEAD = "product of layers' norms would leave out its {}; measure its curvature, sharpness or sensitivity instead"
REFUSED = {
    "output scaled": (lambda: Scaled(5, 4), f"1 is of type Scaled, whose forward {ONE_CALL}"),
    "input normalized": (lambda: Cosine(5, 4), f"1 is of type Cosine.*{ONE_CALL}"),
    "two branches": (lambda: Branches(5, 4), f"1 is of type Branches.*{ONE_CALL}"),
    "noise": (lambda: Noisy(5, 4), f"1 is of type Noisy.*{ONE_CALL}"),
    "dropped weights": (lambda: Dropped(5, 4), f"1 is of type Dropped.*{ONE_CALL}"),
    "plain tensor": (lambda: PlainMask(5, 4), f"1 is of type PlainMask.*{ONE_CALL}"),
    "number of a buffer": (lambda: Buffered(5, 4), f"1 is of type Buffered.*{ONE_CALL}"),
    "weight of the input": (lambda: OfTheInput(5, 4), f"1 is of type OfTheInput.*{ONE_CALL}"),
    "padded first": (lambda: PaddedFirst(5, 4, 2), f"1 is of type PaddedFirst.*{ONE_CALL}"),
    "reflected": (lambda: Standardized(5, 4, 3, padding=1, padding_mode="reflect"), f"1 .*{ONE_CALL}"),
    "no BatchNorm": (lambda: OnePlus(5), "1 is of type OnePlus, which keeps statistics but isn't BatchNorm"),
    "batch at hand": (lambda: OfTheBatch(5), "1 is of type OfTheBatch, which keeps statistics but isn't BatchNorm"),
    "parametrized BatchNorm": (
        lambda: parametrizations.weight_norm(nn.BatchNorm1d(5), dim=None).eval(),
        "the weight of 1 is computed from other tensors",
    ),
    "moving power iteration": (
        lambda: parametrizations.spectral_norm(nn.Linear(5, 4)).train(),
        "the weight of 1 is computed from other tensors",
    ),
    "layer norm": (lambda: nn.LayerNorm(5), INSTEAD.format("weight, bias") + "; exclude="),
    "second argument": (Given, r"1\.layer is called with more than its input"),
    "tied": (Autoencoder, r"1\.code\.weight is used outside its layer"),
    "called directly": (Directly, r"1\.layer\.weight is used outside its layer"),
    "hook": (lambda: hooked("register_forward_hook"), r"1\.0 has a forward hook, which may change.*; remove it first"),
    "pre-hook": (lambda: hooked("register_forward_pre_hook"), r"1\.0 has a forward hook"),
    "forward of its own": (patched, r"1\.1 has been given another forward"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_layer_is_refused_by_name(name):
    make, message = REFUSED[name]
    network = nn.Sequential(nn.Identity(), make())
    for measure in (norms.frobenius_norms, lambda n: norms.path_norm(n, input_shape=(5,))):
        with pytest.raises(ValueError, match=rf"^network: .*{message}"):
            measure(network)


def test_only_a_type_of_ones_own_is_told_of_register_norm():
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.gain

    class Whole(Gain):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

    with pytest.raises(ValueError, match=r"out its gain; .*, or, if it is a linear map, .*norms\.register_norm\(Gain"):
        norms.frobenius_norms(nn.Sequential(nn.Linear(3, 3), Gain()))
    for network in (Whole(), nn.Sequential(nn.Linear(3, 3), nn.PReLU())):
        with pytest.raises(ValueError, match=r"or sensitivity instead; exclude=.* gives the norms of the rest$"):
            norms.frobenius_norms(network)


def test_a_look_at_the_type_of_a_weight_is_no_use_of_it():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.layer(x.to(self.layer.weight.dtype)).view(-1, self.head.weight.shape[1]))

    network = Cast()
    plain = nn.Sequential(network.layer, network.head)
    for norm in (norms.frobenius_norms, lambda n: norms.path_norm(n, input_shape=(5,))):
        assert torch.equal(norm(network), norm(plain))
