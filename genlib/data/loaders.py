"""Data sets by name."""

import difflib
import math
import os
import warnings

import torch
from torch import Tensor

from genlib import scale
from genlib.data.dataset import Dataset
from genlib.data.draws import at_most, generator_for, require_seed, rows, whole_number
from genlib.data.generated import corners, generate_mnist1d
from genlib.data.streams import StreamedImages
from genlib.data.strokes import generate_drawn_digits

__all__ = ["load"]

IMAGENET_PIXELS = 299  # a side, as Inception V3 takes them
EASY_PARITY = 5  # samples a dimension: at 3.3 a flat network with biases fails, at 6.7 it does not


def load(
    name: str,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    root: str | os.PathLike | None = None,
    dimension: int | None = None,
) -> Dataset:
    """The data set `name` with `train` training and `test` test samples (None: all), on `device` (None: the GPU).

    digits          1797 × 64 in [0, 1]: 500 (or `test`) for the test, the others for training
    drawn_digits    generated from `seed` in the shape of digits: 1297 and 500, or as many as are wanted. Ten strokes,
                    shifted, scaled, turned, sheared and bent, of random width and intensity, in noise
    mnist1d         generated from `seed`: 4000 × 40 and 1000, or as many as are wanted; see `mnist1d`
    mnist, fashion_mnist, cifar10, cifar100, svhn    images [channels, height, width], each channel standardised by its
                    mean and deviation over the whole training set. Files of the published content, packed or not, lie
                    in `root` (None: ~/.cache/genlib/data), plain or as torchvision lays them, or where Debian has them;
                    else they are fetched, and none is overwritten
    parity          generated from `seed`: 100 and 5000 corners of {-1, 1}^`dimension` (30); label 1 where x₁x₂ = 1
    imagenet        `root`/train/<class>/* and `root`/val/<class>/*, unverified, streamed: see `Dataset.minibatches`
    `seed` draws which samples are taken, on the CPU, so that every device gets the same; with one seed a smaller
    training set is the beginning of a larger one. In a dry run every set is a few rows, the files' ones made up.
    An unknown name, more samples than there are, a file that is damaged, another's or unreadable: ValueError. A missing
    file: FileNotFoundError. So many samples of a parity that flat networks generalize too: UserWarning.
    GENLIB_DATA=drawn_digits has `digits` mean `drawn_digits`.
    """
    if name == "digits":
        name = scale.digits()
    if name not in _LOADERS:
        near = difflib.get_close_matches(str(name).lower(), _LOADERS, n=3, cutoff=0.4) or _LOADERS
        raise ValueError(f"name is {name!r}, which is no data set here; did you mean {' or '.join(near)}?")
    if root is not None and name in ("digits", "drawn_digits", "mnist1d", "parity"):
        raise ValueError(f"root is {str(root)!r}, but {name} needs no files; leave root out")
    if dimension is not None and name != "parity":
        raise ValueError(f"dimension is {dimension}, but {name} has its own; leave dimension out")
    require_seed(seed)
    options = {} if dimension is None else {"dimension": dimension}
    dataset = _LOADERS[name](name, train, test, seed, root, **options)
    return dataset.to(scale.device() if device is None else device)


def _load_digits(name, train, test, seed, root) -> Dataset:
    from sklearn.datasets import load_digits  # here, for it takes longer to import than all of genlib

    images, labels = load_digits(return_X_y=True)
    total, dry = len(labels), scale.dry_run()
    most = scale.DRY_ROWS["test"] if dry else total - 1
    test = at_most("test", 500 if test is None else test, most, f"digits has {total} samples, and one must train")
    left = scale.DRY_ROWS["train"] if dry else total - test
    train = at_most("train", train, left, f"digits has {total} samples, {left} beside the {test} for the test")
    order = torch.randperm(total, generator=generator_for(seed, name))[: test + train]
    inputs, labels = torch.from_numpy(images / 16).float()[order], torch.from_numpy(labels).long()[order]
    split = (f"split drawn (seed {seed})",)
    return Dataset(inputs[test:], labels[test:], inputs[:test], labels[:test], TEN_DIGITS, name, split)


