"""The network that most benchmarks measure, MLP 784-512-512-512-10, trained on digits of 28 x 28 pixels."""

import dataclasses
import functools

import torch.nn.functional as F
from torch import nn

from genlib import data, models, scale
from genlib.data import Dataset
from genlib.train import Stop, fit

__all__ = ["BEYOND_FIRST", "MLP", "digits", "trained_mlp"]

MLP = "MLP 784-512-512-512-10"
WEIGHTS = (784 * 512, 512 * 512, 512 * 512, 512 * 10)
BEYOND_FIRST = sum(WEIGHTS[1:]) / sum(WEIGHTS)  # r, the share of a forward pass that backward passes go through


@functools.cache
def digits(train: int) -> Dataset:
    """The digits, enlarged from 8 x 8."""
    small = data.load("digits", train=train, device=scale.device())

    def enlarged(images):
        return F.interpolate(images.view(-1, 1, 8, 8), (28, 28), mode="bilinear").flatten(1)

    return dataclasses.replace(small, inputs=enlarged(small.inputs), test_inputs=enlarged(small.test_inputs))


@functools.cache
def trained_mlp(seed: int = 0) -> nn.Module:
    """Trained to 99 % on a thousand digits."""
    module = models.mlp(784, 10, width=512, depth=3, seed=seed).to(scale.device())
    return fit(module, digits(1000), lr=0.05, batch_size=64, stop=Stop(accuracy=0.99, epochs=50), seed=seed).module
