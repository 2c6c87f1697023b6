"""The curve of sharpness against divergence."""

import pytest
import torch
from cases import flat, labelled, wide

from genlib.pac_bayes import gaussian_kl, sharpness_kl
from genlib.sharpness import expected_sharpness


@pytest.mark.parametrize("start", [False, True])
def test_the_curve_by_hand(start):
    module, initial, (inputs, labels) = wide(0), wide(1), labelled()
    scales = [0.01, 0.03, 0.1]
    found = sharpness_kl(module, inputs, labels, scales=scales, draws=8, initial=initial if start else None)
    for i, scale in enumerate(scales):
        alone = expected_sharpness(module, inputs, labels, scale=scale, noise="scaled", draws=8)
        torch.testing.assert_close(found.sharpness[i], alone.value)
        torch.testing.assert_close(found.standard_error[i], alone.standard_error)
        std = scale * (10 * flat(module).abs() + 1)
        torch.testing.assert_close(found.kl[i], gaussian_kl(flat(module), std, flat(initial) * start, std))
    assert found.passes == 25


@pytest.mark.parametrize("scales", [[], [0.1, 0.0]])
def test_the_curve_refuses(scales):
    with pytest.raises(ValueError, match="scales is empty or holds"):
        sharpness_kl(wide(), *labelled(), scales=scales, draws=4)
