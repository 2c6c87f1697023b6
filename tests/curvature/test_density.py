"""The density of the eigenvalues, against all of them."""

import pytest
import torch
from curvature_cases import PIECEWISE_LINEAR, full

from genlib.curvature import frobenius_norm, gauss_newton_error, spectral_density
from genlib.estimates import Density
from genlib.network import Network


def test_the_density_is_that_of_all_eigenvalues():
    case, draws = PIECEWISE_LINEAR["dense"](), 40
    exact = torch.linalg.eigvalsh(full(*case))
    found = spectral_density(*case, steps=40, draws=draws)
    assert found.passes == 3 + 6 * 40 * draws and found.nodes.shape == found.weights.shape == (draws, 40)
    grid, width = torch.linspace(-3, 13, 400, dtype=torch.float64), 0.5
    heights = torch.exp(-(((grid[:, None] - exact) / width) ** 2) / 2) / (width * (2 * torch.pi) ** 0.5)
    density = found.on(grid, width=width)
    each = Density(found.nodes.unsqueeze(1), draws * found.weights.unsqueeze(1), 0.0).on(grid, width=width)
    torch.testing.assert_close(each.mean(0), density)
    assert ((density - heights.mean(1)).abs() <= 5 * each.std(0) / draws**0.5 + 1e-3).all()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=r"^width is 0"):
        found.on(grid, width=0.0)


def test_a_stack_has_each_models_density_and_norm():
    built = [PIECEWISE_LINEAR["dense"](seed) for seed in range(2)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    stack = Network.stack(modules)
    density = spectral_density(stack, inputs, labels, steps=6, draws=3)
    assert density.nodes.shape == (2, 3, 6) and density.on(torch.linspace(0, 1, 5).double(), width=0.1).shape == (2, 5)
    expected = torch.stack([full(module, inputs, labels).norm() for module in modules])
    torch.testing.assert_close(frobenius_norm(stack, inputs, labels, vectors=400).value, expected)
    assert gauss_newton_error(stack, inputs, labels).value.shape == (2,)
