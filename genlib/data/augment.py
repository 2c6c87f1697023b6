"""Random changes of a training batch, for `fit`'s argument `augment`: crops, flips and shifts, drawn on the device."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["chain", "random_crops", "random_flips", "random_rolls"]


def random_crops(padding: int) -> Callable[[Tensor], Tensor]:
    """Pad images [samples, channels, height, width] with zeros, and cut each to its size again at a random place."""

    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding is {padding!r}; give a whole number of pixels")

    def augment(images: Tensor) -> Tensor:
        _require_axes("random_crops", images, "images [samples, channels, height, width]", 4)
        samples, _, height, width = images.shape
        padded = F.pad(images, (padding,) * 4)
        top, left = torch.randint(2 * padding + 1, (2, samples, 1), device=images.device)
        rows = (top + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (left + torch.arange(width, device=images.device))[:, None, None, :]
        sample = torch.arange(samples, device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return padded[sample, channel, rows, columns]

    return augment


def random_flips() -> Callable[[Tensor], Tensor]:
    """Mirror each image, left to right, with probability ½."""

    def augment(images: Tensor) -> Tensor:
        flip = torch.rand(len(images), *[1] * (images.dim() - 1), device=images.device) < 0.5
        return torch.where(flip, images.flip(-1), images)

    return augment


def random_rolls(most: int) -> Callable[[Tensor], Tensor]:
    """Shift each signal [samples, length] by up to `most` places either way, its ends joined."""

    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise ValueError(f"most is {most!r}; give a whole number of places")

    def augment(signals: Tensor) -> Tensor:
        _require_axes("random_rolls", signals, "signals [samples, length]", 2)
        samples, length = signals.shape
        shift = torch.randint(-most, most + 1, (samples, 1), device=signals.device)
        return signals.gather(1, (torch.arange(length, device=signals.device) - shift) % length)

    return augment


def chain(*augmentations: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """One augmentation after the other."""

    def augment(batch: Tensor) -> Tensor:
        for each in augmentations:
            batch = each(batch)
        return batch

    return augment


def _require_axes(what: str, batch: Tensor, wanted: str, axes: int) -> None:
    if batch.dim() != axes:
        raise ValueError(f"{what} takes {wanted}, but the batch has the shape {tuple(batch.shape)}")
