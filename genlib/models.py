"""The papers' architectures, each with its published number of parameters, drawn from a seed."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib._by_hand import whole
from genlib._flattest import (
    flattest_generalizing_network,
    flattest_memorizing_network,
    interpolating_network_without_bias,
    smallest_trace,
)
from genlib._memorizing import MemorizingNetwork, deep_memorizing_network, memorizing_network
from genlib._normalizations import SimplifiedBatchNorm, SimplifiedLayerNorm

__all__ = [
    "MemorizingNetwork",
    "SimplifiedBatchNorm",
    "SimplifiedLayerNorm",
    "build",
    "deep_memorizing_network",
    "flattest_generalizing_network",
    "flattest_memorizing_network",
    "inception_v3",
    "interpolating_network_without_bias",
    "memorizing_network",
    "mlp",
    "network_in_network",
    "small_alexnet",
    "small_inception",
    "smallest_trace",
    "two_layer",
    "vgg",
]

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}
NORMALIZATIONS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def mlp(
    inputs: int,
    classes: int,
    *,
    width: int = 512,
    depth: int = 1,
    activation: str = "relu",
    normalization: str | None = None,
    dropout: float = 0.0,
    initialization: str = "default",
    init_scale: float = 1.0,
    bias: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """A dense network with `depth` hidden layers of `width` units; depth 0 is a linear model.

    A hidden layer is Linear, normalization (None, `batch`, `layer`), activation, dropout; images are flattened first.
    `activation`: relu, relu6, hardtanh, hardsigmoid, tanh, softplus. `initialization`: `default`, which is torch's,
    weights and biases uniform in ±1/√fan_in; `xavier` and `he`, normal with zero biases. `init_scale` multiplies
    the weights, not the biases. Inputs [samples, …] with `inputs` numbers a sample; logits [samples, classes].
    """
    _at_least(1, inputs=inputs, classes=classes, width=width)
    _at_least(0, depth=depth)
    _one_of("activation", activation, ACTIVATIONS)
    if normalization is not None:
        _one_of("normalization", normalization, NORMALIZATIONS)
    _share("dropout", dropout)
    _positive(init_scale=init_scale)
    with _drawn_from(seed):
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in in [inputs, *[width] * (depth - 1)][:depth]:
            layers.append(nn.Linear(fan_in, width, bias=bias))
            if normalization is not None:
                layers.append(NORMALIZATIONS[normalization](width))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(width if depth else inputs, classes, bias=bias))
        return _initialized(nn.Sequential(*layers), initialization, init_scale)


def two_layer(
    inputs: int,
    *,
    width: int = 500,
    depth: int = 1,
    bias: bool = True,
    normalization: str | None = None,
    activation: str = "relu",
    outputs: int = 1,
    epsilon: float = 0.01,
    training_inputs: Float[Tensor, "n d"] | None = None,
    first_layer_scale: float = 1.0,
    seed: int = 0,
) -> nn.Sequential:
    """The networks of Wen, Li & Ma (2023), without a bias at the output: W₂ relu(W₁x + b₁), or W₂ relu(W₁x).

    `normalization` of a = relu(W₁x + b₁), and then W₂: `layer`, a / max(‖a‖₂, ε) with `epsilon`; `batch`,
    γ_j a_j(x) / ((1/n) Σ_i a_j(x_i)²)^½ over `training_inputs` x_i, which it keeps. `depth` 2 has three layers, with
    biases in the first alone. `activation` as in `mlp`. `first_layer_scale` multiplies W₁ and b₁: 1/100 where the paper
    normalizes layers. Weights and biases are torch's default, for the paper names no law. With one output, logits
    [samples, 1], label 1 is where they are positive and 0 where they are negative.
    A Sequential: Linear, activation (together the `hidden` of SimplifiedBatchNorm), normalization, Linear.
    Normalization of more than one hidden layer, training inputs missing or of another size: ValueError.
    """
    _at_least(1, inputs=inputs, width=width, depth=depth, outputs=outputs)
    _one_of("activation", activation, ACTIVATIONS)
    _positive(epsilon=epsilon, first_layer_scale=first_layer_scale)
    if normalization is not None:
        _one_of("normalization", normalization, ("batch", "layer"))
        if depth > 1:
            raise ValueError(f"depth is {depth} with normalization {normalization!r}; it is defined for depth 1")
    if (normalization == "batch") != (training_inputs is not None):
        raise ValueError("training_inputs belong to normalization 'batch'; give both or neither")
    with _drawn_from(seed):
        layers: list[nn.Module] = []
        for fan_in in [inputs, *[width] * (depth - 1)]:
            layers += [nn.Linear(fan_in, width, bias=bias and not layers), ACTIVATIONS[activation]()]
        with torch.no_grad():
            for parameter in layers[0].parameters():
                parameter.mul_(first_layer_scale)
        if normalization == "layer":
            layers.append(SimplifiedLayerNorm(epsilon))
        if normalization == "batch":
            if training_inputs.shape[1] != inputs:
                raise ValueError(f"training_inputs have {training_inputs.shape[1]} numbers each; inputs is {inputs}")
            kept = training_inputs.detach().to("cpu", torch.get_default_dtype(), copy=True)
            layers = [SimplifiedBatchNorm(nn.Sequential(*layers), width, kept)]
        return nn.Sequential(*layers, nn.Linear(width, outputs, bias=False))


def small_inception(
    classes: int = 10, *, input_shape: tuple[int, ...] = (3, 28, 28), batch_norm: bool = True, seed: int = 0
) -> nn.Sequential:
    """The small Inception of Zhang et al. (2017): 1,649,402 parameters on 28×28×3, with BatchNorm or without.

    A unit is a convolution, BatchNorm and ReLU. Their count has one offset a channel, so here BatchNorm has a trained
    shift and a scale fixed at one (a buffer), and the convolution before it no bias. Without BatchNorm the
    convolutions have biases: the same count. Weights are He-normal, offsets zero. The head averages over all pixels.
    """

    def unit(fan_in: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(fan_in, out, kernel, stride, padding=kernel // 2, bias=not batch_norm)
        return nn.Sequential(conv, *([_shift_only(nn.BatchNorm2d(out))] if batch_norm else []), nn.ReLU())

    def inception(fan_in: int, ones: int, threes: int) -> nn.Module:
        return _Side(unit(fan_in, ones, 1), unit(fan_in, threes, 3))

    def downsample(fan_in: int, out: int) -> nn.Module:
        return _Side(unit(fan_in, out, 3, stride=2), nn.MaxPool2d(3, 2, padding=1))

    _at_least(1, classes=classes)
    _image(input_shape, smallest=1)
    with _drawn_from(seed):
        network = nn.Sequential(
            unit(input_shape[0], 96, 3),
            inception(96, 32, 32),
            inception(64, 32, 48),
            downsample(80, 80),
            inception(160, 112, 48),
            inception(160, 96, 64),
            inception(160, 80, 80),
            inception(160, 48, 96),
            downsample(144, 96),
            inception(240, 176, 160),
            inception(336, 176, 160),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(336, classes),
        )
        return _initialized(network, "he")


def small_alexnet(classes: int = 10, *, input_shape: tuple[int, ...] = (3, 28, 28), seed: int = 0) -> nn.Sequential:
    """The small Alexnet of Zhang et al. (2017): 1,387,786 parameters on 28×28×3.

    Twice 5×5 convolution (64), ReLU, 3×3 max-pool of stride 2, local response normalization; then dense layers of
    384, 192 and `classes`. Their table doesn't give the normalization's constants; here size 9, alpha 0.001, beta 0.75.
    Weights and biases are torch's default.
    """
    _at_least(1, classes=classes)
    channels, height, width = _image(input_shape, smallest=1)
    with _drawn_from(seed):
        stages = []
        for fan_in in (channels, 64):
            stages += [nn.Conv2d(fan_in, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
            stages += [nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1.0)]
        features = 64 * math.ceil(height / 4) * math.ceil(width / 4)
        dense = [nn.Linear(features, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, classes)]
        return nn.Sequential(*stages, nn.Flatten(), *dense)


def vgg(
    classes: int = 10,
    *,
    input_shape: tuple[int, ...] = (3, 32, 32),
    batch_norm: bool = True,
    dropout: float = 0.5,
    seed: int = 0,
) -> nn.Sequential:
    """The VGG of Neyshabur et al. (2017): pairs of 3×3 convolutions with 64, 128, 256, 512 channels, 512 dense units.

    BatchNorm stands between each weight layer and its ReLU, as in the paper; the code released since keeps only the one
    after the 512 dense units. As in that code, max-pool (2×2, after the last pair 4×4) and dropout end each pair, and
    dropout follows the dense units. `batch_norm=False` leaves out all normalization. Weights are He-normal.
    """
    _at_least(1, classes=classes)
    _share("dropout", dropout)
    channels, height, width = _image(input_shape, smallest=32)
    drop = [nn.Dropout(dropout)] if dropout else []
    with _drawn_from(seed):
        layers: list[nn.Module] = []
        for out, pool in ((64, 2), (128, 2), (256, 2), (512, 4)):
            for fan_in in (channels, out):
                norm = [nn.BatchNorm2d(out)] if batch_norm else []
                layers += [nn.Conv2d(fan_in, out, 3, padding=1), *norm, nn.ReLU()]
            layers += [nn.MaxPool2d(pool), *drop]
            channels = out
        norm = [nn.BatchNorm1d(512)] if batch_norm else []
        layers += [nn.Flatten(), nn.Linear(512 * (height // 32) * (width // 32), 512), *norm, nn.ReLU(), *drop]
        return _initialized(nn.Sequential(*layers, nn.Linear(512, classes)), "he")


def network_in_network(
    classes: int = 10,
    *,
    width: int,
    depth: int,
    input_shape: tuple[int, ...] = (3, 32, 32),
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Sequential:
    """Blocks of convolutions 3×3, 1×1 and 1×1 with `width` channels, the first of stride 2, as Dziugaite et al. (2020).

    BatchNorm and ReLU follow each convolution, also the last one, 1×1 to the classes, whose outputs are averaged over
    the image. `dropout` ends each of the `depth` blocks. Once the image is 2 pixels wide or less it shrinks no further.
    """
    _at_least(1, classes=classes, width=width, depth=depth)
    _share("dropout", dropout)
    channels, *sides = _image(input_shape, smallest=1)
    pixels = min(sides)
    with _drawn_from(seed):
        layers: list[nn.Module] = []
        for _ in range(depth):
            stride = 2 if pixels > 2 else 1
            pixels = (pixels + stride - 1) // stride
            for fan_in, kernel, step in ((channels, 3, stride), (width, 1, 1), (width, 1, 1)):
                layers += [nn.Conv2d(fan_in, width, kernel, step, kernel // 2), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            channels = width
        head = [nn.Conv2d(width, classes, 1), nn.BatchNorm2d(classes), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *head)


def inception_v3(
    classes: int = 1000, *, input_shape: tuple[int, ...] = (3, 299, 299), dropout: float = 0.5, seed: int = 0
) -> nn.Module:
    """torchvision's Inception V3 (Szegedy et al. 2016), untrained, without its auxiliary head: logits alone."""
    from torchvision import models  # not above: it takes a second to import

    _at_least(1, classes=classes)
    _share("dropout", dropout)
    if _image(input_shape, smallest=75)[0] != 3:
        raise ValueError(f"input_shape is {input_shape}; Inception V3 takes 3 channels")
    with _drawn_from(seed):
        return models.inception_v3(
            weights=None, num_classes=classes, aux_logits=False, init_weights=True, dropout=dropout
        )


