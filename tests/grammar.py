"""Random small networks, drawn by number from the idioms of PyTorch code."""

import random
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

__all__ = ["IDIOMS", "Constants", "Doubled", "Drawn", "InPlace", "Map", "Mean", "drawn"]

_SHAPES = {"vector": (4,), "sequence": (3, 4), "image": (2, 4, 4), "tokens": (4,)}
_ROWS, _ANY = ("vector", "sequence"), ("vector", "sequence", "image")
_LARGEST, _ALPHABET = 300, 5  # parameters, tokens


@dataclass
class Drawn:
    """A network with data and its start, the idioms in it, and which measures have no value: data, norms or paths."""

    network: nn.Module
    initial: nn.Module
    inputs: Tensor
    labels: Tensor
    idioms: list[str]
    without: set[str]


class Map(nn.Module):
    """A layer of these tests that is one linear map of its input, of weights that are its own."""


@dataclass
class _Draw:
    """What an idiom is drawn from: chance, and the shape of a sample where it begins."""

    choose: random.Random
    shape: tuple[int, ...]

    @property
    def features(self) -> int:
        return self.shape[-1]

    def width(self) -> int:
        return self.choose.choice((3, 4))


class _Idiom(NamedTuple):
    build: Callable[[_Draw], nn.Module | list[nn.Module]]
    kinds: tuple[str, ...]  # of the values that it takes
    without: set[str]  # which measures of such a network have no value
    weight: float  # how often it is drawn


IDIOMS: dict[str, _Idiom] = {}


def _idiom(*kinds: str, without: str = "", weight: float = 1.0) -> Callable:
    def named(build: Callable) -> Callable:
        IDIOMS[build.__name__] = _Idiom(build, kinds, set(without.split()), weight)
        return build

    return named


