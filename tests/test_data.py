"""Data sets: what is in them, what the corruptions do to them, and that nothing but the published files is read."""

import gzip
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import jaxtyping
import mnist1d.data as package
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mnist1d.transform import interpolate, pad
from scipy import stats
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from torchvision import datasets

from genlib import scale
from genlib.data import (
    Dataset,
    attack_set,
    center_crop,
    corrupt_labels,
    dataset,
    files,
    gaussian_pixels,
    generated,
    load,
    mnist1d,
    parity,
    random_pixels,
    shuffle_pixels,
)
from genlib.data.generated import _signals
from genlib.data.streams import StreamedImages

TRAIN, TEST = scale.DRY_ROWS["train"], scale.DRY_ROWS["test"]  # the files of this test are those of a dry run
IMAGE_SETS = ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"]
SIDES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28)}


@pytest.fixture
def dry_run(monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")


@pytest.fixture
def unchecked():
    """Without the type checks of the tests, which would refuse a wrong type before genlib can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def images(samples=60, channels=3, side=4, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, channels, side, side, generator=generator)
    labels = torch.arange(samples) % classes
    names = tuple(f"class {i}" for i in range(classes))
    return Dataset(inputs, labels, inputs[:20] + 1, labels[:20], names, "noise")


def rows(inputs):
    """The rows in an order that depends on nothing but their values."""
    return np.array(sorted(inputs.flatten(1).tolist()))


# The generators


@pytest.fixture(scope="module")
def published():
    state = np.random.get_state()
    arguments = package.get_dataset_args(as_dict=True) | {"num_samples": 6000, "seed": 0}
    made = package.make_dataset(SimpleNamespace(**arguments))
    np.random.set_state(state)
    return np.concatenate([made["x"], made["x_test"]]), np.concatenate([made["y"], made["y_test"]])


@pytest.fixture(scope="module")
def ours():
    inputs, labels = mnist1d(60_000, seed=0)
    # by its own sample, as the package does
    return ((inputs - inputs.mean()) / inputs.std(correction=0)).numpy().astype(float), labels.numpy()


def z_scores(a, b):
    """Difference of the columns' means, in standard errors."""
    return (a.mean(0) - b.mean(0)) / np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))


def agree(z):
    """Whether correlated standard normals could give scores of this size."""
    return np.abs(z).max() < stats.norm.isf(1e-4 / z.size) and np.sqrt(np.mean(z**2)) < 1.6


@given(st.integers(0, 9), st.integers(36, 60), st.integers(0, 47), st.floats(0.8, 1.2), st.floats(-0.375, 0.375))
def test_signals_of_mnist1d_are_those_of_the_published_steps(label, padding, shift, gain, slope):
    """The package's own steps, one sample at a time, with its draws replaced by ours."""
    random = np.random.default_rng(label)
    background, noise = 0.25 * random.standard_normal(72), 0.02 * random.standard_normal(72)
    template = package.get_templates()["x"][label]
    stretched = interpolate(pad(template + 1e-8, (padding, padding)), 72)
    rolled = np.roll(stretched, shift)
    signal = np.where(rolled == 0, gaussian_filter(background, 2), gain * rolled) + noise
    expected = interpolate(signal - slope * np.linspace(-0.5, 0.5, 72), 40)

    draws = [torch.tensor([[draw]]) for draw in (padding, shift, gain, slope)]
    rows = [torch.from_numpy(draw).float()[None] for draw in (background, noise)]
    found = _signals(torch.tensor([label]), *draws, *rows)
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_mnist1d_draws_from_the_published_ranges(monkeypatch):
    drawn = []

    def keep(*arguments):
        drawn.append(arguments)
        return _signals(*arguments)

    monkeypatch.setattr(generated, "_signals", keep)
    mnist1d(20_000, seed=0)
    _, padding, shift, gain, slope, background, noise = map(torch.cat, zip(*drawn, strict=True))
    assert padding.unique().tolist() == list(range(36, 61)) and shift.unique().tolist() == list(range(48))
    for counts in (padding.flatten().bincount()[36:], shift.flatten().bincount()):
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    for values, low, width in ((gain, 0.8, 0.4), (slope, -0.375, 0.75)):
        assert stats.kstest(values.flatten().numpy(), "uniform", args=(low, width)).pvalue > 1e-4
    for values, deviation in ((background, 0.25), (noise, 0.02)):
        assert stats.kstest(values[:, 0].numpy(), "norm", args=(0, deviation)).pvalue > 1e-4


