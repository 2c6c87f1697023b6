"""The papers' architectures, each with its published number of parameters, drawn from a seed.

Chapter 1, "Memorization", trains most of them and builds memorizing networks; chapter 6, "Flatness counterexamples",
builds the flattest.
"""

from genlib.models.builders import build
from genlib.models.convolutional import inception_v3, network_in_network, small_alexnet, small_inception, vgg
from genlib.models.dense import mlp, two_layer
from genlib.models.flattest import (
    flattest_generalizing_network,
    flattest_memorizing_network,
    interpolating_network_without_bias,
    smallest_trace,
)
from genlib.models.memorizing import MemorizingNetwork, deep_memorizing_network, memorizing_network
from genlib.network.normalizations import SimplifiedBatchNorm, SimplifiedLayerNorm

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
