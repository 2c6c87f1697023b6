"""The mean square of the Jacobian norm by random projections scatters as its error says."""

import pytest
import torch
from cases import CASES
from sensitivity_cases import normal

from genlib import models
from genlib.network import Network
from genlib.sensitivity import jacobian_norms, mean_squared_jacobian_norm


@pytest.mark.parametrize("of", ["logits", "probabilities"])
@pytest.mark.parametrize("name", ["dense", "residual"])
def test_projections_scatter_about_the_mean_square_as_their_error_says(name, of):
    module, inputs = CASES[name]()[:2]
    exact = jacobian_norms(module, inputs, of=of).square().mean()
    runs = [
        mean_squared_jacobian_norm(module, inputs, of=of, generator=torch.Generator().manual_seed(seed))
        for seed in range(200)
    ]
    values, errors = torch.stack([r.value for r in runs]), torch.stack([r.standard_error for r in runs])
    assert (values.mean() - exact).abs() < 4 * values.std() / 200**0.5
    torch.testing.assert_close(errors.square().mean().sqrt(), values.std(), rtol=0.2, atol=0)
    assert runs[0].passes == 3


def test_many_classes_are_estimated_in_a_stack_too():
    modules = [models.mlp(5, 100, width=6, seed=seed).double() for seed in range(3)]
    inputs = normal(50, 5)
    found = mean_squared_jacobian_norm(Network.stack(modules), inputs, of="logits", projections=8)
    exact = jacobian_norms(Network.stack(modules), inputs, of="logits").square().mean(-1)
    assert found.value.shape == found.standard_error.shape == (3,)
    assert ((found.value - exact).abs() < 4 * found.standard_error).all()
    assert (found.standard_error < 0.1 * exact).all()


def test_projections_repeat_and_follow_the_generator():
    module, inputs = CASES["dense"]()[:2]
    first, again = (mean_squared_jacobian_norm(module, inputs).value for _ in range(2))
    other = mean_squared_jacobian_norm(module, inputs, generator=torch.Generator().manual_seed(1)).value
    assert first == again != other