def test_mnist1d_has_the_means_and_variances_of_the_published_package(published, ours):
    (theirs, _), (mine, _) = published, ours
    assert agree(z_scores(theirs, mine))
    assert agree(z_scores((theirs - theirs.mean(0)) ** 2, (mine - mine.mean(0)) ** 2))
    neighbours = [(x - x.mean(0))[:, :-3] * (x - x.mean(0))[:, 3:] for x in (theirs, mine)]
    assert agree(z_scores(*neighbours))


def test_mnist1d_has_the_class_means_and_fourth_moment_of_the_published_package(published, ours):
    (theirs, their_labels), (mine, my_labels) = published, ours
    by_class = [z_scores(theirs[their_labels == label], mine[my_labels == label]) for label in range(10)]
    assert agree(np.array(by_class))
    fourth = [np.mean(x**4, axis=1, keepdims=True) for x in (theirs, mine)]
    assert abs(z_scores(*fourth)) < 3.5


def test_a_classifier_does_not_tell_mnist1d_from_the_published_package(published, ours):
    (theirs, their_labels), (mine, my_labels) = published, ours
    train, test = slice(0, 3000), slice(3000, 6000)

    def classifier():
        return ExtraTreesClassifier(60, random_state=0)

    on_theirs = classifier().fit(theirs[train], their_labels[train])
    on_mine = classifier().fit(mine[train], my_labels[train])
    accuracies = [
        tree.score(inputs[test], labels[test]) for tree in (on_theirs, on_mine) for inputs, labels in (published, ours)
    ]
    assert min(accuracies) > 0.4  # it learned
    # 3000 test points each: the standard error of a difference is 0.013
    assert max(accuracies) - min(accuracies) < 0.045

    which = np.repeat([0, 1], 3000)
    judge = classifier().fit(np.concatenate([theirs[train], mine[train]]), which)
    told = judge.score(np.concatenate([theirs[test], mine[test]]), which)
    assert abs(told - 0.5) < 4 * np.sqrt(0.25 / 6000)


def test_mnist1d_is_standardised_by_constants():
    inputs, labels = mnist1d(60_000, seed=1)
    assert inputs.dtype == torch.float32 and labels.dtype == torch.int64
    assert abs(inputs.mean()) < 0.01 and abs(inputs.std() - 1) < 0.01


@settings(max_examples=25)
@given(st.integers(1, 4500), st.integers(1, 4500))
def test_fewer_samples_of_mnist1d_are_the_beginning_of_more(fewer, more):
    fewer, more = sorted((fewer, more))
    (inputs, labels), (all_inputs, all_labels) = mnist1d(fewer, seed=3), mnist1d(more, seed=3)
    assert torch.equal(inputs, all_inputs[:fewer]) and torch.equal(labels, all_labels[:fewer])
    counts = labels.bincount(minlength=10)
    assert counts.max() - counts.min() <= 1


def test_mnist1d_follows_its_seed():
    assert torch.equal(mnist1d(50, seed=1)[0], mnist1d(50, seed=1)[0])
    assert not torch.equal(mnist1d(50, seed=1)[0], mnist1d(50, seed=2)[0])
    assert not torch.equal(mnist1d(50, seed=1)[1], mnist1d(50, seed=2)[1])


@given(st.integers(1, 200), st.integers(1, 12), st.data())
def test_parity_is_the_product_of_the_relevant_signs(samples, dimension, draw):
    relevant = draw.draw(st.integers(1, dimension))
    inputs, labels = parity(samples, dimension=dimension, relevant=relevant, seed=samples)
    assert inputs.shape == (samples, dimension) and inputs.dtype == torch.float32 and labels.dtype == torch.int64
    for row, label in zip(inputs.tolist(), labels.tolist(), strict=True):
        assert set(row) <= {-1.0, 1.0}
        assert label == (1 if sum(sign < 0 for sign in row[:relevant]) % 2 == 0 else 0)


