"""What all of the wing refuse, and what they find where there is no curvature."""

import pytest
import torch
from curvature_cases import PIECEWISE_LINEAR, made
from torch import nn

from genlib.curvature import (
    batch_sharpness,
    frobenius_norm,
    gauss_newton_eigenvalues,
    gauss_newton_error,
    hessian_vector_product,
    information_criteria,
    log_basin_volume,
    relative_flatness,
    spectral_density,
    top_eigenvalues,
)


def test_a_hessian_of_zero_has_eigenvalues_of_zero():
    case = made(lambda: nn.Sequential(nn.Linear(4, 3)), (4,))
    linear = {"loss": lambda logits, labels: logits[:, 0] + 0 * labels}
    found = top_eigenvalues(*case, 4, **linear)
    assert torch.equal(found.values, torch.zeros(4, dtype=torch.float64)) and found.converged.all()
    assert frobenius_norm(*case, **linear).value == frobenius_norm(*case, **linear).standard_error == 0
    density = spectral_density(*case, steps=5, draws=2, **linear)
    assert (density.nodes == 0).all() and density.weights.sum() == 1
    with pytest.raises(ValueError, match="no eigenvalue"):
        log_basin_volume(*case, 2, **linear)
    with pytest.raises(ValueError, match="zero"):
        gauss_newton_error(*case, **linear)


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (frobenius_norm, {"vectors": 5}, "^vectors is 5"),
        (gauss_newton_error, {"vectors": 5}, "^vectors is 5"),
        (spectral_density, {"steps": 0}, "^steps is 0"),
        (spectral_density, {"draws": 0}, "^draws is 0"),
        (log_basin_volume, {"floor": 1e-6}, "^floor is 1e-06; choose it from tolerance"),
        *((kernel, {"loss": "error"}, "^loss is 'error'") for kernel in (frobenius_norm, spectral_density)),
    ],
)
def test_bad_options_of_the_others_are_refused(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        kernel(*PIECEWISE_LINEAR["dense"](), **options)


@pytest.mark.parametrize(
    "kernel",
    [
        hessian_vector_product,
        lambda *case: top_eigenvalues(*case, 3),
        gauss_newton_eigenvalues,
        information_criteria,
        batch_sharpness,
        lambda module, inputs, labels: relative_flatness(module, inputs),
        frobenius_norm,
        gauss_newton_error,
        spectral_density,
        lambda *case: log_basin_volume(*case, 3),
    ],
)
def test_what_is_not_finite_is_refused(kernel):
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    with pytest.raises(ValueError, match="is not finite"):
        kernel(module, inputs * torch.inf, labels)
