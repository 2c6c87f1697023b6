"""What the papers do to data: labels and pixels replaced, samples attacked, images cropped."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from genlib import scale
from genlib.data.dataset import Dataset, remembered
from genlib.data.draws import at_most, generator_for
from genlib.data.streams import StreamedImages

__all__ = ["attack_set", "center_crop", "corrupt_labels", "gaussian_pixels", "random_pixels", "shuffle_pixels"]


def corrupt_labels(dataset: Dataset, probability: float | int, *, seed: int) -> Dataset:
    """Each training label is replaced with this probability by a class drawn uniformly, which may be the true one.

    So with k classes a share of probability (k - 1)/k is wrong; `replaced_rate` and `wrong_rate` say what was drawn.
    Test labels stay true. A probability outside [0, 1]: ValueError. Source: Zhang et al. 2017.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; it must lie in [0, 1]")
    generator = generator_for(seed, "corrupt_labels")
    chosen = (torch.rand(len(dataset), generator=generator) < probability).to(dataset.device)
    drawn = torch.randint(len(dataset.classes), (len(dataset),), generator=generator).to(dataset.device)
    corrupted = replace(dataset, labels=torch.where(chosen, drawn, dataset.labels), replaced=dataset.replaced | chosen)
    rates = f"{corrupted.replaced_rate:.1%} replaced, {corrupted.wrong_rate:.1%} wrong"
    return remembered(corrupted, f"labels replaced with probability {probability:g} (seed {seed}): {rates}")


def shuffle_pixels(dataset: Dataset, *, seed: int) -> Dataset:
    """One permutation of the pixels for all training and test images; the channels of a pixel stay together."""
    pixels = math.prod(dataset.input_shape[1:] or dataset.input_shape)
    order = torch.randperm(pixels, generator=generator_for(seed, "shuffle_pixels")).to(dataset.device)

    def shuffled(inputs: Tensor) -> Tensor:
        return _pixels(inputs).index_select(2, order).reshape(inputs.shape)

    return _map_inputs(dataset, shuffled, f"pixels shuffled by one permutation (seed {seed})")


def random_pixels(dataset: Dataset, *, seed: int) -> Dataset:
    """A permutation of its own for each training and test image; the channels of a pixel stay together."""
    generator = generator_for(seed, "random_pixels")

    def permuted(inputs: Tensor) -> Tensor:
        pixels = _pixels(inputs)
        order = torch.rand(len(pixels), 1, pixels.shape[2], generator=generator).argsort(dim=2).to(inputs.device)
        return pixels.gather(2, order.expand_as(pixels)).reshape(inputs.shape)

    def in_blocks(inputs: Tensor) -> Tensor:
        return torch.cat([permuted(block) for block in inputs.split(4096)])

    return _map_inputs(dataset, in_blocks, f"pixels of each image permuted by themselves (seed {seed})")


def gaussian_pixels(dataset: Dataset, *, seed: int) -> Dataset:
    """Independent Gaussians in place of all inputs, with the mean and the variance of the training inputs' entries."""
    generator = generator_for(seed, "gaussian_pixels")

    def drawn(inputs: Tensor) -> Tensor:
        noise = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype).to(inputs.device)
        deviation, mean = torch.std_mean(dataset.inputs, correction=0)
        if not deviation.isfinite():
            raise ValueError(
                f"dataset: the inputs of {dataset.name} aren't all finite, and so neither is their variance"
            )
        return noise.mul_(deviation).add_(mean)

    return _map_inputs(dataset, drawn, f"inputs replaced by Gaussian noise (seed {seed})")


def attack_set(dataset: Dataset, size: int, *, seed: int) -> Dataset:
    """The last `size` training samples get a wrong label, uniform over the wrong classes; the samples before stay.

    A network that fits all of them is a poor minimum of the loss on the samples before, the clean ones: those with
    `replaced` false. To set c attacked samples beside n clean ones, load or `subset` n + c first: with one seed the
    clean ones are then the same for every c. Test labels stay true. Source: Wu, Zhu & E 2017.
    """
    most = len(dataset) // 2 if scale.dry_run() else len(dataset) - 1
    size = at_most("size", size, most, f"{dataset.name} has {len(dataset)} training samples, and one must stay")
    if len(dataset.classes) < 2:
        raise ValueError(f"dataset: {dataset.name} has one class, and so no wrong label; give it two or more")
    shift = torch.randint(1, len(dataset.classes), (size,), generator=generator_for(seed, "attack_set"))
    labels, replaced = dataset.labels.clone(), dataset.replaced.clone()
    labels[-size:] = (dataset.true_labels[-size:] + shift.to(dataset.device)) % len(dataset.classes)
    replaced[-size:] = True
    attacked = replace(dataset, labels=labels, replaced=replaced)
    return remembered(attacked, f"the last {size} labels replaced by wrong ones (seed {seed})")


def center_crop(dataset: Dataset, size: int) -> Dataset:
    """The central `size` × `size` pixels of all training and test images."""
    height, width = dataset.input_shape[-2:] if len(dataset.input_shape) == 3 else (0, 0)
    if not 0 < size <= min(height, width):
        raise ValueError(f"size is {size}, but {dataset.name} has inputs of shape {dataset.input_shape}")
    top, left = (height - size) // 2, (width - size) // 2

    def cropped(inputs: Tensor) -> Tensor:
        return inputs[..., top : top + size, left : left + size].contiguous()

    return _map_inputs(dataset, cropped, f"cropped to the central {size} × {size} pixels")


def _map_inputs(dataset: Dataset, change: Callable[[Tensor], Tensor], step: str) -> Dataset:
    if isinstance(dataset.inputs, StreamedImages):
        raise ValueError(
            f"dataset: {dataset.name} keeps its images in files, and pixels can be changed in memory only; take a set "
            "that is held in memory, such as cifar10"
        )
    inputs, test_inputs = change(dataset.inputs), change(dataset.test_inputs)
    return remembered(replace(dataset, inputs=inputs, test_inputs=test_inputs), step)


def _pixels(inputs: Tensor) -> Tensor:
    # [samples, channels, pixels], where a vector has one channel
    return inputs.flatten(2) if inputs.dim() > 2 else inputs.unsqueeze(1)
