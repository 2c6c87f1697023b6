"""A data set: its history, subsets and minibatches, and the tensors that it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_cases import images
from hypothesis import given
from hypothesis import strategies as st

from genlib.data import corrupt_labels, dataset, load, shuffle_pixels


def test_the_history_tells_what_was_done():
    changed = shuffle_pixels(corrupt_labels(load("digits", train=200, seed=7), 0.5, seed=8), seed=9)
    assert [step.split("(")[1][:6] for step in changed.history] == ["seed 7", "seed 8", "seed 9"]
    assert repr(changed).startswith("digits: 200 training and 500 test samples of shape (64,), 10 classes; ")
    assert all(step in repr(changed) for step in changed.history)


def test_to_moves_every_tensor(monkeypatch):
    monkeypatch.setattr(
        "genlib.data.dataset._check", lambda *_: None
    )  # it reads values, of which the meta device has none
    moved = images().to("meta")
    fields = (moved.inputs, moved.labels, moved.test_inputs, moved.test_labels, moved.true_labels, moved.replaced)
    assert moved.device.type == "meta" and all(field.device.type == "meta" for field in fields)


@given(st.integers(1, 60), st.integers(1, 60))
def test_subsets_of_one_seed_are_nested(fewer, more):
    fewer, more = sorted((fewer, more))
    whole = corrupt_labels(images(), 0.5, seed=0)
    small, large = whole.subset(fewer, seed=1), whole.subset(more, seed=1)
    assert torch.equal(small.inputs, large.inputs[:fewer]) and torch.equal(small.labels, large.labels[:fewer])
    where = [int((whole.inputs == row).flatten(1).all(1).nonzero()) for row in large.inputs]
    assert len(set(where)) == more
    assert torch.equal(whole.true_labels[where], large.true_labels)
    assert torch.equal(whole.replaced[where], large.replaced)


@given(st.integers(0, 80), st.integers(1, 90), st.sampled_from([1, 192, 1000, 10**8]))
def test_minibatches_are_the_samples_in_order(length, batch_size, block_bytes):
    whole = images()
    order = torch.randint(len(whole), (length,), generator=torch.Generator().manual_seed(length))
    before, dataset.BLOCK_BYTES = dataset.BLOCK_BYTES, block_bytes
    try:
        batches = list(whole.minibatches(order, batch_size))
    finally:
        dataset.BLOCK_BYTES = before
    if length == 0:
        assert sum(len(labels) for _, labels in batches) == 0
        return
    expected = [order[i : i + batch_size] for i in range(0, length, batch_size)]
    assert len(batches) == len(expected)
    for (inputs, labels), chosen in zip(batches, expected, strict=True):
        assert torch.equal(inputs, whole.inputs[chosen]) and torch.equal(labels, whole.labels[chosen])


def test_minibatches_of_the_test_set_are_all_of_it():
    whole = images()
    inputs, labels = map(torch.cat, zip(*whole.test_minibatches(7), strict=True))
    assert torch.equal(inputs, whole.test_inputs) and torch.equal(labels, whole.test_labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(59, dtype=torch.int64)}, "labels are 59 for 60 inputs"),
        ({"test_labels": torch.zeros(60, dtype=torch.int64)}, "test_labels are 60 for 20 test_inputs"),
        ({"labels": torch.full((60,), 10)}, "labels go from 10 to 10; with 10 classes they go from 0 to 9"),
        ({"labels": torch.full((60,), -1)}, "labels go from -1"),
        ({"labels": torch.zeros(60)}, "labels must be a vector of int64"),
        ({"labels": torch.zeros(60, 10, dtype=torch.int64)}, "labels must be a vector of int64"),
        ({"labels": np.zeros(60, dtype=np.int64)}, "labels must be a vector of int64"),
        ({"inputs": torch.zeros(60, 3, 4, 4, dtype=torch.uint8)}, "inputs must be a tensor of floats"),
        ({"inputs": torch.tensor(1.0)}, "inputs is a single number"),
        ({"classes": 10}, r"classes is 10; give the name of each"),
        ({"classes": "0123456789"}, "classes is '0123456789'"),
        ({"test_inputs": torch.zeros(20, 3, 4, 5)}, r"test_inputs have shape \(3, 4, 5\), those of inputs \(3, 4, 4\)"),
        ({"inputs": torch.zeros(60, 3, 4, 4, device="meta")}, "labels are on cpu, inputs on meta"),
        ({"inputs": torch.zeros(0, 3, 4, 4), "labels": torch.zeros(0, dtype=torch.int64)}, "labels are 0 for 0 inputs"),
    ],
)
def test_labels_and_inputs_that_do_not_match_are_refused(change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        replace(images(), true_labels=None, replaced=None, **change)


@pytest.mark.parametrize("field", ["true_labels", "replaced"])
def test_what_is_remembered_of_other_labels_is_refused(field, unchecked):
    whole = images()
    with pytest.raises(ValueError, match="true_labels and replaced need one entry a label"):
        replace(whole, **{field: getattr(whole, field)[:30]})
    with pytest.raises(ValueError, match="true_labels and replaced need one entry a label"):
        replace(whole, **{field: getattr(whole, field).tolist()})
