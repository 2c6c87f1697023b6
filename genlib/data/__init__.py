"""Data sets as tensors on a device, and what the papers do to them. Used from chapter 1, "Memorization", on.

Data by name, corrupted labels and pixels; `genlib.data.augment` holds changes of minibatches.
"""

from genlib.data.corruptions import (
    attack_set,
    center_crop,
    corrupt_labels,
    gaussian_pixels,
    random_pixels,
    shuffle_pixels,
)
from genlib.data.dataset import Dataset
from genlib.data.generated import mnist1d, parity
from genlib.data.loaders import load

__all__ = [
    "Dataset",
    "attack_set",
    "center_crop",
    "corrupt_labels",
    "gaussian_pixels",
    "load",
    "mnist1d",
    "parity",
    "random_pixels",
    "shuffle_pixels",
]
