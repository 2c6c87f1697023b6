"""What the corruptions change, how they draw it, and what they leave."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_cases import images, large
from scipy import stats
from sklearn.datasets import load_digits

from genlib.data import (
    Dataset,
    attack_set,
    center_crop,
    corrupt_labels,
    gaussian_pixels,
    load,
    random_pixels,
    shuffle_pixels,
)


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


def test_data_without_a_variance_or_a_wrong_class_are_refused():
    whole = images()
    holed = torch.where(torch.arange(60)[:, None, None, None] == 7, torch.nan, whole.inputs)
    with pytest.raises(ValueError, match=r"dataset: the inputs of .* aren't all finite"):
        gaussian_pixels(replace(whole, inputs=holed), seed=0)
    one = Dataset(whole.inputs, whole.labels * 0, whole.test_inputs, whole.test_labels * 0, ("all",))
    with pytest.raises(ValueError, match="has one class, and so no wrong label"):
        attack_set(one, 5, seed=0)
