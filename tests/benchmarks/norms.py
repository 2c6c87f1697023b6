"""Operator norms of convolutions against numpy's, and against their own limit; path norms against a forward pass."""

import statistics
from functools import partial

import numpy as np
import torch
import torchvision
from timing import Row, medians
from torch import nn

from genlib import norms, scale
from genlib.measures import layers
from genlib.network import Network
from genlib.norms import conv_norm, path_norm

__all__ = ["rows"]

CHANNELS = 64
NEVER = 1e-12  # a tolerance that is not met, so that all passes asked for are spent


def rows() -> list[Row]:
    """All rows of this file."""
    padded = [
        padded_row(stride=stride, side=side, kernels=kernels)
        for stride in (1, 2)
        for side, kernels in ((8, 1), (32, 10))
    ]
    return [circular_row(), *padded, path_row(1 / 1.3), path_row(None, normalized=True), layers_row()]


def layers_row(side: int = 64) -> Row:
    """The table of layers of a ResNet-50 against its norms one by one, what these share counted each time."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50(num_classes=10).to(scale.device()).eval()
    shape = (3, side, side)

    def one_by_one() -> None:
        norms.frobenius_norms(network)
        norms.group_norms(network, 2, 1)
        norms.spectral_norms(network, input_shape=shape)
        norms.operator_frobenius_norms(network, input_shape=shape)

    alone, own = medians(one_by_one, lambda: layers(network, input_shape=shape), repeats=3)
    (once,) = medians(torch.no_grad()(lambda: network(torch.zeros(1, *shape, device=scale.device()))), repeats=3)
    case = f"ResNet-50, {side}×{side}"
    return Row("layers", case, "its norms one by one", alone / own, 1 / 1.2, own / once, alone / once)


def circular_row(side: int = 32) -> Row:
    """Numpy's FFT at every frequency and all singular values there, as the code of Dziugaite et al. (2020) has it."""
    convolution = _convolution(padding_mode="circular")
    kernel = convolution.weight.detach().cpu().numpy()
    image = torch.randn(1, CHANNELS, side, side, device=scale.device())

    def naive() -> float:
        transforms = np.fft.fft2(np.einsum("oihw->hwio", kernel), (side, side), axes=[0, 1])
        return np.linalg.svd(transforms, compute_uv=False).max().item()

    def ours() -> float:
        return conv_norm(convolution, (CHANNELS, side, side)).value.item()

    theirs, own, once = medians(naive, ours, _no_grad(convolution, image), repeats=7)
    frequencies = side * (side // 2 + 1)
    # complex products are four real ones, half of a Gram matrix mirrors the other half
    products = frequencies * (2 * CHANNELS**3 + 2 * 9 * CHANNELS**2)
    limit = products / (9 * CHANNELS**2 * side**2)
    case = f"circular padding, {CHANNELS} channels, {side}×{side}"
    error = abs(ours() / naive() - 1)
    return Row("conv_norm", case, "numpy FFT and full SVD", theirs / own, 5.0, own / once, limit, error, 1e-5)


def padded_row(*, stride: int, side: int, kernels: int, passes: int = 60) -> Row:
    """Zero padding: what 60 passes are off from the dense matrix's SVD, or from Lanczos of 200 steps."""
    shape = (CHANNELS, side, side)
    image = torch.randn(1, *shape, device=scale.device())

    def lanczos(convolution: nn.Conv2d, passes: int) -> float:
        return conv_norm(convolution, shape, rtol=NEVER, max_passes=passes).value.item()

    @torch.no_grad()
    def dense(convolution: nn.Conv2d) -> float:
        pixels = torch.eye(image.numel(), device=image.device).view(-1, *shape)
        return torch.linalg.svdvals(convolution(pixels).flatten(1))[0].item()

    reference, name = (dense, "dense SVD") if side == 8 else (partial(lanczos, passes=400), "200 Lanczos steps")
    drawn = [_convolution(seed, stride=stride, padding_mode="zeros") for seed in range(kernels)]
    (theirs,) = medians(partial(reference, drawn[0]), repeats=1, warm_up=0)
    own, once = medians(partial(lanczos, drawn[0], passes), _no_grad(drawn[0], image))
    errors = [abs(lanczos(convolution, passes) / reference(convolution) - 1) for convolution in drawn]
    error = statistics.median(errors)
    of_many = f"; the median error of {kernels} kernels, the largest {max(errors):.1e}" if kernels > 1 else ""
    case = f"zero padding, stride {stride}, {CHANNELS} channels, {side}×{side}, {passes} passes{of_many}"
    return Row("conv_norm", case, name, theirs / own, None, own / once, float(passes), error, 2e-3)


def path_row(at_least: float | None, *, normalized: bool = False) -> Row:
    """A forward pass of one sample and one pass over the weights are the least that a path norm takes."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for i in range(19):
        out = 64 << i // 7 if normalized else 64
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=not normalized), nn.ReLU()]
        if normalized:
            layers.insert(-1, nn.BatchNorm2d(out))
            layers += [nn.MaxPool2d(2)] if i % 7 == 6 else []
        channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    network = Network.of(nn.Sequential(*layers).to(scale.device()).eval())
    image = torch.randn(1, 3, 32, 32, device=scale.device())
    forward = _no_grad(network.module, image)

    def least() -> None:
        forward()
        for weight in network.params.values():
            weight.square()

    limit, own, once = medians(least, lambda: path_norm(network, input_shape=(3, 32, 32)), forward, repeats=15)
    kind = "with BatchNorm, 64 to 256 channels" if normalized else "64 channels"
    case, baseline = f"20-layer CNN, {kind}, 3×32×32", "one forward and one pass over the weights"
    return Row("path_norm", case, baseline, limit / own, at_least, own / once, limit / once)


def _convolution(seed: int = 0, **geometry) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False, **geometry).to(scale.device())


def _no_grad(module: nn.Module, inputs: torch.Tensor):
    return torch.no_grad()(lambda: module(inputs))
