"""The volume of a basin, against the eigenvalues of the full Hessian."""

import pytest
import torch
from curvature_cases import MEANS, PIECEWISE_LINEAR, full

from genlib.curvature import log_basin_volume
from genlib.network import Network


@pytest.mark.parametrize("loss", MEANS)
def test_the_volume_is_that_of_the_full_hessians_eigenvalues(loss):
    case = PIECEWISE_LINEAR["dense"]()
    exact = torch.linalg.eigvalsh(full(*case, loss)).flip(0)
    found = log_basin_volume(*case, 5, loss=loss)
    torch.testing.assert_close(found.value, -exact[:5].log().sum())
    assert (found.counted, found.negative, found.standard_error) == (5, 0, 0)
    floor = 1e-2
    found = log_basin_volume(*case, floor=floor, loss=loss)
    above = exact[exact > floor * exact[0]]
    assert found.counted == len(above) > 16 and len(found.eigenvalues) == 64
    torch.testing.assert_close(found.value, -above.log().sum())


def test_eigenvalues_below_zero_are_counted_and_left_out():
    case = PIECEWISE_LINEAR["dense"]()
    exact = torch.linalg.eigvalsh(full(*case)).flip(0)
    found = log_basin_volume(*case, 106, floor=1e-3, tolerance=1e-9)
    assert found.negative > 0 and found.counted == (exact > 1e-3 * exact[0]).sum()
    torch.testing.assert_close(found.value, -exact[exact > 1e-3 * exact[0]].log().sum())
    torch.testing.assert_close(log_basin_volume(*case, floor=1e-3, tolerance=1e-9).value, found.value)


def test_a_stack_has_each_models_volume():
    built = [PIECEWISE_LINEAR["dense"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    for options in ({"k": 4}, {"floor": 0.05}):
        found = log_basin_volume(Network.stack(modules), inputs, labels, **options)
        singles = [log_basin_volume(module, inputs, labels, **options) for module in modules]
        torch.testing.assert_close(found.value, torch.stack([one.value for one in singles]))
        assert torch.equal(found.counted, torch.stack([one.counted for one in singles]))