def _load_generated(name, train, test, seed, root) -> Dataset:
    generate, *default = _GENERATED[name]
    drawn = []
    for split, wanted, otherwise in zip(("train", "test"), (train, test), default, strict=True):
        number = rows(split, otherwise if wanted is None else wanted, split)
        drawn += generate(number, generator_for(seed, f"{name} {split}"))
    return Dataset(*drawn, TEN_DIGITS, name, (f"generated (seed {seed})",))


def _load_parity(name, train, test, seed, root, dimension=30) -> Dataset:
    dimension, drawn = whole_number("dimension", dimension), []
    if dimension < 2:
        raise ValueError(f"dimension is {dimension}; the product of two coordinates needs at least 2")
    for split, wanted in (("train", 100 if train is None else train), ("test", 5000 if test is None else test)):
        drawn += corners(rows(split, wanted, split), dimension, 2, generator_for(seed, f"{name} {split}"))
    if len(drawn[0]) > EASY_PARITY * dimension:
        warnings.warn(
            f"dimension is {dimension} for {len(drawn[0])} samples: from so many (80 in 12 dimensions) flat networks "
            "with biases, as 1-SAM finds them, generalize too and are no counterexample; take a dimension of at least "
            f"{math.ceil(len(drawn[0]) / EASY_PARITY)}",
            stacklevel=3,
        )
    return Dataset(*drawn, ("-1", "1"), name, (f"generated (seed {seed})",))


def _load_images(name, train, test, seed, root) -> Dataset:
    from genlib.data import files  # here, for it imports torchvision

    images, labels, test_images, test_labels, classes = files.read(name, root)
    mean, deviation = _channel_moments(images)

    def standardised(images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(mean).div_(deviation)

    images, labels = _drawn(name, "train", images, labels, train, seed)
    test_images, test_labels = _drawn(name, "test", test_images, test_labels, test, seed)
    history = (f"samples drawn (seed {seed})", "channels standardised")
    return Dataset(standardised(images), labels, standardised(test_images), test_labels, classes, name, history)


def _load_folders(name, train, test, seed, root) -> Dataset:
    from genlib.data import files

    paths, labels, test_paths, test_labels, classes = files.read_folders(root)
    size = scale.DRY_PIXELS if scale.dry_run() else IMAGENET_PIXELS
    images, labels = _drawn(name, "train", StreamedImages(paths, size), labels, train, seed)
    test_images, test_labels = _drawn(name, "test", StreamedImages(test_paths, size), test_labels, test, seed)
    unverified = "files unverified, for no sums of them are published"
    history = (f"samples drawn (seed {seed})", "channels standardised", unverified)
    return Dataset(images, labels, test_images, test_labels, classes, name, history)


TEN_DIGITS = tuple(str(digit) for digit in range(10))
_GENERATED = {"drawn_digits": (generate_drawn_digits, 1297, 500), "mnist1d": (generate_mnist1d, 4000, 1000)}
_LOADERS = {
    "digits": _load_digits,
    **dict.fromkeys(_GENERATED, _load_generated),
    "parity": _load_parity,
    **dict.fromkeys(("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"), _load_images),
    "imagenet": _load_folders,
}


def _drawn(name, split, images, labels, wanted, seed):
    wanted = at_most(split, wanted, len(labels), f"{name} has {len(labels)} samples for {split}")
    chosen = torch.randperm(len(labels), generator=generator_for(seed, f"{name} {split}"))[:wanted]
    return images[chosen], labels[chosen]


def _channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    # From the counts of the 256 levels: exact, and without a copy in floating point.
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    levels, weights = torch.arange(256).double() / 255, counts / counts.sum(1, keepdim=True)
    mean = weights @ levels
    deviation = (weights @ levels**2 - mean**2).sqrt()
    return mean.float().reshape(-1, 1, 1), deviation.float().reshape(-1, 1, 1)
