"""Dense networks are their formulas, the simplified normalizations too."""

import pytest
import torch
import torch.nn.functional as F
from models_cases import cube, full_trace, parameters
from torch import nn

from genlib import models
from genlib.curvature import hessian_vector_product, trace
from genlib.models import mlp
from genlib.network import Network
from genlib.sensitivity import transitions


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", F.relu),
        ("relu6", F.relu6),
        ("hardtanh", F.hardtanh),
        ("hardsigmoid", F.hardsigmoid),
        ("tanh", torch.tanh),
        ("softplus", F.softplus),
    ],
)
def test_mlp_is_what_it_says(activation, function):
    network = mlp(12, 3, width=7, depth=2, activation=activation, init_scale=4.0)
    images = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    first, second, last = [layer for layer in network if isinstance(layer, nn.Linear)]
    x = function(images.flatten(1) @ first.weight.T + first.bias)
    x = function(x @ second.weight.T + second.bias)
    torch.testing.assert_close(network(images), x @ last.weight.T + last.bias)


def test_mlp_options_shape_the_layers():
    kinds = [type(layer) for layer in mlp(4, 3, width=5, depth=2, normalization="layer", dropout=0.2)]
    hidden = [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout]
    assert kinds == [nn.Flatten, *hidden, *hidden, nn.Linear]
    assert isinstance(mlp(4, 3, normalization="batch")[2], nn.BatchNorm1d)
    assert [type(layer) for layer in mlp(4, 3, depth=0)] == [nn.Flatten, nn.Linear]
    assert parameters(mlp(4, 3, width=5, bias=False)) == 4 * 5 + 5 * 3


TWO_LAYER = {
    "no bias": {"bias": False},
    "bias": {},
    "softplus": {"activation": "softplus"},
    "three layers": {"depth": 2},
    "layer": {"normalization": "layer"},
    "batch": {"normalization": "batch", "training_inputs": cube()},
    "batch, no bias": {"normalization": "batch", "training_inputs": cube(), "bias": False},
}


def by_definition(kind, parts, x):
    """Outputs by the formulas of the paper."""
    a = F.linear(x, *parts[: 1 if "no bias" in kind else 2])
    a = F.softplus(a) if kind == "softplus" else F.relu(a)
    if kind == "three layers":
        a = F.relu(a @ parts[2].T)
    if kind == "layer":
        a = torch.stack([row / max(row.norm().item(), 0.01) for row in a])
    return a @ parts[-1].T


