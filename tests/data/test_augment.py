"""Augmentations: every draw is one of the images that it may be, and all are drawn."""

import pytest
import torch
import torch.nn.functional as F

from genlib.data.augment import chain, random_crops, random_flips, random_rolls


def test_crops_are_windows_of_the_padded_image_and_all_are_drawn():
    image = torch.randn(1, 2, 5, 4)
    padded = F.pad(image, (1, 1, 1, 1))[0]
    windows = [padded[:, i : i + 5, j : j + 4] for i in range(3) for j in range(3)]
    torch.manual_seed(0)
    crops = random_crops(1)(image.expand(300, -1, -1, -1))
    which = [{k for k, window in enumerate(windows) if torch.equal(crop, window)} for crop in crops]
    assert all(which)
    assert set.union(*which) == set(range(9))


def test_flips_mirror_about_half():
    torch.manual_seed(0)
    images = torch.randn(400, 1, 3, 3)
    flipped = random_flips()(images)
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    kept = (flipped == images).all(dim=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


def test_rolls_are_torchs_roll():
    torch.manual_seed(0)
    signal = torch.randn(1, 7)
    rolled = random_rolls(2)(signal.expand(200, -1))
    shifts = [{k for k in range(-2, 3) if torch.equal(row, signal[0].roll(k))} for row in rolled]
    assert all(shifts)
    assert set.union(*shifts) == {-2, -1, 0, 1, 2}


def test_chain_applies_them_in_order():
    batch = torch.arange(6.0).view(2, 3)
    assert torch.equal(chain(lambda x: x + 1, lambda x: 2 * x)(batch), 2 * (batch + 1))


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda: random_crops(1)(torch.zeros(3, 28, 28)), r"random_crops takes images .* shape \(3, 28, 28\)"),
        (lambda: random_rolls(2)(torch.zeros(3, 1, 40)), r"random_rolls takes signals .* shape \(3, 1, 40\)"),
        (lambda: random_crops(-1), "padding is -1; give a whole number"),
        (lambda: random_crops(0.5), "padding is 0.5"),
        (lambda: random_rolls(-2), "most is -2; give a whole number"),
    ],
)
def test_batches_of_another_form_are_named(augment, message, unchecked):
    with pytest.raises(ValueError, match=message):
        augment()
