"""Small data sets of noise, and what is known of the files of a dry run."""

import numpy as np
import torch

from genlib import scale
from genlib.data import Dataset

TRAIN, TEST = scale.DRY_ROWS["train"], scale.DRY_ROWS["test"]  # the files of this test are those of a dry run
IMAGE_SETS = ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"]
SIDES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28)}


def images(samples=60, channels=3, side=4, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, channels, side, side, generator=generator)
    labels = torch.arange(samples) % classes
    names = tuple(f"class {i}" for i in range(classes))
    return Dataset(inputs, labels, inputs[:20] + 1, labels[:20], names, "noise")


def rows(inputs):
    """The rows in an order that depends on nothing but their values."""
    return np.array(sorted(inputs.flatten(1).tolist()))


def large(samples=20_000, classes=10):
    labels = torch.arange(samples) % classes
    inputs = torch.arange(samples, dtype=torch.float32)[:, None]
    return Dataset(inputs, labels, inputs[:50], labels[:50], tuple(f"{i}" for i in range(classes)))
