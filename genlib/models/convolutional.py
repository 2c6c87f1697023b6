"""Convolutional networks of the papers."""

import math

import torch
from torch import Tensor, nn

from genlib.models.initialization import drawn_from, initialized, require_at_least, require_share

__all__ = ["inception_v3", "network_in_network", "small_alexnet", "small_inception", "vgg"]


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

    require_at_least(1, classes=classes)
    _image(input_shape, smallest=1)
    with drawn_from(seed):
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
        return initialized(network, "he")


def small_alexnet(classes: int = 10, *, input_shape: tuple[int, ...] = (3, 28, 28), seed: int = 0) -> nn.Sequential:
    """The small Alexnet of Zhang et al. (2017): 1,387,786 parameters on 28×28×3.

    Twice 5×5 convolution (64), ReLU, 3×3 max-pool of stride 2, local response normalization; then dense layers of
    384, 192 and `classes`. Their table doesn't give the normalization's constants; here size 9, alpha 0.001, beta 0.75.
    Weights and biases are torch's default.
    """
    require_at_least(1, classes=classes)
    channels, height, width = _image(input_shape, smallest=1)
    with drawn_from(seed):
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
    width: int = 64,
    batch_norm: bool = True,
    dropout: float = 0.5,
    seed: int = 0,
) -> nn.Sequential:
    """The VGG of Neyshabur et al. (2017): pairs of 3×3 convolutions with 64, 128, 256, 512 channels, 512 dense units.

    `width` is the number of channels of the first pair, to which the others are in proportion.
    BatchNorm stands between each weight layer and its ReLU, as in the paper; the code released since keeps only the one
    after the 512 dense units. As in that code, max-pool (2×2, after the last pair 4×4) and dropout end each pair, and
    dropout follows the dense units. `batch_norm=False` leaves out all normalization. Weights are He-normal.
    """
    require_at_least(1, classes=classes, width=width)
    require_share("dropout", dropout)
    channels, *sides = _image(input_shape, smallest=32)
    units = 8 * width
    drop = [nn.Dropout(dropout)] if dropout else []
    with drawn_from(seed):
        layers: list[nn.Module] = []
        for out, pool in ((width, 2), (2 * width, 2), (4 * width, 2), (units, 4)):
            for fan_in in (channels, out):
                norm = [nn.BatchNorm2d(out)] if batch_norm else []
                layers += [nn.Conv2d(fan_in, out, 3, padding=1), *norm, nn.ReLU()]
            layers += [nn.MaxPool2d(pool), *drop]
            channels = out
        norm = [nn.BatchNorm1d(units)] if batch_norm else []
        features = units * math.prod(side // 32 for side in sides)
        layers += [nn.Flatten(), nn.Linear(features, units), *norm, nn.ReLU(), *drop]
        return initialized(nn.Sequential(*layers, nn.Linear(units, classes)), "he")


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
    require_at_least(1, classes=classes, width=width, depth=depth)
    require_share("dropout", dropout)
    channels, *sides = _image(input_shape, smallest=1)
    pixels = min(sides)
    with drawn_from(seed):
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

    require_at_least(1, classes=classes)
    require_share("dropout", dropout)
    if _image(input_shape, smallest=75)[0] != 3:
        raise ValueError(f"input_shape is {input_shape}; Inception V3 takes 3 channels")
    with drawn_from(seed):
        return models.inception_v3(
            weights=None, num_classes=classes, aux_logits=False, init_weights=True, dropout=dropout
        )


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


def _image(shape: tuple[int, ...], *, smallest: int) -> tuple[int, ...]:
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < smallest:
        raise ValueError(
            f"input_shape is {shape}; it must be (channels, height, width), at least {smallest} pixels a side"
        )
    return shape
