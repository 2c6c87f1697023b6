"""The flattest networks that memorize, and that generalize, reach the bound on the trace, and none lies below it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_cases import full_trace
from torch.func import functional_call, grad, vmap

from genlib import data, models
from genlib.curvature import gauss_newton_eigenvalues, trace
from genlib.models import flattest_generalizing_network, flattest_memorizing_network, smallest_trace

D, N = 30, 100
BOUNDS = {None: 4 * math.sqrt(D + 1), "layer": 2.0}


def cube(samples=N, dimension=D, seed=0):
    """Distinct corners with their labels."""
    inputs, labels = data.parity(samples, dimension=dimension, seed=seed)
    first = np.sort(np.unique(inputs.numpy(), axis=0, return_index=True)[1])
    return inputs[first].double(), labels[first]


def corners(dimension):
    return torch.tensor(list(itertools.product((1.0, -1.0), repeat=dimension)), dtype=torch.float64)


def signs(labels):
    return 2.0 * labels - 1


def squared_gradients(network, inputs):
    """‖∇f(x_i)‖² over all parameters."""
    params = dict(network.named_parameters())
    of_one = grad(lambda p, x: functional_call(network, p, (x[None],)).sum())
    gradients = vmap(of_one, in_dims=(None, 0))(params, inputs)
    return sum(g.flatten(1).square().sum(1) for g in gradients.values()).detach()


def both(normalization, inputs, labels):
    return (
        flattest_memorizing_network(inputs, labels, normalization=normalization),
        flattest_generalizing_network(inputs.shape[1], normalization=normalization),
    )


@pytest.mark.parametrize("normalization", BOUNDS)
def test_both_flattest_networks_fit_and_have_the_trace_of_the_bound(normalization):
    inputs, labels = cube()
    bound = smallest_trace(inputs, labels, normalization=normalization).item()
    assert bound == pytest.approx(BOUNDS[normalization], rel=1e-12)
    for network in both(normalization, inputs, labels):
        assert (network(inputs)[:, 0] - signs(labels)).abs().max() < 1e-12
        assert 2 * squared_gradients(network, inputs).mean().item() == pytest.approx(bound, rel=1e-9)  # Lemma 4.1
        eigenvalues = gauss_newton_eigenvalues(network, inputs, labels, loss="mse")
        assert eigenvalues.sum().item() == pytest.approx(bound, rel=1e-9)
        if normalization is None:
            exact = trace(network, inputs, labels, loss="mse", method="exact").value.item()
            assert exact == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("normalization", BOUNDS)
def test_the_lemmas_trace_is_that_of_the_full_hessian(normalization):
    inputs, labels = cube(12, 7)
    bound = smallest_trace(inputs, labels, normalization=normalization).item()
    for network in both(normalization, inputs, labels):
        vectors = 3 * sum(p.numel() for p in network.parameters())
        found = trace(network, inputs, labels, loss="mse", method="xtrace", vectors=vectors).value.item()
        assert found == pytest.approx(bound, rel=1e-9)
        assert full_trace(network, inputs, signs(labels)).item() == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("normalization", BOUNDS)
def test_one_knows_the_samples_alone_and_the_other_the_parity(normalization):
    inputs, labels = cube(50, 10)
    memorizing, generalizing = both(normalization, inputs, labels)
    everywhere = corners(10)
    parity = everywhere[:, 0] * everywhere[:, 1]
    assert (generalizing(everywhere)[:, 0] - parity).abs().max() < 1e-12
    f = memorizing(everywhere)[:, 0]
    seen = (everywhere[:, None] == inputs).all(2).any(1)
    assert seen.sum() == len(inputs)
    assert (f[~seen] == 0).all() and (f[seen] - parity[seen]).abs().max() < 1e-12
    assert (f * parity <= 0).double().mean().item() == 1 - len(inputs) / 2**10
    fresh, _ = cube(2000, seed=1)
    assert (flattest_memorizing_network(*cube(), normalization=normalization)(fresh) == 0).all()


def ball(samples=40, dimension=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(samples, dimension, dtype=torch.float64, generator=generator)
    radius = torch.rand(samples, 1, dtype=torch.float64, generator=generator) ** (1 / dimension)
    inputs = math.sqrt(dimension) * radius * torch.nn.functional.normalize(direction, dim=1)
    return inputs, inputs[:, 0].abs() - inputs[:, 1].abs()


@pytest.mark.parametrize("on_a_sphere", [True, False])
def test_points_in_convex_position_with_any_targets_are_memorized_as_flatly(on_a_sphere):
    inputs, targets = ball()
    if on_a_sphere:
        inputs = torch.nn.functional.normalize(inputs, dim=1)
    targets[3] = 0
    network = flattest_memorizing_network(inputs, targets)
    assert (network(inputs)[:, 0] - targets).abs().max() < 1e-10
    reach = (inputs.square().sum(1) + 1).sqrt()
    bound = 4 * (reach * targets.abs()).mean().item()
    assert smallest_trace(inputs, targets).item() == pytest.approx(bound, rel=1e-12)
    assert 2 * squared_gradients(network, inputs).mean().item() == pytest.approx(bound, rel=1e-9)
    assert (network[0](inputs) > 0).sum() == len(inputs) - 1  # one unit a sample, but where the target is zero
    small = flattest_memorizing_network(inputs, targets.sign() + (targets == 0), normalization="layer", epsilon=0.5)
    assert 2 * squared_gradients(small, inputs).mean().item() == pytest.approx(2, rel=1e-9)


ARCHITECTURES = {
    "bias": {},
    "no bias": {"bias": False},
    "three layers": {"depth": 2},
    "layer": {"normalization": "layer", "epsilon": 0.3},
}


@given(kind=st.sampled_from(sorted(ARCHITECTURES)), seed=st.integers(0, 10_000), scale=st.floats(0.01, 10))
def test_no_network_is_flatter_than_the_bound(kind, seed, scale):
    options = ARCHITECTURES[kind]
    network = models.two_layer(4, width=5, first_layer_scale=scale, seed=seed, **options).double()
    inputs = 2 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        targets = network(inputs)[:, 0]
    bound = smallest_trace(inputs, targets, **options).item()
    assert 2 * squared_gradients(network, inputs).mean().item() >= bound * (1 - 1e-12)


def test_the_bound_of_three_layers_is_reached_by_a_path_of_equal_shares():
    # f = ‖x'‖ u v v' with all three gradients of one norm: ‖x'‖ v v' = ‖x'‖ u v' = ‖x'‖ u v, so u = v = v'
    inputs, y = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64), 1.7
    network = models.two_layer(3, width=1, depth=2).double()
    reach = math.sqrt(inputs.square().sum().item() + 1)
    with torch.no_grad():
        network[0].weight.copy_(inputs)
        network[0].bias.fill_(1)
        for parameter in network[0].parameters():
            parameter *= (y / reach) ** (1 / 3) / reach
        network[2].weight.fill_((y / reach) ** (1 / 3))
        network[4].weight.fill_((y / reach) ** (1 / 3))
    assert network(inputs).item() == pytest.approx(y)
    bound = smallest_trace(inputs, torch.tensor([y], dtype=torch.float64), depth=2).item()
    assert bound == pytest.approx(6 * y ** (4 / 3) * reach ** (2 / 3))
    assert 2 * squared_gradients(network, inputs).mean().item() == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("skew", [0.0, 0.3, 0.9])
def test_a_network_without_biases_is_the_parity(skew):
    network = models.interpolating_network_without_bias(6, skew=skew)
    x = corners(6)
    torch.testing.assert_close(network(x)[:, 0], x[:, 0] * x[:, 1], rtol=0, atol=1e-14)
    assert sum(p.numel() for p in network.parameters()) == 4 * 6 + 4
    assert 2 * squared_gradients(network, x).mean() >= smallest_trace(x, x[:, 0] * x[:, 1], bias=False)


def test_a_cube_that_is_known_too_well_is_no_counterexample():
    inputs = corners(3)[:4]
    labels = torch.tensor([0, 1, 0, 1])
    with pytest.warns(UserWarning, match=r"^inputs are 4 of the 8 corners .* right on 50% .* larger dimension"):
        flattest_memorizing_network(inputs, labels)


X = cube(5, 6)[0]
Y = torch.tensor([0, 1, 0, 1, 1])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: flattest_memorizing_network(X[[0, 1, 2, 0]], Y[:4]), r"^inputs\[0\] and inputs\[3\] are equal"),
        (lambda: flattest_memorizing_network(X[:1], Y[:1]), "^inputs has 1 samples; give at least 2"),
        (lambda: flattest_memorizing_network(X, Y + 1), "^labels has values other than 0 and 1; give other targets"),
        (lambda: flattest_memorizing_network(X, Y[:3]), r"^inputs has the shape \(5, 6\) and labels \(3,\)"),
        (lambda: flattest_memorizing_network(X / 0, Y), "^inputs or labels hold values that are not finite"),
        (
            lambda: flattest_memorizing_network(torch.cat([X[:4], X[:4].mean(0, keepdim=True)]), Y),
            r"^inputs\[4\] is no extreme point",
        ),
        (lambda: flattest_memorizing_network(X, Y, normalization="batch"), "^normalization is 'batch'"),
        (lambda: flattest_memorizing_network(X, Y, normalization="layer", epsilon=0.0), "^epsilon is 0.0"),
        (
            lambda: flattest_memorizing_network(X, Y, normalization="layer", epsilon=6.0),
            r"^epsilon is 6.0; above .*, here 5.29, other networks are flatter",
        ),
        (lambda: flattest_generalizing_network(1), "^dimension is 1; x₁x₂ needs at least 2"),
        (lambda: flattest_generalizing_network(3, normalization="batch"), "^normalization is 'batch'"),
        (lambda: flattest_generalizing_network(3, normalization="layer", epsilon=9.0), "^epsilon is 9.0; above"),
        (lambda: models.interpolating_network_without_bias(3, skew=1.0), "^skew is 1.0"),
        (lambda: models.interpolating_network_without_bias(1), "^dimension is 1"),
        (lambda: smallest_trace(X, Y, depth=0), "^depth is 0; it must be at least 1"),
        (lambda: smallest_trace(X, Y, depth=2, normalization="layer"), "^depth is 2 with normalization 'layer'"),
    ],
)
def test_bad_input_names_the_argument_and_the_mend(call, says):
    with pytest.raises(ValueError, match=says):
        call()