@pytest.mark.parametrize("kind", [kind for kind in TWO_LAYER if "batch" not in kind])
def test_two_layer_networks_are_what_they_say(kind):
    network = models.two_layer(5, width=7, seed=2, **TWO_LAYER[kind]).double()
    biases, square = 0 if kind == "no bias" else 7, 49 if kind == "three layers" else 0
    assert parameters(network) == 5 * 7 + biases + square + 7
    with torch.no_grad():
        torch.testing.assert_close(network(cube()), by_definition(kind, list(network.parameters()), cube()))
    three = models.two_layer(5, width=7, outputs=3, seed=2, **TWO_LAYER[kind])
    assert three.double()(cube()).shape == (9, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_simplified_batch_norm_is_its_definition_and_gradients_flow_through_the_scale(bias):
    training, x = cube(), cube(4, seed=2)
    network = models.two_layer(5, width=7, bias=bias, normalization="batch", training_inputs=training).double()
    assert parameters(network) == 5 * 7 + 7 * bias + 7 + 7
    weights = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    w1, b1 = weights["0.hidden.0.weight"], weights.get("0.hidden.0.bias", torch.zeros(7, dtype=torch.float64))
    scale = torch.stack([sum(F.relu(w @ row + b) ** 2 for row in training) / 9 for w, b in zip(w1, b1, strict=True)])
    f = (weights["0.weight"] * F.relu(x @ w1.T + b1) / scale.sqrt()) @ weights["1.weight"].T
    torch.testing.assert_close(network(x), f)
    expected = torch.autograd.grad(f.square().sum(), list(weights.values()))
    for found, by_hand in zip(
        torch.autograd.grad(network(x).square().sum(), network.parameters()), expected, strict=True
    ):
        torch.testing.assert_close(found, by_hand)
    assert torch.equal(network[0].training_inputs, training)
    assert "0.training_inputs" in network.state_dict()


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_the_scale_of_the_first_layer_does_not_matter_to_a_normalized_network(kind):
    plain, scaled = (
        models.two_layer(5, width=7, first_layer_scale=scale, seed=3, **TWO_LAYER[kind]).double()
        for scale in (1.0, 0.2)
    )
    first = plain[0].hidden[0] if kind == "batch" else plain[0]
    assert first.weight.abs().max() <= 5**-0.5
    torch.testing.assert_close(
        (scaled[0].hidden[0] if kind == "batch" else scaled[0]).weight, 0.2 * first.weight, rtol=1e-6, atol=0
    )
    torch.testing.assert_close(plain(cube()), scaled(cube()), rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(plain(cube()).sum(), first.parameters())
    along = sum((g * p).sum() for g, p in zip(gradients, first.parameters(), strict=True))
    assert along.abs() < 1e-12 and gradients[0].norm() > 1e-3


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_silent_units_and_samples_leave_values_and_derivatives_finite(kind):
    network = models.two_layer(5, width=7, **TWO_LAYER[kind]).double()
    first = network[0].hidden[0] if kind == "batch" else network[0]
    with torch.no_grad():
        first.weight[0], first.bias[0] = 0, -1  # a unit that never fires
        first.weight[1], first.bias[1] = torch.tensor([3.0, 0, 0, 0, 0]), -3.5  # one beyond the cube
        first.weight[2:], first.bias[2:] = 0.1 * first.weight[2:], -0.6  # no unit fires at most samples
    x = torch.cat([cube(), torch.tensor([[2.0, 0, 0, 0, 0]], dtype=torch.float64)])
    labels = (torch.arange(10) % 2).long()
    assert network(x).isfinite().all()
    if kind == "batch":
        assert (network[0](x)[:, :2] == 0).all()
    else:
        assert (network(x)[:9] == 0).any() and (network(x)[9] != 0).all()
    v = {name: torch.ones_like(p) for name, p in network.named_parameters()}
    for loss in ("mse", "cross_entropy"):
        product = hessian_vector_product(network, x, labels, loss=loss)(v)
        assert all(part.isfinite().all() for part in product.values())


@pytest.mark.parametrize("kind", ["layer", "batch"])
def test_kernels_know_the_simplified_normalizations_as_smooth(kind):
    networks = [models.two_layer(5, width=3, seed=seed, **TWO_LAYER[kind]).double() for seed in range(2)]
    x, labels = cube(), torch.arange(9) % 2
    graph = Network.of(networks[0])
    assert [layer.kind for layer in graph.layers].count("smooth") == 1 and not graph.piecewise_linear
    graph.require_known()
    for refused in (
        lambda: trace(networks[0], x, labels, method="exact"),
        lambda: transitions(networks[0], x),
    ):
        with pytest.raises(ValueError, match=r"^network: \d is not piecewise linear"):
            refused()
    stack = Network.stack(networks)
    both = torch.stack([network(x) for network in networks])
    torch.testing.assert_close(stack.apply(stack.params, x), both.detach())
    vectors = 3 * parameters(networks[0])
    found = trace(stack, x, labels, loss="mse", vectors=vectors)
    torch.testing.assert_close(found.value, torch.stack([full_trace(n, x, 2.0 * labels - 1) for n in networks]))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mlp(4, 2, width=0), "width is 0"),
        (lambda: mlp(0, 2), "inputs is 0"),
        (lambda: mlp(4, 2, depth=-1), "depth is -1"),
        (lambda: mlp(4, 2, activation="rleu"), "activation 'rleu' is unknown; nearest: relu"),
        (lambda: mlp(4, 2, normalization="bacth"), "normalization 'bacth' is unknown; nearest: batch"),
        (lambda: mlp(4, 2, initialization="xavir"), "initialization 'xavir' is unknown; nearest: xavier"),
        (lambda: mlp(4, 2, dropout=1.0), "dropout is 1.0"),
        (lambda: mlp(4, 2, init_scale=0.0), "init_scale is 0.0"),
        (lambda: mlp(4, 2, seed=-1), "seed is -1"),
        (lambda: models.two_layer(4, outputs=0), "outputs is 0"),
        (lambda: models.two_layer(4, depth=0), "depth is 0"),
        (lambda: models.two_layer(4, activation="sofplus"), "activation 'sofplus' is unknown; nearest: softplus"),
        (lambda: models.two_layer(4, normalization="lyer"), "normalization 'lyer' is unknown; nearest: layer"),
        (lambda: models.two_layer(4, normalization="layer", depth=2), "depth is 2 with normalization 'layer'"),
        (lambda: models.two_layer(4, normalization="layer", epsilon=0.0), "epsilon is 0.0"),
        (lambda: models.two_layer(4, first_layer_scale=0.0), "first_layer_scale is 0.0"),
        (lambda: models.two_layer(5, normalization="batch"), "training_inputs belong to normalization 'batch'"),
        (lambda: models.two_layer(5, training_inputs=cube()), "training_inputs belong to normalization 'batch'"),
        (
            lambda: models.two_layer(4, normalization="batch", training_inputs=cube()),
            "training_inputs have 5 numbers each; inputs is 4",
        ),
    ],
)
def test_bad_input_names_the_argument_and_the_mend(call, says):
    with pytest.raises(ValueError, match=says):
        call()
