import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, jacrev

from genlib import models
from genlib.curvature import hessian_vector_product, trace
from genlib.models import build, deep_memorizing_network, inception_v3, memorizing_network, mlp
from genlib.models.by_hand import whole
from genlib.network import Network
from genlib.sensitivity import transitions


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[:1297]
    return torch.from_numpy(x[order] / 16), torch.from_numpy(y[order])


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("small_inception", {}, 1_649_402),
        ("small_inception", {"batch_norm": False}, 1_649_402),
        ("small_alexnet", {}, 1_387_786),
        ("mlp 3x512", {}, 1_735_178),
        ("mlp 1×512", {}, 1_209_866),
    ],
)
def test_published_parameter_counts_and_logits(name, options, count):
    network = build(name, (3, 28, 28), 10, **options)
    assert parameters(network) == count
    assert network.eval()(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_vgg_holds_the_stated_layers(batch_norm):
    network = models.vgg(7, batch_norm=batch_norm).eval()
    channels = [3, 64, 64, 128, 128, 256, 256, 512, 512]
    weights = sum(9 * a * b + b for a, b in itertools.pairwise(channels)) + 512 * 512 + 512 + 512 * 7 + 7
    assert parameters(network) == weights + (2 * (sum(channels[1:]) + 512) if batch_norm else 0)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(("depth", "shape"), [(1, (3, 32, 32)), (2, (1, 9, 12)), (6, (3, 8, 8))])
def test_network_in_network_holds_the_stated_layers(depth, shape):
    network = models.network_in_network(7, width=5, depth=depth, input_shape=shape, dropout=0.1).eval()
    blocks = [9 * shape[0] * 5, *[9 * 5 * 5] * (depth - 1)]
    assert parameters(network) == sum(blocks) + depth * (2 * 5 * 5 + 3 * (5 + 2 * 5)) + 5 * 7 + 7 + 2 * 7
    assert sum(isinstance(layer, nn.Dropout) for layer in network) == depth
    assert network(torch.zeros(2, *shape)).shape == (2, 7)


def test_convolutional_networks_take_other_images_and_classes():
    for name, shape in (("small_inception", (1, 9, 12)), ("small_alexnet", (1, 9, 13)), ("vgg", (1, 32, 64))):
        assert build(name, shape, 3).eval()(torch.zeros(2, *shape)).shape == (2, 3)


def test_inception_v3_returns_plain_logits():
    network = inception_v3(5, dropout=0.0)
    assert network(torch.zeros(2, 3, 75, 75)).shape == (2, 5)  # in training mode, where an auxiliary head would answer


def test_inception_blocks_see_fixed_scales_only_as_buffers():
    network = models.small_inception()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 19 == sum(name.endswith("bias") for name, _ in network.named_parameters()) - 1
    x = torch.randn(4, 96, 5, 5, generator=torch.Generator().manual_seed(0))
    norms[0].bias.data.fill_(0.5)
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt() + 0.5
    torch.testing.assert_close(norms[0](x), expected)


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


def test_initialization_laws():
    inputs, width = 400, 600
    std = {"default": (3 * inputs) ** -0.5, "xavier": (2 / (inputs + width)) ** 0.5, "he": (2 / inputs) ** 0.5}
    for law, expected in std.items():
        first = mlp(inputs, 2, width=width, initialization=law)[1]
        # 240,000 draws: the standard deviation of the sample's own is below 0.15 %, and this is over six of them.
        assert first.weight.std().item() == pytest.approx(expected, rel=0.01)
        assert (first.bias.abs().max().item() == 0) == (law != "default")
    assert mlp(inputs, 2)[1].weight.abs().max() <= inputs**-0.5


def test_init_scale_multiplies_weights_alone():
    plain, scaled = (
        mlp(6, 2, width=5, normalization="batch"),
        mlp(6, 2, width=5, normalization="batch", init_scale=10.0),
    )
    for (name, p), q in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        grows = name in ("1.weight", "4.weight")
        torch.testing.assert_close(q, 10 * p if grows else p)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: mlp(5, 2, width=4, initialization="xavier", seed=seed),
        lambda seed: models.two_layer(5, width=4, normalization="batch", training_inputs=torch.eye(5), seed=seed),
        lambda seed: models.small_inception(seed=seed),
        lambda seed: models.small_alexnet(input_shape=(1, 8, 8), seed=seed),
        lambda seed: models.vgg(input_shape=(1, 32, 32), seed=seed),
        lambda seed: inception_v3(2, seed=seed),
        lambda seed: memorizing_network(torch.eye(4), torch.arange(4), seed=seed),
        lambda seed: deep_memorizing_network(torch.eye(4), torch.arange(4), 2, seed=seed),
    ],
)
def test_a_seed_fixes_the_weights_and_the_global_state_stays(make):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = make(3), make(3), make(4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    state, same = first.state_dict(), again.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert not all(torch.equal(state[name], value) for name, value in other.state_dict().items())


# The two-layer networks


def cube(samples=9, dimension=5, seed=1):
    return 2.0 * torch.randint(2, (samples, dimension), generator=torch.Generator().manual_seed(seed)).double() - 1


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


def full_trace(network, inputs, targets):
    """tr ∇² of the mean squared error, by all second derivatives."""
    params = {name: p.detach() for name, p in network.named_parameters()}
    second = jacrev(jacrev(lambda p: (functional_call(network, p, (inputs,))[:, 0] - targets).square().mean()))(params)
    return sum(second[name][name].reshape(p.numel(), -1).trace() for name, p in params.items())


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


def test_memorizing_network_fits_the_digits_and_random_labels(digits):
    x, y = digits
    noise = torch.randint(10, (len(y),), generator=torch.Generator().manual_seed(0))
    for labels in (y, noise):
        network = memorizing_network(x, labels)
        assert parameters(network) == 2 * 1297 + 64 == 2658
        assert (network(x) - labels).abs().max().item() < 1e-6


def test_memorizing_network_is_the_theorems(digits):
    x, y = digits[0][:60], F.one_hot(digits[1][:60], 10)
    network = memorizing_network(x, y, seed=1)
    assert parameters(network) == 64 + 60 + 600  # a and b are shared
    z = (x @ network.direction).detach().sort().values
    b = network.biases.detach()
    assert (b < z).all() and (z[:-1] < b[1:]).all()
    matrix = torch.relu(z[:, None] - b)
    assert torch.equal(matrix, matrix.tril())
    assert network.smallest_eigenvalue == pytest.approx(torch.linalg.eigvals(matrix).real.min().item(), rel=1e-6)
    by_hand = sum(torch.relu(x @ network.direction - b[j])[:, None] * network.weights[j] for j in range(60))
    torch.testing.assert_close(network(x), by_hand, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network(x), y.double(), rtol=0, atol=1e-8)


@given(
    targets=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    dimension=st.integers(1, 4),
    depth=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_memorizing_networks_take_any_values(targets, dimension, depth, seed):
    y = torch.tensor(targets, dtype=torch.float64)
    x = torch.randn(len(y), dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    network = memorizing_network(x, y, seed=seed)
    assert parameters(network) == 2 * len(y) + dimension
    # Rounding grows with the slopes, and they with the height of the targets over the distance of the samples.
    tolerance = 1e-13 * len(y) * (1 + y.abs().max().item()) * (1 + 1 / network.smallest_eigenvalue)
    assert (network(x) - y).abs().max().item() <= tolerance
    depth = min(depth, len(y))
    deep = deep_memorizing_network(x, y, depth, seed=seed)
    assert (deep(x) - y).abs().max().item() <= tolerance


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_deep_memorizing_network_is_the_shallow_one_in_narrow_layers(digits, depth):
    x, y = digits
    shallow, deep = memorizing_network(x, y), deep_memorizing_network(x, y, depth)
    widths = [layer.out_features for layer in deep if isinstance(layer, nn.Linear)]
    assert len(widths) == depth + 1
    assert max(widths) <= -(-1297 // depth) + 3
    assert (deep(x) - y).abs().max().item() < 1e-6
    elsewhere = torch.rand(50, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(deep(elsewhere), shallow(elsewhere), rtol=1e-6, atol=1e-6)


def test_deep_memorizing_network_with_several_outputs(digits):
    x, y = digits[0][:50].reshape(50, 1, 8, 8), F.one_hot(digits[1][:50], 10)
    deep = deep_memorizing_network(x, y, 3)
    torch.testing.assert_close(deep(x), y.double(), rtol=0, atol=1e-7)
    assert max(layer.out_features for layer in deep if isinstance(layer, nn.Linear)) == 17 + 1 + 20


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
        (lambda: whole(0.5), "seed is 0.5"),
        (lambda: models.small_inception(0), "classes is 0"),
        (lambda: models.vgg(input_shape=(3, 28, 28)), "at least 32 pixels a side"),
        (lambda: models.vgg(dropout=-0.1), "dropout is -0.1"),
        (lambda: inception_v3(input_shape=(1, 299, 299)), "takes 3 channels"),
        (lambda: build("small_alexnet", (784,), 10), r"input_shape is \(784,\)"),
        (
            lambda: build("small_inceptoin", (3, 28, 28), 10),
            "name 'small_inceptoin' is unknown; nearest: small_inception",
        ),
        (lambda: build("mlp", (3, 28, 28), 10), "nearest: mlp 1x512"),
        (lambda: memorizing_network(torch.zeros(0, 2), torch.zeros(0)), "not empty"),
        (lambda: memorizing_network(torch.eye(3), torch.zeros(2)), r"labels has the shape \(2,\) for 3 inputs"),
        (
            lambda: memorizing_network(torch.eye(3), torch.full((3,), torch.nan)),
            "labels holds values that are not finite",
        ),
        (lambda: memorizing_network(torch.eye(3) / 0, torch.zeros(3)), "inputs holds values that are not finite"),
        (
            lambda: memorizing_network(torch.eye(3)[[0, 1, 2, 1]], torch.arange(4)),
            r"inputs\[1\] and inputs\[3\] are equal",
        ),
        (
            lambda: memorizing_network(torch.tensor([[0.0], [5e-324]], dtype=torch.float64), torch.arange(2)),
            "too close",
        ),
        (lambda: memorizing_network(torch.tensor([[1.0, 0.0], [1.0, 1e-30]]), torch.arange(2)), "too close"),
        (lambda: deep_memorizing_network(torch.eye(3), torch.arange(3), 4), "depth is 4; .* between 1 and .* 3"),
        (lambda: deep_memorizing_network(torch.eye(3), torch.arange(3), 0), "depth is 0"),
    ],
)
def test_bad_input_names_the_argument_and_the_mend(call, says):
    with pytest.raises(ValueError, match=says):
        call()
