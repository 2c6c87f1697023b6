"""Data made from a seed: MNIST-1D (Greydanus, Scaling down deep learning, 2020), and the parity of coordinates."""

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from genlib import scale
from genlib.data.draws import classes_in_turn, generator_for, in_chunks, rows, whole_number

__all__ = ["corners", "generate_mnist1d", "mnist1d", "parity"]

TEMPLATES = """
5 6 6.5 6.75 7 7 7 7 6.75 6.5 6 5
5 3 3 3.4 3.8 4.2 4.6 5 5.4 5.8 5 5
5 6 6.5 6.5 6 5.25 4.75 4 3.5 3.5 4 5
5 6 6.5 6.5 6 5 5 6 6.5 6.5 6 5
5 4.4 3.8 3.2 2.6 2.6 5 5 5 5 5 5
5 3 3 3 3 5 6 6.5 6.5 6 4.5 5
5 4 3.5 3.25 3 3 3 3 3.25 3.5 4 5
5 7 7 6.6 6.2 5.8 5.4 5 4.6 4.2 5 5
5 4 3.5 3.5 4 5 5 4 3.5 3.5 4 5
5 4 3.5 3.5 4 5 5 5 5 4.7 4.3 5
"""
# Of a million samples. The published set is standardised by its own sample, which would make two draws differ.
MEAN, DEVIATION = -0.00603, 0.15470


def generate_mnist1d(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs [samples, 40] and labels; fewer samples are the beginning of more."""
    return in_chunks(_chunk, samples, generator)


def _chunk(samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(samples, 1, generator=generator)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (samples, 1), generator=generator)

    def normal(deviation: float) -> Tensor:
        return deviation * torch.randn(samples, 72, generator=generator)

    labels = classes_in_turn(samples, generator)
    signals = _signals(
        labels, whole(36, 60), whole(0, 47), uniform(0.8, 1.2), uniform(-0.375, 0.375), normal(0.25), normal(0.02)
    )
    return (signals - MEAN) / DEVIATION, labels


def _signals(
    labels: Tensor, padding: Tensor, shift: Tensor, gain: Tensor, slope: Tensor, background: Tensor, noise: Tensor
) -> Tensor:
    """The templates of these labels stretched and rolled, times the gain, in noise, less a slope, at 40 points.

    Where the padding is, the smoothed background stands in place of the digit. All but `labels` have a column or 72.
    """
    templates, smoothing, resampling = _constants()
    # 72 points stretched over the 12 + padding points of the padded template, rolled to the right by shift
    position = (torch.arange(72) - shift) % 72 * (11 + padding) / 71
    below = position.long().clamp(max=12)
    left, right = (templates[labels].gather(1, index) for index in (below, below + 1))
    digit = gain * torch.lerp(left, right, position - below)
    signal = torch.where(position < 12, digit, background @ smoothing) + noise
    return signal @ resampling - slope * torch.linspace(-0.5, 0.5, 40)


@cache
def _constants() -> tuple[Tensor, Tensor, Tensor]:
    from scipy.ndimage import gaussian_filter1d  # here, for scipy takes longer to import than all of genlib

    templates = np.loadtxt(TEMPLATES.strip().splitlines())
    templates -= templates.mean(axis=1, keepdims=True)
    templates /= templates.std(axis=1, keepdims=True)
    templates = np.pad((templates - templates[:, :1]) / 6, ((0, 0), (0, 2)))
    smoothing = gaussian_filter1d(np.eye(72), sigma=2, axis=1)
    resampling = np.stack([np.interp(np.linspace(0, 71, 40), np.arange(72), unit) for unit in np.eye(72)])
    return tuple(torch.from_numpy(constant).float() for constant in (templates, smoothing, resampling))


def mnist1d(
    samples: int, *, seed: int, device: torch.device | str | None = None
) -> tuple[Float[Tensor, "samples 40"], Int64[Tensor, " samples"]]:
    """MNIST-1D: ten templates of 12 points, each padded, stretched, scaled, rolled, sheared and put in noise.

    Inputs [samples, 40], standardised by constants, and labels, with equally many samples a class up to rounding.
    Drawn on the CPU, so every device gets the same; of one seed, fewer samples are the beginning of more.
    100,000 samples take about a second. Source: Greydanus, Scaling down deep learning, 2020.
    """
    inputs, labels = generate_mnist1d(rows("samples", samples), generator_for(seed, "mnist1d train"))
    device = scale.device() if device is None else device
    return inputs.to(device), labels.to(device)


def parity(
    samples: int, *, dimension: int, relevant: int = 2, seed: int
) -> tuple[Float[Tensor, "samples dimension"], Int64[Tensor, " samples"]]:
    """Uniform inputs in {-1, 1}^dimension, with label 1 where the product of the `relevant` first coordinates is 1.

    The other labels are 0. Drawn on the CPU, so every device gets the same; the tensors are on the GPU if there is one.
    With one seed fewer samples are the beginning of more: `load("parity", …)` gives a test set that is independent.
    """
    dimension = whole_number("dimension", dimension)
    if whole_number("relevant", relevant) > dimension:
        raise ValueError(f"relevant is {relevant}; of {dimension} coordinates at most {dimension} can decide the label")
    inputs, labels = corners(rows("samples", samples), dimension, relevant, generator_for(seed, "parity"))
    return inputs.to(scale.device()), labels.to(scale.device())


def corners(samples: int, dimension: int, relevant: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    inputs = 2 * torch.randint(2, (samples, dimension), generator=generator) - 1
    return inputs.float(), (1 + inputs[:, :relevant].prod(dim=1)) // 2