def test_parity_draws_every_sign_alike():
    inputs, labels = parity(20_000, dimension=4, seed=0)
    assert inputs.mean(0).abs().max() < 4 / 20_000**0.5 * 1.2
    assert abs(labels.double().mean() - 0.5) < 2 / 20_000**0.5 * 1.2


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


def test_parity_of_more_coordinates_than_there_are_is_refused():
    with pytest.raises(ValueError, match="relevant is 4; of 3 coordinates"):
        parity(5, dimension=3, relevant=4, seed=0)


# The data set


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


# The corruptions


def large(samples=20_000, classes=10):
    labels = torch.arange(samples) % classes
    inputs = torch.arange(samples, dtype=torch.float32)[:, None]
    return Dataset(inputs, labels, inputs[:50], labels[:50], tuple(f"{i}" for i in range(classes)))


@pytest.mark.parametrize(("probability", "classes"), [(0.2, 10), (0.7, 3), (1, 10), (0.5, 2)])
def test_labels_are_replaced_by_uniform_classes(probability, classes):
    clean = large(classes=classes)
    corrupted = corrupt_labels(clean, probability, seed=0)
    n = len(clean)
    wrong = probability * (classes - 1) / classes
    assert abs(corrupted.replaced_rate - probability) <= 4 * np.sqrt(probability * (1 - probability) / n)
    assert abs(corrupted.wrong_rate - wrong) < 4 * np.sqrt(wrong * (1 - wrong) / n)
    # independent of the true class, and uniform over the classes
    pairs = torch.zeros(classes, classes)
    pairs.index_put_((clean.labels[corrupted.replaced], corrupted.labels[corrupted.replaced]), torch.ones(()), True)
    assert stats.chisquare(pairs.flatten().numpy()).pvalue > 1e-4

    assert torch.equal(corrupted.true_labels, clean.labels) and torch.equal(corrupted.test_labels, clean.test_labels)
    assert torch.equal(corrupted.labels[~corrupted.replaced], clean.labels[~corrupted.replaced])
    assert corrupted.inputs is clean.inputs
    rates = re.fullmatch(
        rf"labels replaced with probability {probability} \(seed 0\): (.*)% replaced, (.*)% wrong",
        corrupted.history[-1],
    )
    assert float(rates[1]) == pytest.approx(100 * corrupted.replaced_rate, abs=0.051)
    assert float(rates[2]) == pytest.approx(100 * corrupted.wrong_rate, abs=0.051)


def test_no_label_is_replaced_at_probability_0_and_every_one_at_1():
    clean = images()
    assert torch.equal(corrupt_labels(clean, 0, seed=0).labels, clean.labels)
    assert corrupt_labels(clean, 0, seed=0).replaced_rate == 0
    assert corrupt_labels(clean, 1.0, seed=0).replaced_rate == 1
    assert (clean.replaced_rate, clean.wrong_rate) == (0, 0)


def test_a_second_corruption_remembers_the_true_labels():
    clean = large()
    twice = corrupt_labels(corrupt_labels(clean, 0.5, seed=0), 0.5, seed=1)
    assert torch.equal(twice.true_labels, clean.labels) and len(twice.history) == 2
    assert abs(twice.replaced_rate - 0.75) < 0.02 and abs(twice.wrong_rate - 0.675) < 0.02


def test_split_and_corruption_of_one_seed_are_independent():
    """Were they drawn from one stream, the replaced labels would be those of particular digits."""
    loaded = load("digits", train=1297, seed=5)
    corrupted = corrupt_labels(loaded, 0.5, seed=5)
    where = {tuple(row): i for i, row in enumerate((load_digits().data / 16).astype(np.float32).tolist())}
    position = [where[tuple(row)] for row in loaded.inputs.tolist()]
    assert stats.mannwhitneyu(*(np.array(position)[corrupted.replaced == flag] for flag in (True, False))).pvalue > 1e-3


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_probability_outside_0_to_1_is_refused(probability):
    with pytest.raises(ValueError, match=r"probability is .*; it must lie in \[0, 1\]"):
        corrupt_labels(images(), probability, seed=0)


