"""Every data set by its name: what is in it, how its seed draws, and what it cannot be."""

import numpy as np
import pytest
import torch
from data_cases import IMAGE_SETS, SIDES, TEST, TRAIN, rows
from sklearn.datasets import load_digits

from genlib.data import attack_set, formats, load, mnist1d, parity


def test_a_set_of_parity_has_a_test_set_of_its_own():
    loaded = load("parity", seed=3)
    assert (len(loaded), len(loaded.test_labels), loaded.input_shape, loaded.classes) == (100, 5000, (30,), ("-1", "1"))
    for inputs, labels in ((loaded.inputs, loaded.labels), (loaded.test_inputs, loaded.test_labels)):
        assert (inputs.abs() == 1).all() and torch.equal(2 * labels - 1, (inputs[:, 0] * inputs[:, 1]).long())
    assert not (loaded.test_inputs[:100] == loaded.inputs).all(1).any()
    assert torch.equal(load("parity", train=7, test=5, seed=3).inputs, loaded.inputs[:7])
    assert load("parity", train=9, test=5, dimension=4, seed=3).input_shape == (4,)
    assert not torch.equal(load("parity", seed=4).inputs, loaded.inputs)


def test_a_parity_that_is_no_counterexample_warns():
    with pytest.warns(UserWarning, match=r"^dimension is 12 for 80 samples: .* take a dimension of at least 16$"):
        load("parity", train=80, dimension=12)
    load("parity", train=80, dimension=16)


def test_digits_are_those_of_scikit_learn():
    every = load("digits")
    assert (len(every), len(every.test_labels)) == (1297, 500)
    assert every.input_shape == (64,) and every.classes == tuple("0123456789")
    assert every.inputs.dtype == torch.float32 and every.labels.dtype == torch.int64
    pixels, labels = load_digits(return_X_y=True)
    with_label = torch.cat(
        [torch.cat([every.inputs, every.test_inputs]), torch.cat([every.labels, every.test_labels])[:, None]], 1
    )
    theirs = torch.from_numpy(np.column_stack([pixels / 16, labels])).float()
    assert np.array_equal(rows(with_label), rows(theirs))


def test_digits_of_one_seed_are_nested_and_of_two_seeds_differ():
    few, many = load("digits", train=100, seed=4), load("digits", train=300, seed=4)
    assert torch.equal(few.inputs, many.inputs[:100]) and torch.equal(few.test_inputs, many.test_inputs)
    assert not torch.equal(few.labels, load("digits", train=100, seed=5).labels)
    assert len(load("digits", test=100)) == 1697


def test_mnist1d_comes_split():
    loaded = load("mnist1d", train=300, test=70, seed=2)
    assert (len(loaded), len(loaded.test_labels), loaded.input_shape) == (300, 70, (40,))
    assert torch.equal(loaded.inputs, mnist1d(300, seed=2)[0])
    assert not torch.equal(loaded.inputs[:70], loaded.test_inputs)
    assert (len(load("mnist1d")), len(load("mnist1d").test_labels)) == (4000, 1000)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cifar", "cifar10"),
        ("MNIST", "mnist"),
        ("fashion-mnist", "fashion_mnist"),
        ("digit", "digits"),
        ("xyz", "svhn"),
    ],
)
def test_an_unknown_data_set_is_answered_with_the_nearest_names(name, near):
    with pytest.raises(ValueError, match=f"name is '{name}', .* did you mean .*{near}"):
        load(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 1298}, "train is 1298, but digits has 1797 samples, 1297 beside the 500 for the test; .* most 1297"),
        ({"train": 1000, "test": 1000}, "train is 1000, but digits has 1797 samples, 797 beside"),
        ({"test": 1797}, "test is 1797, but digits has 1797 samples"),
        ({"train": 0}, "train is 0; give a whole number, at least 1"),
        ({"test": 2.5}, "test is 2.5; give a whole number"),
        ({"train": True}, "train is True; give a whole number"),
        ({"seed": 1.0}, "seed is 1.0; give a whole number, such as 0"),
        ({"seed": True}, "seed is True; give a whole number"),
        ({"seed": "1"}, "seed is '1'; give a whole number"),
        ({"seed": None}, "seed is None; give a whole number"),
        ({"root": "/somewhere"}, "root is '/somewhere', but digits needs no files"),
    ],
)
def test_what_digits_cannot_be_is_refused(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        load("digits", **arguments)


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_image_sets_are_what_is_in_their_files(name, dry_run):
    loaded = load(name)
    shape = SIDES.get(name, (3, 32, 32))
    assert loaded.input_shape == shape and len(loaded.classes) == (100 if name == "cifar100" else 10)
    assert (len(loaded), len(loaded.test_labels)) == (TRAIN, TEST)
    drawn, labels = formats.made_up("train", (28, 28) if name in SIDES else (3072,), len(loaded.classes))
    if name == "svhn":
        drawn, _ = formats.made_up("train", (3, 32, 32))
    pixels = drawn.reshape(TRAIN, *shape) / 255
    moments = {"axis": (0, 2, 3), "keepdims": True}
    standardised = (pixels - pixels.mean(**moments)) / pixels.std(**moments)
    expected = torch.from_numpy(np.column_stack([standardised.reshape(TRAIN, -1), labels]))
    found = torch.cat([loaded.inputs.flatten(1), loaded.labels[:, None]], 1)
    np.testing.assert_allclose(rows(found), rows(expected), atol=1e-5)
    assert (loaded.labels.bincount() >= 3).sum() == TRAIN // 3


def test_the_test_images_are_standardised_as_the_training_images(dry_run):
    pixels, _ = formats.made_up("train", (28, 28))
    test_pixels, _ = formats.made_up("test", (28, 28))
    expected = (test_pixels / 255 - pixels.mean() / 255) / (pixels.std() / 255)
    np.testing.assert_allclose(rows(load("mnist").test_inputs), rows(torch.from_numpy(expected)), atol=1e-5)


def test_image_sets_are_drawn_by_the_seed(dry_run):
    every, few = load("mnist", seed=1), load("mnist", train=10, test=5, seed=1)
    assert torch.equal(few.inputs, every.inputs[:10]) and torch.equal(few.test_labels, every.test_labels[:5])
    assert not torch.equal(every.inputs, load("mnist", seed=2).inputs)


def test_a_dry_run_gives_what_there_is(dry_run):
    for name in ("digits", "drawn_digits", "mnist1d", "parity", *IMAGE_SETS, "imagenet"):
        loaded = load(name, train=10_000, test=10_000)
        assert (len(loaded), len(loaded.test_labels)) == (TRAIN, TEST)
        assert len(attack_set(loaded, 500, seed=0)) == TRAIN and len(loaded.subset(500, seed=0)) == TRAIN
    assert len(mnist1d(1000, seed=0)[1]) == TRAIN and len(parity(1000, dimension=3, seed=0)[1]) == TRAIN


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_more_samples_than_there_are_is_refused(name, placed):
    root, _ = placed(name)
    assert len(load(name, root=root)) == TRAIN
    most = f"{name} has {TRAIN} samples for train; ask for at most {TRAIN}"
    with pytest.raises(ValueError, match=f"train is {TRAIN + 1}, but {most}"):
        load(name, train=TRAIN + 1, root=root)
    with pytest.raises(ValueError, match=f"test is {TEST + 1}, but {name} has {TEST} samples for test"):
        load(name, test=TEST + 1, root=root)
