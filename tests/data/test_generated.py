"""MNIST-1D, against the published package, and parity."""

from types import SimpleNamespace

import mnist1d.data as package
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mnist1d.transform import interpolate, pad
from scipy import stats
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import ExtraTreesClassifier

from genlib.data import generated, mnist1d, parity
from genlib.data.generated import _signals


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


def test_parity_of_more_coordinates_than_there_are_is_refused():
    with pytest.raises(ValueError, match="relevant is 4; of 3 coordinates"):
        parity(5, dimension=3, relevant=4, seed=0)