@pytest.mark.parametrize("corrupt", [shuffle_pixels, random_pixels, gaussian_pixels])
@pytest.mark.parametrize("shape", [(7,), (1, 40), (3, 4, 5)])
def test_corrupted_inputs_keep_shape_type_and_labels(corrupt, shape):
    inputs = torch.randn(30, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(30) % 3
    clean = Dataset(inputs, labels, inputs[:12], labels[:12], ("a", "b", "c"))
    changed = corrupt(clean, seed=0)
    assert changed.inputs.shape == inputs.shape and changed.inputs.dtype == torch.float64
    assert changed.test_inputs.shape == (12, *shape)
    assert torch.equal(changed.labels, labels) and torch.equal(changed.test_labels, labels[:12])
    assert not torch.equal(changed.inputs, inputs) and not torch.equal(changed.test_inputs, inputs[:12])
    assert torch.equal(changed.inputs, corrupt(clean, seed=0).inputs)
    assert not torch.equal(changed.inputs, corrupt(clean, seed=1).inputs)
    assert len(changed.history) == 1 and "seed 0" in changed.history[0]


def permutation(before, after):
    """For each pixel after, the pixel before that has its values in all channels."""
    before, after = before.flatten(1).T.tolist(), after.flatten(1).T.tolist()
    return [before.index(values) for values in after]


def test_shuffled_pixels_move_all_alike():
    clean = images()
    shuffled = shuffle_pixels(clean, seed=0)
    pairs = [
        *zip(clean.inputs, shuffled.inputs, strict=True),
        *zip(clean.test_inputs, shuffled.test_inputs, strict=True),
    ]
    (order,) = {tuple(permutation(*pair)) for pair in pairs}
    assert sorted(order) == list(range(16)) and list(order) != list(range(16))


def test_random_pixels_move_each_image_by_itself():
    clean = images(samples=200)
    moved = random_pixels(clean, seed=0)
    pairs = [*zip(clean.inputs, moved.inputs, strict=True), *zip(clean.test_inputs, moved.test_inputs, strict=True)]
    orders = np.array([permutation(*pair) for pair in pairs])
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(16), (220, 1)))
    assert len(np.unique(orders, axis=0)) == 220
    went = np.stack([np.bincount(column, minlength=16) for column in orders.T])
    assert stats.chisquare(went.flatten()).pvalue > 1e-4


def test_gaussian_pixels_have_the_mean_and_variance_of_the_training_inputs():
    generator = torch.Generator().manual_seed(0)
    inputs = 5 + 3 * torch.rand(2000, 3, 4, 4, generator=generator)
    inputs[:, 1] *= 2  # one mean and one variance for all positions, however these differ
    labels = torch.arange(2000) % 2
    noise = gaussian_pixels(Dataset(inputs, labels, inputs[:500] - 9, labels[:500], ("a", "b")), seed=0)
    for drawn in (noise.inputs, noise.test_inputs):
        standard = (drawn.double() - inputs.mean()) / inputs.std()
        for channel in standard.unbind(1):
            assert stats.kstest(channel.flatten().numpy(), "norm").pvalue > 1e-4
    correlations = torch.corrcoef(noise.inputs.flatten(1).T) - torch.eye(48)
    assert correlations.abs().max() < 5 / 2000**0.5
    assert not torch.equal(noise.inputs[:500], noise.test_inputs)


def test_an_attack_set_makes_the_last_labels_wrong():
    clean = large()
    attacked = attack_set(clean, 9000, seed=0)
    assert len(attacked) == len(clean) and torch.equal(attacked.true_labels, clean.labels)
    assert torch.equal(attacked.labels[:-9000], clean.labels[:-9000])
    assert (attacked.labels[-9000:] != clean.labels[-9000:]).all()
    assert torch.equal(attacked.replaced, attacked.labels != clean.labels)
    assert attacked.replaced_rate == attacked.wrong_rate == 9000 / 20_000
    shift = (attacked.labels - clean.labels)[-9000:] % 10
    assert stats.chisquare(shift.bincount(minlength=10)[1:].numpy()).pvalue > 1e-4
    assert torch.equal(attacked.test_labels, clean.test_labels)


