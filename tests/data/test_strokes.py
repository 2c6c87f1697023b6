"""Drawn digits: what they are, how their seed draws, how hard they are, and how they stand in for the digits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genlib.data import load, strokes


@pytest.fixture(scope="module")
def drawn():
    return load("drawn_digits", seed=1000)


def nearest_neighbour_accuracy(dataset):
    nearest = torch.cdist(dataset.test_inputs, dataset.inputs).argmin(dim=1)
    return (dataset.labels[nearest] == dataset.test_labels).double().mean().item()


def shared(a, b):
    return {tuple(row) for row in a.tolist()} & {tuple(row) for row in b.tolist()}


def test_drawn_digits_have_the_shape_and_the_range_of_the_digits(drawn):
    digits = load("digits", seed=1000)
    assert (drawn.input_shape, drawn.classes) == (digits.input_shape, digits.classes)
    assert (len(drawn), len(drawn.test_labels)) == (len(digits), len(digits.test_labels)) == (1297, 500)
    assert drawn.inputs.dtype == torch.float32 and drawn.labels.dtype == torch.int64
    for images in (drawn.inputs, drawn.test_inputs, digits.inputs):
        assert set((16 * images).unique().tolist()) == set(range(17))
    assert abs(drawn.inputs.mean() - digits.inputs.mean()) < 0.05
    assert abs(drawn.inputs.std() - digits.inputs.std()) < 0.05
    assert drawn.name == "drawn_digits" and drawn.history == ("generated (seed 1000)",)


def test_any_number_is_drawn():
    many = load("drawn_digits", train=3001, test=2, seed=0)
    assert (len(many), len(many.test_labels)) == (3001, 2)


@settings(max_examples=8)
@given(st.integers(1, 4500), st.integers(1, 4500))
def test_fewer_are_the_beginning_of_more_with_each_class_as_often(fewer, more):
    fewer, more = sorted((fewer, more))
    few, many = (load("drawn_digits", train=train, test=1, seed=3) for train in (fewer, more))
    assert torch.equal(few.inputs, many.inputs[:fewer]) and torch.equal(few.labels, many.labels[:fewer])
    counts = few.labels.bincount(minlength=10)
    assert counts.max() - counts.min() <= 1


def test_a_seed_draws_the_same_images_again_and_no_image_of_another_seed_or_of_its_test(drawn):
    again, other = load("drawn_digits", seed=1000), load("drawn_digits", seed=1001)
    assert torch.equal(again.inputs, drawn.inputs) and torch.equal(again.test_labels, drawn.test_labels)
    assert not shared(drawn.inputs, other.inputs) and not shared(drawn.test_inputs, other.test_inputs)
    assert not shared(drawn.inputs, drawn.test_inputs)


def test_they_are_about_as_hard_as_the_digits():
    found = {
        name: np.mean([nearest_neighbour_accuracy(load(name, seed=seed)) for seed in range(4)])
        for name in ("drawn_digits", "digits")
    }
    assert found["drawn_digits"] > 0.95 and abs(found["drawn_digits"] - found["digits"]) < 0.03


def test_distances_are_those_from_points_all_along_the_line():
    points = 7 * torch.rand(5, 4, 2, generator=torch.Generator().manual_seed(0))
    points[:, 3] = points[:, 2]  # as at the end of a short figure
    found = strokes._distances(points)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    for line, distances in zip(points.double(), found, strict=True):
        along = torch.cat([a + t * (b - a) for a, b in pairwise(line)])
        for pixel, distance in enumerate(distances):
            row, column = divmod(pixel, 8)
            nearest = (along - torch.tensor([column, row])).norm(dim=1).min().item()
            assert distance.item() == pytest.approx(nearest, abs=5e-3)


def test_the_digits_are_drawn_where_genlib_data_says_so(monkeypatch):
    monkeypatch.setenv("GENLIB_DATA", "drawn_digits")
    stand_in, drawn = (load(name, train=30, test=20, seed=2) for name in ("digits", "drawn_digits"))
    assert torch.equal(stand_in.inputs, drawn.inputs) and torch.equal(stand_in.test_labels, drawn.test_labels)
    assert stand_in.name == "drawn_digits" and len(load("digits")) == 1297
    assert load("parity").name == "parity"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train is 0; give a whole number, at least 1"),
        ({"test": 2.5}, "test is 2.5; give a whole number"),
        ({"seed": 1.0}, "seed is 1.0; give a whole number, such as 0"),
        ({"root": "/somewhere"}, "root is '/somewhere', but drawn_digits needs no files"),
        ({"dimension": 64}, "dimension is 64, but drawn_digits has its own"),
    ],
)
def test_what_they_cannot_be_is_refused(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        load("drawn_digits", **arguments)