def build(name: str, input_shape: tuple[int, ...], classes: int, **options) -> nn.Module:
    """The network that a table of settings names; `input_shape` is of one sample, options go to its function.

    Names: `mlp 3x512` (hidden layers, width), `small_inception`, `small_alexnet`, `vgg`, `inception_v3`.
    """
    if match := re.fullmatch(r"mlp (\d+)[x×](\d+)", name):
        return mlp(math.prod(input_shape), classes, depth=int(match[1]), width=int(match[2]), **options)
    networks = {f.__name__: f for f in (small_inception, small_alexnet, vgg, inception_v3)}
    _one_of("name", name, [*networks, "mlp 1x512"])
    return networks[name](classes, input_shape=input_shape, **options)


class _Side(nn.Module):
    """Branches side by side, their channels concatenated."""

    def __init__(self, left: nn.Module, right: nn.Module):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


def _shift_only(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    # A buffer, not a frozen parameter: optimizers, norms and counts that walk the parameters must not meet it.
    scale = norm.weight.detach()
    del norm.weight
    norm.register_buffer("weight", scale)
    return norm


@contextmanager
def _drawn_from(seed) -> Iterator[None]:
    """Module constructors draw from the global state: lend them one of this seed, and put the old one back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(whole(seed))  # torch.manual_seed would reseed the GPUs as well
        yield


def _initialized(network: nn.Sequential, law: str, scale: float = 1.0) -> nn.Sequential:
    _one_of("initialization", law, ("default", "xavier", "he"))
    for layer in network.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if law == "xavier":
            nn.init.xavier_normal_(layer.weight)
        elif law == "he":
            nn.init.kaiming_normal_(layer.weight)
        if law != "default" and layer.bias is not None:
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight.mul_(scale)
    return network


def _at_least(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name} is {size}; it must be at least {least}")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; it must be a share, at least 0 and below 1")


def _one_of(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(name, known, cutoff=0.4) or known
        raise ValueError(f"{what} {name!r} is unknown; nearest: {', '.join(nearest)}")


def _image(shape: tuple[int, ...], *, smallest: int) -> tuple[int, ...]:
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < smallest:
        raise ValueError(
            f"input_shape is {shape}; it must be (channels, height, width), at least {smallest} pixels a side"
        )
    return shape
