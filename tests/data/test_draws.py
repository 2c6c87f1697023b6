"""Draws: from the seed alone, which is a whole number, and never from the global generators."""

import numpy as np
import pytest
import torch
from data_cases import images

from genlib.data import (
    attack_set,
    center_crop,
    corrupt_labels,
    gaussian_pixels,
    load,
    mnist1d,
    parity,
    random_pixels,
    shuffle_pixels,
)


@pytest.mark.parametrize("seed", [1.0, True, "1", None])
def test_a_seed_that_is_no_integer_is_refused_everywhere(seed, unchecked):
    whole = images()
    for draw in (
        lambda: mnist1d(10, seed=seed),
        lambda: parity(10, dimension=3, seed=seed),
        lambda: load("mnist1d", seed=seed),
        lambda: load("cifar10", seed=seed),
        lambda: corrupt_labels(whole, 0.5, seed=seed),
        lambda: shuffle_pixels(whole, seed=seed),
        lambda: random_pixels(whole, seed=seed),
        lambda: gaussian_pixels(whole, seed=seed),
        lambda: attack_set(whole, 5, seed=seed),
        lambda: whole.subset(5, seed=seed),
    ):
        with pytest.raises(ValueError, match=r"seed is .* give a whole number"):
            draw()


def test_other_sizes_that_cannot_be_are_refused(unchecked):
    whole = images()
    for call, message in (
        (lambda: whole.subset(61, seed=0), "size is 61, but noise has 60 training samples; ask for at most 60"),
        (lambda: attack_set(whole, 60, seed=0), "size is 60, but noise has 60 training samples, and one must stay"),
        (lambda: attack_set(whole, 0, seed=0), "size is 0; give a whole number"),
        (lambda: mnist1d(0, seed=0), "samples is 0"),
        (lambda: parity(5, dimension=0, seed=0), "dimension is 0"),
        (lambda: load("parity", dimension=1), "dimension is 1; the product of two"),
        (lambda: load("digits", dimension=8), "dimension is 8, but digits has its own"),
        (lambda: load("parity", root="/somewhere"), "but parity needs no files"),
        (lambda: next(whole.minibatches(torch.arange(3), 0)), "batch_size is 0"),
        (lambda: center_crop(whole, 5), r"size is 5, but noise has inputs of shape \(3, 4, 4\)"),
        (lambda: center_crop(load("digits"), 5), r"size is 5, but digits has inputs of shape \(64,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_nothing_draws_from_the_global_generators(dry_run):
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for name in ("digits", "mnist1d", "parity", "cifar10", "imagenet"):
        loaded = load(name)
        list(loaded.minibatches(torch.arange(10), 4))
        corrupt_labels(attack_set(loaded.subset(20, seed=0), 5, seed=0), 0.5, seed=0)
    gaussian_pixels(random_pixels(shuffle_pixels(images(), seed=0), seed=0), seed=0)
    parity(5, dimension=3, seed=0)
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(state, np.random.get_state()[1])