def drawn(number: int, *, plain: Collection[str] = ()) -> Drawn:
    """Network `number`, always the same; the idioms of `plain` written so that autograd differentiates them truly."""
    kept, precision = torch.get_rng_state(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        seed, found = next(_fitting(number))
        found.initial = _network(random.Random(seed)).network
        for module, spread in ((found.network, 0.2), (found.initial, 0.5)):
            _spread(module, spread)
        if number % 8:
            found.labels = _own_labels(found.network, found.inputs)
    finally:
        torch.set_rng_state(kept)
        torch.set_default_dtype(precision)
    if number % 9 == 4:
        found.labels = found.labels.to(torch.uint8)
    if number % 31 == 6:
        found.network, found.initial = nn.DataParallel(found.network).eval(), nn.DataParallel(found.initial).eval()
    for part in [*found.network.modules(), *found.initial.modules()]:
        if isinstance(part, _Call):
            part.plain = part.function.__qualname__.split(".")[0] in plain
    return found


def _fitting(number: int) -> Iterator[tuple[int, Drawn]]:
    """The draws of this number that are small, each with its seed."""
    for seed in range(1000 * number, 1000 * (number + 1)):
        torch.manual_seed(seed)
        try:
            found = _network(random.Random(seed))
        except RuntimeError:  # an image too small for the layers drawn
            continue
        if sum(p.numel() for p in found.network.parameters()) <= _LARGEST:
            yield seed, found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of what is deprecated, and of checkpoints where nothing is differentiated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def _own_labels(network: nn.Module, inputs: Tensor) -> Tensor:
    with _quiet():
        logits = network(inputs.clone())
    return logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


@torch.no_grad()
def _network(choose: random.Random) -> Drawn:
    kind = choose.choice(("vector", "vector", "sequence", "image", "image", "tokens"))
    inputs = torch.randn(choose.choice((4, 5, 6)), *_SHAPES[kind])
    if kind == "tokens":
        inputs = torch.randint(_ALPHABET, inputs.shape)
    parts, idioms, without, x = [], [], set(), inputs
    for place in range(choose.choice((2, 3, 3, 4))):
        known = {n: one for n, one in IDIOMS.items() if kind in one.kinds and not (place and n.startswith("input_"))}
        name = choose.choices(list(known), [one.weight for one in known.values()])[0]
        made = known[name].build(_Draw(choose, tuple(x.shape[1:])))
        for part in made if isinstance(made, list) else [made]:
            _settle(part)
            parts.append(part.eval())
            with _quiet():
                x = part(x.clone())
        kind = {1: "vector", 2: "sequence", 3: "image"}[x.dim() - 1]
        idioms.append(name)
        without |= known[name].without
    outputs = choose.choice((1, 2, 3, 3))
    last = {
        "image": [choose.choice((nn.AdaptiveAvgPool2d(1), nn.Identity())), nn.Flatten()],
        "sequence": [choose.choice((nn.Flatten(), Mean()))],
        "vector": [],
    }[kind]
    features = nn.Sequential(*last)(x.clone()).shape[1]
    whole, name, more = _wrapped(choose, [*parts, *last, nn.Linear(features, outputs)])
    labels = torch.randint(max(2, outputs), (len(inputs),))
    return Drawn(whole.eval(), whole, inputs, labels, [*idioms, name], without | more)


def _settle(part: nn.Module) -> None:
    for one in part.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.running_mean is not None:
            nn.init.normal_(one.running_mean)
            nn.init.uniform_(one.running_var, 0.3, 2)


@torch.no_grad()
def _spread(module: nn.Module, spread: float) -> None:
    for p in module.parameters():
        p.add_(spread * torch.randn_like(p))


# The whole


class _Forward(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


class _ModuleDict(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleDict({f"part{i}": part for i, part in enumerate(parts)})

    def forward(self, x):
        for part in self.parts.values():
            x = part(x)
        return x


class _ListBeside(nn.Module):
    """A plain list of layers that are registered, too."""

    def __init__(self, parts):
        super().__init__()
        for i, part in enumerate(parts):
            self.add_module(f"part{i}", part)
        self.order = list(parts)

    def forward(self, x):
        for part in self.order:
            x = part(x)
        return x


class _Optional(_Forward):
    def forward(self, x, mask=None, scale=None, return_features=False):
        features = super().forward(x if mask is None else x * mask)
        if scale is not None:
            features = features * scale
        return (features, x) if return_features else features


class _Conditional(_Forward):
    def forward(self, x):
        if float(x.detach().double().sum()) < -1e30:
            raise ValueError("inputs out of range")
        return super().forward(x)


class _UnusedHead(_Forward):
    def __init__(self, parts):
        super().__init__(parts)
        self.head = nn.Linear(3, 2)


class _TwoHeads(_Forward):
    def __init__(self, parts):
        super().__init__(parts)
        self.other = nn.Linear(parts[-1].in_features, 3)

    def forward(self, x):
        for part in self.parts[:-1]:
            x = part(x)
        return {"logits": self.parts[-1](x), "other": self.other(x)}["logits"]


class _HiddenHead(nn.Module):
    """A head in a plain list, where no measure sees it."""

    def __init__(self, parts):
        super().__init__()
        self.body, self.hidden = nn.Sequential(*parts[:-1], nn.Identity()), [parts[-1]]
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.hidden[0](self.body(x))


class _HiddenWeight(_HiddenHead):
    """The weight of the head is registered, and read from a dictionary."""

    def __init__(self, parts):
        super().__init__(parts)
        self.head, self.read = parts[-1], {"weight": parts[-1].weight, "bias": parts[-1].bias}

    def forward(self, x):
        return F.linear(self.body(x), self.read["weight"], self.read["bias"])


class _Softmax(_Forward):
    def forward(self, x):
        return super().forward(x).log_softmax(-1)


class InPlace(_Forward):
    def forward(self, x):
        x = super().forward(x)
        x *= 0.7
        x += 0.1
        return x


class _ScaledInput(_Forward):
    def __init__(self, parts):
        super().__init__(parts)
        self.scaled = Doubled()

    def forward(self, x):
        return super().forward(self.scaled(x) if x.is_floating_point() else x)


class _WritesInput(_Forward):
    def forward(self, x):
        if x.is_floating_point():
            x.mul_(0.5).sub_(0.1)
        return super().forward(x)


_WHOLES = [  # how it is written, what has no value then, and how often
    (_Forward, "", 4),
    (_ModuleDict, "", 2),
    (_ListBeside, "", 2),
    (_Optional, "", 2),
    (_Conditional, "paths", 1),
    (_UnusedHead, "", 1),
    (_TwoHeads, "", 1),
    (_HiddenHead, "data", 0.7),
    (_HiddenWeight, "data", 0.7),
    (_Softmax, "paths", 1),
    (InPlace, "", 1),
    (_ScaledInput, "", 1),
    (_WritesInput, "paths", 1),
]


def _wrapped(choose: random.Random, parts: list[nn.Module]) -> tuple[nn.Module, str, set[str]]:
    if choose.random() < 0.4:
        return nn.Sequential(*parts), "Sequential", set()
    kind, without, _ = choose.choices(_WHOLES, [often for *_, often in _WHOLES])[0]
    return kind(parts), kind.__name__.strip("_"), set(without.split())


# Parts


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


class _Call(nn.Module):
    """Whatever a function does with a module and an input."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function, self.parts, self.plain = function, nn.ModuleList(parts), False

    def forward(self, x):
        return self.function(self, x)


def _known_activation(draw):
    kind = draw.choose.choice(("relu", "inplace", "tanh", "leaky"))
    return {
        "relu": nn.ReLU(),
        "inplace": nn.ReLU(inplace=True),
        "tanh": nn.Tanh(),
        "leaky": nn.LeakyReLU(0.2),
    }[kind]


def _linear(draw, **options):
    return nn.Linear(draw.features, draw.width(), **options)


@_idiom(*_ROWS, weight=3)
def dense(draw):
    return [_linear(draw, bias=draw.choose.random() < 0.8), _known_activation(draw)]


@_idiom(*_ROWS, without="paths")
def smooth_activation(draw):
    kinds = (nn.GELU, nn.SiLU, nn.Hardswish, nn.Softplus, nn.Sigmoid, nn.ELU, nn.Hardsigmoid, nn.Softsign)
    return [_linear(draw), draw.choose.choice(kinds)()]


@_idiom(*_ROWS, without="paths", weight=0.5)
def functional_activation(draw):
    function = draw.choose.choice((torch.tanh, torch.sin, F.softplus, F.gelu, torch.exp, torch.square))
    return _Call(lambda self, x: function(self.parts[0](x)), _linear(draw))


def _times(module, args, output):
    return 1.7 * output


def _add_to_input(module, args):
    return (0.6 * args[0],)


def _watch(module, args, output):
    module.seen = float(output.detach().abs().max())


def _watch_input(module, args):
    module.met = args[0].shape


@_idiom(*_ROWS)
def hook_scales(draw):
    layer = _linear(draw)
    layer.register_forward_hook(_times)
    return [layer, _known_activation(draw)]


@_idiom(*_ROWS)
def pre_hook_scales(draw):
    layer = _linear(draw)
    layer.register_forward_pre_hook(_add_to_input)
    return [layer, _known_activation(draw)]


@_idiom(*_ROWS)
def hook_watches(draw):
    layer = _linear(draw)
    layer.register_forward_hook(_watch)
    layer.register_forward_pre_hook(_watch_input)
    return [layer, _known_activation(draw)]


@_idiom(*_ROWS, without="paths", weight=0.5)
def activation_hooked(draw):
    layer = nn.ReLU()
    layer.register_forward_hook(_times)
    return [_linear(draw), layer]


class Masked(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mask", (torch.rand_like(self.weight) < 0.7).to(self.weight))

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class Scaled(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * super().forward(x)


class FixedScale(nn.Linear):
    def forward(self, x):
        return super().forward(x) * self.in_features**-0.5


class Standardized(nn.Linear):
    def forward(self, x):
        w = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, w / (w.var(1, keepdim=True) + 1e-5).sqrt(), self.bias)


class LowRank(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.a, self.b = nn.Parameter(torch.randn(2, sizes[0])), nn.Parameter(torch.randn(sizes[1], 2))

    def forward(self, x):
        return super().forward(x) + 0.5 * (x @ self.a.T) @ self.b.T


class Clamped(nn.Linear):
    """One that keeps its outputs small: no longer linear."""

    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class Renamed(nn.Linear):
    """One that is its parent in all but its name."""


@_idiom(*_ROWS, weight=2)
def linear_subclass(draw):
    kind = draw.choose.choice((Masked, Scaled, FixedScale, Standardized, LowRank, Renamed))
    return [kind(draw.features, draw.width()), _known_activation(draw)]


@_idiom(*_ROWS, without="paths", weight=0.5)
def clamped_subclass(draw):
    return Clamped(draw.features, draw.width())


class ScaledReLU(nn.ReLU):
    def forward(self, x):
        return 1.5 * super().forward(x)


class ShiftedTanh(nn.Tanh):
    def forward(self, x):
        return super().forward(x + 0.5)


@_idiom(*_ROWS, without="paths")
def activation_subclass(draw):
    return [_linear(draw), draw.choose.choice((ScaledReLU, ShiftedTanh))()]


class Functional(Map):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(outputs, inputs) / 2), nn.Parameter(torch.randn(outputs) / 2)

    def forward(self, x):
        return F.linear(x, self.w, self.b)


class Product(Functional):
    def forward(self, x):
        return x @ self.w.T + self.b


class Einsum(Functional):
    def forward(self, x):
        return torch.einsum("...i,oi->...o", x, self.w) + self.b


@_idiom(*_ROWS)
def functional_weights(draw):
    kind = draw.choose.choice((Functional, Product, Einsum))
    return [kind(draw.features, draw.width()), _known_activation(draw)]


@_idiom(*_ROWS)
def tied(draw):
    one, other = nn.Linear(draw.features, draw.features), nn.Linear(draw.features, draw.features)
    other.weight = one.weight
    return [one, nn.Tanh(), other, nn.ReLU()]


@_idiom(*_ROWS, without="paths norms")
def tied_transposed(draw):
    return _Call(lambda self, x: torch.tanh(self.parts[0](x)) @ self.parts[0].weight, _linear(draw))


@_idiom(*_ROWS)
def used_twice(draw):
    layer = nn.Linear(draw.features, draw.features)
    return [layer, nn.Tanh(), layer, nn.ReLU()]


@_idiom(*_ROWS)
def used_twice_within(draw):
    layer = nn.Linear(draw.features, draw.features)
    return _Call(lambda self, x: self.parts[0](F.relu(self.parts[0](x))), layer)


class _Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT


@_idiom(*_ROWS)
def symmetric(draw):
    layer = nn.Linear(draw.features, draw.features)
    parametrize.register_parametrization(layer, "weight", _Symmetric())
    return [layer, _known_activation(draw)]


@_idiom(*_ROWS, weight=1.5)
def weight_norm(draw):
    return [parametrizations.weight_norm(_linear(draw)), _known_activation(draw)]


@_idiom(*_ROWS)
def spectral_norm(draw):
    return [parametrizations.spectral_norm(_linear(draw)), _known_activation(draw)]


@_idiom(*_ROWS, weight=0.7)
def orthogonal(draw):
    return [parametrizations.orthogonal(_linear(draw)), _known_activation(draw)]


@_idiom(*_ROWS)
def pruned(draw):
    layer = _linear(draw)
    prune.random_unstructured(layer, "weight", amount=0.4)
    return [layer, _known_activation(draw)]


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 1 if width % 2 else 2, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


@_idiom("sequence", without="paths")
def attention(draw):
    return Attention(draw.features)


@_idiom("sequence", without="paths")
def encoder_layer(draw):
    first = draw.choose.random() < 0.5
    heads = 1 if draw.features % 2 else 2
    return nn.TransformerEncoderLayer(draw.features, heads, 4, batch_first=True, norm_first=first)


@_idiom("sequence", without="paths", weight=1.5)
def recurrent(draw):
    kind = draw.choose.choice((nn.LSTM, nn.GRU, nn.RNN))
    return _Call(lambda self, x: self.parts[0](x)[0], kind(draw.features, 3, batch_first=True))


@_idiom("sequence", without="paths", weight=0.7)
def recurrent_sequence_first(draw):
    return _Call(lambda self, x: self.parts[0](x.transpose(0, 1))[0].transpose(0, 1), nn.GRU(draw.features, 3))


@_idiom("sequence")
def sequence_first(draw):
    layer = _linear(draw)
    return _Call(lambda self, x: F.relu(self.parts[0](x.transpose(0, 1))).transpose(0, 1), layer)


@_idiom("sequence")
def merged_positions(draw):
    layer = _linear(draw)
    return _Call(lambda self, x: F.relu(self.parts[0](x.reshape(-1, x.shape[-1]))).reshape(*x.shape[:2], -1), layer)


@_idiom("sequence")
def channels_first(draw):
    """Convolution along a sequence."""
    conv = nn.Conv1d(draw.features, draw.width(), 2, padding="same" if draw.choose.random() < 0.5 else 1)
    return _Call(lambda self, x: F.relu(self.parts[0](x.mT)).mT, conv)


@_idiom("sequence")
def with_keywords(draw):
    def forward(self, x):
        return self.parts[0](query=x)

    class _Keyword(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, query, mask=None, *, scale=None):
            return F.relu(self.layer(query) if mask is None else self.layer(query) + mask)

    return _Call(forward, _Keyword(_linear(draw)))


@_idiom("tokens", without="paths", weight=3)
def input_embedding(draw):
    return nn.Embedding(_ALPHABET, 3, padding_idx=0 if draw.choose.random() < 0.6 else None)


@_idiom("tokens", without="paths")
def input_positions(draw):
    def forward(self, x):
        return self.parts[0](x) + self.parts[1](torch.arange(x.shape[1], device=x.device))

    return _Call(forward, nn.Embedding(_ALPHABET, 3), nn.Embedding(draw.shape[0], 3))


@_idiom("tokens", without="paths")
def input_padding_mask(draw):
    def forward(self, x):
        there = (x != 0).unsqueeze(-1)
        return (self.parts[0](x) * there).sum(1) / there.sum(1).clamp(min=1)

    return _Call(forward, nn.Embedding(_ALPHABET, 4, padding_idx=0))


@_idiom("tokens", without="paths")
def input_one_hot(draw):
    return _Call(lambda self, x: self.parts[0](F.one_hot(x, _ALPHABET).double()), nn.Linear(_ALPHABET, 3))


@_idiom(*_ANY)
def input_doubled(draw):
    return Doubled()


@_idiom(*_ANY, without="paths")
def input_normalized(draw):
    return _Call(lambda self, x: F.normalize(x.flatten(1)).view_as(x))


@_idiom("image")
def input_permuted(draw):
    return _Call(lambda self, x: x.permute(0, 3, 2, 1))


@_idiom("vector", "sequence")
def input_sliced(draw):
    return _Call(lambda self, x: x[..., :3])


@_idiom("vector")
def input_unflattened(draw):
    return _Call(lambda self, x: x.view(len(x), 2, 2))


@_idiom("image", weight=0.5)
def flattened(draw):
    return _Call(lambda self, x: x.flatten(1)[:, :6])


@_idiom("image", weight=3)
def convolution(draw):
    return [nn.Conv2d(draw.shape[0], 2, draw.choose.choice((2, 3)), padding=1), _known_activation(draw)]


@_idiom("image", weight=2)
def padded(draw):
    mode = draw.choose.choice(("circular", "reflect", "replicate"))
    return [nn.Conv2d(draw.shape[0], 2, 3, padding=1, padding_mode=mode), _known_activation(draw)]


@_idiom("image", weight=0.7)
def padding_layer(draw):
    layer = draw.choose.choice((nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.ZeroPad2d(1)))
    return [layer, nn.Conv2d(draw.shape[0], 2, 3), _known_activation(draw)]


@_idiom("image", weight=1.5)
def geometry(draw):
    channels = draw.shape[0]
    options = {
        "strided": {"kernel_size": 2, "stride": 2, "padding": 1},
        "dilated": {"kernel_size": 2, "dilation": 2, "padding": 1},
        "grouped": {"kernel_size": 2, "groups": channels, "padding": 1},
        "pointwise": {"kernel_size": 1},
    }[draw.choose.choice(("strided", "dilated", "grouped", "pointwise"))]
    return [nn.Conv2d(channels, 2 * channels if channels < 4 else channels, **options), _known_activation(draw)]


@_idiom("image")
def transposed(draw):
    options = draw.choose.choice(({}, {"stride": 2, "output_padding": 1}, {"padding": 1}))
    return [nn.ConvTranspose2d(draw.shape[0], 2, 2, **options), _known_activation(draw)]


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class MaskedConv(nn.Conv2d):
    def forward(self, x):
        mask = torch.ones_like(self.weight)
        mask[..., -1] = 0
        return F.conv2d(x, self.weight * mask, self.bias, self.stride, self.padding)


class PaddedConv(nn.Conv2d):
    """Convolution that pads its image itself, more on one side."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 0, 1, 0)))


@_idiom("image", weight=1.5)
def convolution_subclass(draw):
    kind = draw.choose.choice((StandardizedConv, MaskedConv, PaddedConv))
    return [kind(draw.shape[0], 2, 2), _known_activation(draw)]


@_idiom("image")
def convolution_hooked(draw):
    layer = nn.Conv2d(draw.shape[0], 2, 2)
    layer.register_forward_hook(_times)
    return [layer, _known_activation(draw)]


@_idiom("image")
def convolution_weight_norm(draw):
    return [parametrizations.weight_norm(nn.Conv2d(draw.shape[0], 2, 2)), _known_activation(draw)]


@_idiom("image")
def batch_norm(draw):
    conv = nn.Conv2d(draw.shape[0], 2, 2)
    return draw.choose.choice(([conv, nn.BatchNorm2d(2), nn.ReLU()], [nn.BatchNorm2d(draw.shape[0]), conv, nn.ReLU()]))


@_idiom("image")
def pooled(draw):
    return [nn.Conv2d(draw.shape[0], 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)]


@_idiom("image")
def max_pooled(draw):
    return [nn.Conv2d(draw.shape[0], 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]


@_idiom("image", without="paths")
def group_norm(draw):
    return [nn.Conv2d(draw.shape[0], 2, 2), nn.GroupNorm(1, 2), nn.ReLU()]


@_idiom("image", without="paths")
def instance_norm(draw):
    return [nn.Conv2d(draw.shape[0], 2, 2, padding=1), nn.InstanceNorm2d(2), nn.ReLU()]


@_idiom("vector")
def batch_norm_of_vectors(draw):
    layer, before = _linear(draw), nn.BatchNorm1d(draw.features)
    after = nn.BatchNorm1d(layer.out_features)
    return draw.choose.choice(([layer, after, nn.ReLU()], [before, layer, nn.ReLU()], [before]))


@_idiom("vector", without="paths data norms", weight=0.3)
def batch_statistics(draw):
    return nn.BatchNorm1d(draw.features, track_running_stats=False)


@_idiom(*_ROWS, without="paths data", weight=0.2)
def batch_mean(draw):
    return _Call(lambda self, x: x - x.mean(0, keepdim=True))


@_idiom(*_ROWS, without="paths")
def layer_norm(draw):
    return [draw.choose.choice((nn.LayerNorm, nn.RMSNorm))(draw.features), _linear(draw), nn.ReLU()]


@_idiom(*_ROWS, without="paths", weight=0.7)
def scripted(draw):
    with _quiet():
        return torch.jit.script(nn.Sequential(_linear(draw), nn.Tanh()))


@_idiom(*_ROWS)
def dropout(draw):
    def forward(self, x):
        return F.dropout(F.relu(self.parts[0](x)), 0.5, self.training)

    return [_Call(forward, _linear(draw)), nn.Dropout(0.3)]


@_idiom(*_ROWS, without="paths data", weight=0.2)
def dropout_always(draw):
    return _Call(lambda self, x: F.dropout(self.parts[0](x), 0.5), _linear(draw))


@_idiom(*_ROWS, without="paths data", weight=0.2)
def noise(draw):
    return _Call(lambda self, x: x + 0.1 * torch.randn_like(x))


@_idiom(*_ROWS, weight=0.5)
def noise_in_training(draw):
    return _Call(lambda self, x: self.parts[0](x + torch.randn_like(x) if self.training else x), _linear(draw))


class Counter(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return F.relu(self.layer(x))


@_idiom(*_ROWS)
def counts_calls(draw):
    return Counter(_linear(draw))


class Drift(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean.mul_(0.5).add_(x.detach().mean(), alpha=0.5)
        return self.layer(x - self.mean)


@_idiom(*_ROWS, without="paths data", weight=0.2)
def drifts(draw):
    return Drift(_linear(draw))


@_idiom(*_ROWS, without="paths")
def detached(draw):
    def forward(self, x):
        y = self.parts[0](x)
        return torch.tanh(y) + (y.square() if self.plain else y.square().detach())

    return _Call(forward, _linear(draw))


@_idiom(*_ROWS, weight=0.7)
def without_gradient(draw):
    def forward(self, x):
        with torch.set_grad_enabled(self.plain and torch.is_grad_enabled()):
            return F.relu(self.parts[0](x))

    return _Call(forward, _linear(draw))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


@_idiom(*_ROWS, without="paths")
def once_differentiable(draw):
    def forward(self, x):
        y = torch.tanh(self.parts[0](x))
        return y**3 if self.plain else Cube.apply(y)

    return _Call(forward, _linear(draw))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


@_idiom(*_ROWS, without="paths", weight=0.7)
def own_function(draw):
    return _Call(lambda self, x: Twice.apply(torch.tanh(self.parts[0](x))), _linear(draw))


@_idiom(*_ROWS, weight=1.5)
def checkpointed(draw):
    reentrant = draw.choose.random() < 0.5

    def forward(self, x):
        def layer(z):
            return F.relu(self.parts[0](z))

        return layer(x) if self.plain else checkpoint(layer, x, use_reentrant=reentrant)

    return _Call(forward, _linear(draw))


class Constants(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.layer = _linear(draw)
        self.register_buffer("shift", torch.randn(draw.features))
        self.register_buffer("projection", torch.randn(self.layer.out_features, 4), persistent=False)

    def forward(self, x):
        return torch.tanh(self.layer(x + self.shift) @ self.projection)


@_idiom(*_ROWS)
def constants(draw):
    return Constants(draw)


@_idiom(*_ROWS)
def residual(draw):
    return _Call(lambda self, x: x + F.relu(self.parts[0](x)), nn.Linear(draw.features, draw.features))


@_idiom(*_ROWS)
def branches(draw):
    def forward(self, x):
        return torch.cat([F.relu(part(x)) for part in self.parts], -1)

    return _Call(forward, nn.Linear(draw.features, 2), nn.Linear(draw.features, 3))


@_idiom(*_ROWS, without="paths")
def gated(draw):
    def forward(self, x):
        return self.parts[0](x) * torch.sigmoid(self.parts[1](x))

    return _Call(forward, nn.Linear(draw.features, 3), nn.Linear(draw.features, 3))


@_idiom(*_ROWS, without="paths")
def softmax(draw):
    return [_linear(draw), nn.Softmax(-1)]


@_idiom(*_ROWS, without="paths", weight=0.7)
def own_parameters(draw):
    class _Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(draw.features))
            self.none = None
            self.register_parameter("nothing", None)

        def forward(self, x):
            return x * self.gain

    return _Own()


@_idiom("vector", without="paths", weight=0.5)
def bilinear(draw):
    return _Call(lambda self, x: self.parts[0](x, x), nn.Bilinear(draw.features, draw.features, 2))


@_idiom(*_ROWS, without="paths", weight=0.5)
def prelu(draw):
    return [_linear(draw), nn.PReLU()]


@_idiom(*_ROWS, without="paths")
def in_place(draw):
    def forward(self, x):
        x = self.parts[0](x)
        x += 0.3
        x.mul_(0.8)
        return F.relu_(x)

    return _Call(forward, _linear(draw))


@_idiom(*_ROWS, weight=0.5)
def frozen(draw):
    layer = _linear(draw)
    layer.weight.requires_grad_(False)
    return [layer, _known_activation(draw)]


@_idiom(*_ROWS, weight=0.5)
def nested(draw):
    return nn.Sequential(nn.Sequential(_linear(draw), nn.ReLU()), nn.Identity())