def test_attack_sets_of_one_seed_share_their_clean_samples():
    clean = 300
    one, more = (attack_set(load("digits", train=clean + c, seed=1), c, seed=2) for c in (30, 90))
    assert torch.equal(one.inputs, more.inputs[: clean + 30]) and torch.equal(one.labels, more.labels[: clean + 30])


def test_center_crop_keeps_the_middle():
    whole = images(side=7)
    cropped = center_crop(whole, 4)
    assert torch.equal(cropped.inputs, whole.inputs[..., 1:5, 1:5])
    assert torch.equal(cropped.test_inputs, whole.test_inputs[..., 1:5, 1:5])


# The files


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_image_sets_are_what_is_in_their_files(name, dry_run):
    loaded = load(name)
    shape = SIDES.get(name, (3, 32, 32))
    assert loaded.input_shape == shape and len(loaded.classes) == (100 if name == "cifar100" else 10)
    assert (len(loaded), len(loaded.test_labels)) == (TRAIN, TEST)
    drawn, labels = files._made_up("train", (28, 28) if name in SIDES else (3072,), len(loaded.classes))
    if name == "svhn":
        drawn, _ = files._made_up("train", (3, 32, 32))
    pixels = drawn.reshape(TRAIN, *shape) / 255
    moments = {"axis": (0, 2, 3), "keepdims": True}
    standardised = (pixels - pixels.mean(**moments)) / pixels.std(**moments)
    expected = torch.from_numpy(np.column_stack([standardised.reshape(TRAIN, -1), labels]))
    found = torch.cat([loaded.inputs.flatten(1), loaded.labels[:, None]], 1)
    np.testing.assert_allclose(rows(found), rows(expected), atol=1e-5)
    assert (loaded.labels.bincount() >= 3).sum() == TRAIN // 3


def test_the_test_images_are_standardised_as_the_training_images(dry_run):
    pixels, _ = files._made_up("train", (28, 28))
    test_pixels, _ = files._made_up("test", (28, 28))
    expected = (test_pixels / 255 - pixels.mean() / 255) / (pixels.std() / 255)
    np.testing.assert_allclose(rows(load("mnist").test_inputs), rows(torch.from_numpy(expected)), atol=1e-5)


def test_image_sets_are_drawn_by_the_seed(dry_run):
    every, few = load("mnist", seed=1), load("mnist", train=10, test=5, seed=1)
    assert torch.equal(few.inputs, every.inputs[:10]) and torch.equal(few.test_labels, every.test_labels[:5])
    assert not torch.equal(every.inputs, load("mnist", seed=2).inputs)


def test_a_dry_run_gives_what_there_is(dry_run):
    for name in ("digits", "mnist1d", "parity", *IMAGE_SETS, "imagenet"):
        loaded = load(name, train=10_000, test=10_000)
        assert (len(loaded), len(loaded.test_labels)) == (TRAIN, TEST)
        assert len(attack_set(loaded, 500, seed=0)) == TRAIN and len(loaded.subset(500, seed=0)) == TRAIN
    assert len(mnist1d(1000, seed=0)[1]) == TRAIN and len(parity(1000, dimension=3, seed=0)[1]) == TRAIN


def test_the_table_names_the_files_that_torchvision_reads():
    for name, reader in (("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST)):
        source = files.SOURCES[name]
        assert list(source.sha256) == [file for file, _ in reader.resources]
        assert source.folder == f"{reader.__name__}/raw"
    for name, reader in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        assert [mirror + reader.filename for mirror in files.SOURCES[name].mirrors] == [reader.url]
        assert list(files.SOURCES[name].sha256) == [reader.filename]
    urls = [files.SOURCES["svhn"].mirrors[0] + file for file in files.SOURCES["svhn"].sha256]
    assert urls == [datasets.SVHN.split_list[split][0] for split in ("train", "test")]
    digests = [digest for source in files.SOURCES.values() for digest in source.sha256.values()]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests) and len(set(digests)) == len(digests)


def test_torchvision_itself_reads_the_made_up_files(tmp_path):
    """The formats are the published ones: torchvision's own classes read them, less their MD5s."""
    root, source = files._stand_in("mnist")
    for packed, plain in zip(source.files(Path(root)), source.files(tmp_path), strict=True):
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    assert len(datasets.MNIST(tmp_path, train=True)) == TRAIN and len(datasets.MNIST(tmp_path, train=False)) == TEST
    root, _ = files._stand_in("cifar10")
    shutil.unpack_archive(f"{root}/cifar-10-python.tar.gz", tmp_path, filter="data")
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        datasets.CIFAR10(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(files._CIFAR10(tmp_path)) == TRAIN


@pytest.fixture
def placed(tmp_path, monkeypatch):
    """A function that places the small files of a set in a folder, and has genlib expect these and no network."""

    def place(name):
        made, source = files._stand_in(name)
        shutil.copytree(made, tmp_path, dirs_exist_ok=True)
        monkeypatch.setitem(files.SOURCES, name, source)
        return tmp_path, source

    def no_network(url, root):
        raise URLError("Name or service not known")

    monkeypatch.setattr(files, "download_url", no_network)
    return place


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_more_samples_than_there_are_is_refused(name, placed):
    root, _ = placed(name)
    assert len(load(name, root=root)) == TRAIN
    most = f"{name} has {TRAIN} samples for train; ask for at most {TRAIN}"
    with pytest.raises(ValueError, match=f"train is {TRAIN + 1}, but {most}"):
        load(name, train=TRAIN + 1, root=root)
    with pytest.raises(ValueError, match=f"test is {TEST + 1}, but {name} has {TEST} samples for test"):
        load(name, test=TEST + 1, root=root)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut short":
        path.write_bytes(content[:-7])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut short", "altered", "emptied"])
@pytest.mark.parametrize("name", IMAGE_SETS)
def test_a_damaged_file_is_refused_by_name(name, how, placed):
    root, source = placed(name)
    for path in source.files(root):
        intact = path.read_bytes()
        damage(path, how)
        with (
            pytest.warns(UserWarning, match=f"{path} is damaged .* fetching it anew"),
            pytest.raises(
                ValueError, match=f"{path} is damaged .*, and fetching it failed:\n.*Name or service not known"
            ),
        ):
            load(name, root=root)
        path.write_bytes(intact)
    assert len(load(name, root=root)) == TRAIN


def test_a_damaged_file_is_fetched_anew(placed, monkeypatch):
    root, source = placed("mnist")
    made, _ = files._stand_in("mnist")
    tried = []

    def fetch(url, folder):
        tried.append(url)
        if len(tried) == 1:
            raise TimeoutError("timed out")
        shutil.copy(f"{made}/MNIST/raw/{url.rsplit('/', 1)[1]}", folder)

    monkeypatch.setattr(files, "download_url", fetch)
    before = load("mnist", root=root)
    path = next(iter(source.files(root)))
    damage(path, "altered")
    with pytest.warns(UserWarning, match="is damaged"):
        after = load("mnist", root=root)
    assert tried == [mirror + path.name for mirror in source.mirrors[:2]]
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.inputs, load("mnist", root=root).inputs)
    assert not list(path.parent.glob("tmp*"))


def test_a_fetched_file_that_is_not_the_published_one_is_refused(placed, monkeypatch):
    root, source = placed("cifar10")
    path = next(iter(source.files(root)))
    path.unlink()
    monkeypatch.setattr(files, "download_url", lambda url, folder: shutil.copy(__file__, f"{folder}/{path.name}"))
    with pytest.raises(FileNotFoundError, match=f"{path.name}: what came has SHA-256"):
        load("cifar10", root=root)
    assert not path.exists()


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_without_a_network_the_error_says_what_to_place_where(name, tmp_path, placed):
    with pytest.raises(FileNotFoundError) as error:
        load(name, root=tmp_path)
    for path, digest in files.SOURCES[name].files(tmp_path).items():
        assert f"{path} with SHA-256 {digest}" in str(error.value)
    assert "is missing, and fetching it failed" in str(error.value) and "Place it there" in str(error.value)


def test_the_usual_folder_is_in_the_home_directory(tmp_path, placed, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/.cache/genlib/data/train_32x32.mat is missing"):
        load("svhn")


def test_files_unpacked_earlier_are_not_read(placed):
    root, _ = placed("mnist")
    before = load("mnist", root=root)
    (root / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"not the published images")
    assert torch.equal(load("mnist", root=root).inputs, before.inputs)
    assert (root / "MNIST/raw/train-images-idx3-ubyte").read_bytes() == b"not the published images"


def test_fetching_puts_the_time_limit_back(placed, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        files, "download_url", lambda url, folder: seen.append(files.socket.getdefaulttimeout()) or 1 / 0
    )
    before = files.socket.getdefaulttimeout()
    with pytest.raises(ZeroDivisionError):
        load("svhn", root=tmp_path)
    assert seen == [30] and files.socket.getdefaulttimeout() == before


# Images that stay in their files


@pytest.fixture
def folders(tmp_path):
    made, _ = files._stand_in("imagenet")
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_imagenet_is_streamed_from_its_folders(folders):
    loaded = load("imagenet", train=12, root=folders)
    assert isinstance(loaded.inputs, StreamedImages) and loaded.input_shape == (3, 299, 299)
    assert (len(loaded), len(loaded.test_labels)) == (12, TEST)
    assert loaded.classes == tuple(f"n{label:08d}" for label in range(5))
    order = torch.tensor([5, 0, 11, 5, 7])
    batches = list(loaded.minibatches(order, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    inputs, labels = map(torch.cat, zip(*batches, strict=True))
    assert torch.equal(labels, loaded.labels[order])
    for image, label, index in zip(inputs, labels, order, strict=True):
        path = loaded.inputs.paths[index].decode()
        assert f"/train/n{label:08d}/" in path
        assert torch.equal(image, loaded.inputs[int(index)])
    test_inputs, test_labels = map(torch.cat, zip(*loaded.test_minibatches(8), strict=True))
    assert test_inputs.shape == (TEST, 3, 299, 299) and torch.equal(test_labels, loaded.test_labels)


def test_a_streamed_image_is_resized_cropped_and_standardised(tmp_path):
    from PIL import Image

    for colour, folder in (((255, 0, 51), "train"), ((255, 0, 51), "val")):
        (tmp_path / folder / "only").mkdir(parents=True)
        Image.new("RGB", (700, 400), colour).save(tmp_path / folder / "only" / "wide.png")
    image = load("imagenet", root=tmp_path).inputs[0]
    expected = (torch.tensor([1, 0, 0.2]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert image.shape == (3, 299, 299)
    torch.testing.assert_close(image, expected[:, None, None].expand(3, 299, 299), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kept", [0, 500])
def test_an_image_cut_short_is_refused_by_name(folders, kept):
    streamed = load("imagenet", root=folders).inputs
    path = Path(streamed.paths[3].decode())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path} is no whole image"):
        streamed[3]


def test_labels_of_streamed_images_can_be_changed_and_pixels_not(folders):
    loaded = load("imagenet", root=folders)
    corrupted = attack_set(corrupt_labels(loaded, 0.5, seed=0), 5, seed=0)
    assert corrupted.wrong_rate > 0.3 and corrupted.inputs is loaded.inputs
    small = corrupted.subset(12, seed=0)
    where = [list(loaded.inputs.paths).index(path) for path in small.inputs.paths]
    assert torch.equal(corrupted.labels[where], small.labels)
    for corrupt in (shuffle_pixels, random_pixels, gaussian_pixels):
        with pytest.raises(ValueError, match="imagenet keeps its images in files"):
            corrupt(loaded, seed=0)
    with pytest.raises(ValueError, match="imagenet keeps its images in files"):
        center_crop(loaded, 200)


def test_without_its_folders_imagenet_says_what_to_place_where(folders, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(
        FileNotFoundError, match=f"needs the folder {empty}/train.*{empty}/train/<class>/.*{empty}/val/<class>/"
    ):
        load("imagenet", root=empty)
    shutil.rmtree(folders / "val" / "n00000003")
    with pytest.raises(ValueError, match="must hold the same classes, but differ in n00000003"):
        load("imagenet", root=folders)
    shutil.rmtree(folders / "val")
    with pytest.raises(FileNotFoundError, match=f"needs the folder {folders}/val"):
        load("imagenet", root=folders)
