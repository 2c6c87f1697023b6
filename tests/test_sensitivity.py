import copy
import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, HostReads, Residual, Untraceable, drawn, unchanged
from hypothesis import given
from torch import nn
from torch.func import jacrev, vmap

from genlib import models
from genlib.network import Network, operations
from genlib.sensitivity import (
    breakpoints,
    ellipse,
    jacobian_norms,
    mean_squared_jacobian_norm,
    pieces,
    random_ellipses,
    transitions,
    translation_loop,
)
from genlib.sensitivity.jacobians import _in_row_space

PIECEWISE = ("relu", "relu6", "hardtanh", "hardsigmoid")
OUTPUTS = {"logits": lambda f: f, "probabilities": lambda f: f.softmax(-1)}
MATRIX = {"frobenius": torch.linalg.matrix_norm, "spectral": lambda j: torch.linalg.matrix_norm(j, 2)}


class Functional(nn.Module):
    """Activations as functions and methods, at odd places, some of them in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv1d(2, 3, 3, padding=1),
            nn.Conv1d(3, 3, 3, padding=1),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        x = F.hardtanh(self.first(x), -0.3, max_val=0.4)
        x = x + self.second(x).clamp(min=-0.2).relu_()
        x = F.max_pool1d(F.leaky_relu(input=x, negative_slope=0.2), 2, stride=2)
        return self.head(abs_(x).flatten(1))


def abs_(x):
    return x.abs().clamp(0.05, 0.9)


def convolutional(seed=0):
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3)]
    return drawn(nn.Sequential(*layers, nn.Hardtanh(-0.5, 0.7), nn.AdaptiveMaxPool2d(1), nn.Flatten()).double(), seed)


def dense(seed=0, width=7, depth=3, activation="relu"):
    """A network whose units bend within the range of standard normal inputs."""
    module = models.mlp(3, 4, width=width, depth=depth, activation=activation, initialization="he", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in module:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.bias, generator=generator)
            layer.weight.data *= 2
    return module.double()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jacobians(module, inputs, of):
    with torch.no_grad():
        return vmap(jacrev(lambda x: OUTPUTS[of](module(x.unsqueeze(0)))[0]))(inputs).flatten(2)


# ---------------------------------------------------------------------------------------------------- Jacobian norms


NETWORKS = {
    "dense": lambda: CASES["dense"]()[:2],
    "smooth": lambda: (models.mlp(5, 4, width=6, activation="tanh", normalization="layer").double(), normal(7, 5)),
    "residual": lambda: CASES["residual"]()[:2],
    "pooled": lambda: (convolutional(), normal(7, 2, 6, 6)),
    "linear": lambda: (nn.Sequential(nn.Linear(5, 3)).double(), normal(7, 5)),
    "functional": lambda: (drawn(Functional().double()), normal(7, 2, 4)),
}


@pytest.mark.parametrize("norm", MATRIX)
@pytest.mark.parametrize("of", OUTPUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_norms_are_those_of_the_whole_jacobian(name, of, norm):
    module, inputs = NETWORKS[name]()
    found = jacobian_norms(module, inputs, of=of, norm=norm)
    torch.testing.assert_close(found, MATRIX[norm](jacobians(module, inputs, of)))


def test_norms_are_those_of_finite_differences():
    module, inputs = CASES["residual"]()[:2]
    step, directions = 1e-6, torch.eye(inputs[0].numel(), dtype=torch.float64).view(-1, *inputs.shape[1:])
    expected = []
    for x in inputs:
        with torch.no_grad():
            up, down = (module(x + sign * step * directions).softmax(-1) for sign in (1, -1))
        expected.append(torch.linalg.matrix_norm((up - down) / (2 * step)))
    torch.testing.assert_close(jacobian_norms(module, inputs), torch.stack(expected), rtol=1e-6, atol=0)


def test_the_square_is_what_small_noise_on_the_input_does_on_average():
    module, inputs = CASES["dense"]()[:2]
    epsilon, draws = 1e-8, 40_000
    noise = math.sqrt(epsilon) * normal(draws, 1, inputs.shape[1])
    with torch.no_grad():
        moved = module((inputs + noise).flatten(0, 1)).softmax(-1).view(draws, len(inputs), -1)
        squares = (moved - module(inputs).softmax(-1)).square().sum(-1).mean(0)
    torch.testing.assert_close(squares / epsilon, jacobian_norms(module, inputs).square(), rtol=0.05, atol=0)


@given(st.integers(0, 10**6), st.floats(0.01, 30), st.sampled_from(list(MATRIX)))
def test_softmax_at_least_halves_the_norm(seed, scale, norm):
    module, inputs = dense(seed % 7), scale * normal(5, 3, seed=seed)
    found = jacobian_norms(module, inputs, of=("logits", "probabilities"), norm=norm)
    assert (found["probabilities"] <= found["logits"] / 2 * (1 + 1e-12)).all()


@given(st.integers(0, 10**6), st.sampled_from(list(OUTPUTS)), st.sampled_from(list(MATRIX)))
def test_turning_the_inputs_changes_nothing(seed, of, norm):
    module, inputs = dense(seed % 7), normal(5, 3, seed=seed)
    turn = torch.linalg.qr(normal(3, 3, seed=seed + 1)).Q
    turned = copy.deepcopy(module)
    turned[1].weight.data @= turn
    found = [jacobian_norms(m, x, of=of, norm=norm) for m, x in ((module, inputs), (turned, inputs @ turn))]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("norm", MATRIX)
@pytest.mark.parametrize("scale", [1, 10, 50])
def test_nothing_cancels_where_a_class_is_nearly_certain(scale, norm):
    module = dense(depth=1)
    module[-1].weight.data *= scale
    inputs = normal(40, 3)
    expected = jacobian_norms(module, inputs, norm=norm)
    found = jacobian_norms(copy.deepcopy(module).float(), inputs.float(), norm=norm)
    with torch.no_grad():
        logits = module(inputs)
    seen = logits.topk(2).values.diff().squeeze().abs() < 80  # beyond, float32 holds no such probability
    torch.testing.assert_close(found.double()[seen], expected[seen], rtol=1e-3, atol=0)
    assert expected[seen].min() < 1e-8 or scale == 1


@pytest.mark.parametrize("norm", MATRIX)
def test_more_inputs_than_units_are_turned_away(norm):
    module, inputs = models.mlp(4 * 10, 3, width=6, depth=2).double(), normal(30, 4, 10)
    assert _in_row_space(Network.of(module), inputs, 3)[1].shape == (30, 6)
    for of in OUTPUTS:
        found = jacobian_norms(module, inputs, of=of, norm=norm)
        torch.testing.assert_close(found, MATRIX[norm](jacobians(module, inputs, of)))
    torch.testing.assert_close(jacobian_norms(Network.stack([module]), inputs, norm=norm)[0], found)


def test_both_outputs_share_the_passes(monkeypatch):
    module, inputs = CASES["dense"]()[:2]
    single = {of: jacobian_norms(module, inputs, of=of) for of in OUTPUTS}
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or grad(*args, **kwargs))
    both = jacobian_norms(module, inputs, of=("logits", "probabilities"))
    torch.testing.assert_close(both, single)
    assert len(calls) == 4  # classes


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_chunks_change_nothing(chunk_size):
    module, inputs = CASES["residual"]()[:2]
    for norm in MATRIX:
        found = jacobian_norms(module, inputs, norm=norm, chunk_size=chunk_size)
        torch.testing.assert_close(found, jacobian_norms(module, inputs, norm=norm))


def test_jacobians_that_exceed_the_limit_are_taken_in_chunks(monkeypatch):
    sizes = []

    class Recorded(nn.Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    module, inputs = Recorded(6, 5), torch.ones(20, 6)
    expected = jacobian_norms(module, inputs)
    monkeypatch.setattr("genlib.sensitivity.jacobians._JACOBIAN_BYTES", 3 * 6 * 5 * 4)  # of three samples
    sizes.clear()
    torch.testing.assert_close(jacobian_norms(module, inputs), expected)
    assert max(sizes) == 3 and sum(sizes) == 20 + 1


@pytest.mark.parametrize("name", ["dense", "residual"])
def test_a_stack_gives_each_networks_own(name):
    built = [CASES[name](seed) for seed in range(3)]
    modules, inputs = [case[0] for case in built], built[0][1]
    for of in OUTPUTS:
        for count in (1, 3):
            found = jacobian_norms(Network.stack(modules[:count]), inputs, of=of)
            torch.testing.assert_close(found, torch.stack([jacobian_norms(m, inputs, of=of) for m in modules[:count]]))
    both = jacobian_norms(Network.stack(modules), inputs, of=("logits", "probabilities"))
    assert both["logits"].shape == both["probabilities"].shape == (3, len(inputs))


def test_a_network_that_cannot_be_traced_is_measured():
    inner = dense()
    inputs = normal(6, 3)
    torch.testing.assert_close(jacobian_norms(Untraceable(*inner), inputs), jacobian_norms(inner, inputs))


def test_precision_is_that_of_the_weights_and_half_is_upcast():
    module, inputs = dense(), normal(6, 3)
    assert jacobian_norms(module, inputs.float()).dtype == torch.float64
    half = copy.deepcopy(module).bfloat16()
    found = jacobian_norms(half, inputs.bfloat16())
    torch.testing.assert_close(found, jacobian_norms(copy.deepcopy(half).float(), inputs.bfloat16().float()))


@pytest.mark.parametrize("kernel", [jacobian_norms, mean_squared_jacobian_norm])
def test_nothing_is_touched_and_the_host_reads_once(kernel):
    module, inputs = CASES["residual"]()[:2]
    with unchanged(module, inputs):
        kernel(module, inputs)
    with HostReads() as few:
        kernel(module, inputs, chunk_size=12)
    with HostReads() as many:
        kernel(module, inputs, chunk_size=1)
    assert few.count == many.count


class Detached(nn.Linear):
    def forward(self, x):
        return super().forward(x.detach())


@pytest.mark.parametrize("kernel", [jacobian_norms, mean_squared_jacobian_norm])
@pytest.mark.parametrize(
    ("module", "inputs", "options", "message"),
    [
        (nn.Linear(3, 2), torch.ones(4, 3), {"of": "outputs"}, "^of is 'outputs'; choose probabilities"),
        (nn.Linear(3, 2), torch.ones(4, 3).long(), {}, r"^inputs is of torch\.int64"),
        (nn.Linear(3, 2), torch.ones(4), {}, "^inputs is empty, or of one axis alone"),
        (nn.Linear(3, 2), torch.ones(0, 3), {}, "^inputs is empty"),
        (nn.Linear(3, 2), torch.full((4, 3), torch.inf), {}, "^network: its Jacobian norm"),
        (nn.Linear(3, 2), torch.ones(4, 3), {"chunk_size": 0}, "^chunk_size is 0"),
        (nn.Linear(3, 1), torch.ones(4, 3), {}, "2 or more classes"),
        (nn.Conv1d(1, 1, 2), torch.ones(4, 1, 3), {}, r"must be \[samples, classes\]"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.ones(4, 3), {}, "BatchNorm in training mode"),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout()), torch.ones(4, 3), {}, "dropout in training mode"),
        (Detached(3, 2), torch.ones(4, 3), {}, "no derivative with respect to inputs"),
    ],
)
def test_bad_input_is_refused(kernel, module, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        kernel(module, inputs, **options)


def test_bad_options_are_refused():
    module, inputs = nn.Linear(3, 2), torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"^norm is 'nuclear'; choose frobenius or spectral"):
        jacobian_norms(module, inputs, norm="nuclear")
    with pytest.raises(ValueError, match=r"^of is"):
        jacobian_norms(module, inputs, of=())
    with pytest.raises(ValueError, match=r"^projections is 1"):
        mean_squared_jacobian_norm(module, inputs, projections=1)


# ---------------------------------------------------------------------------------------------------- its estimate


@pytest.mark.parametrize("of", OUTPUTS)
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


# ------------------------------------------------------------------------------------------------------- transitions


def codes(module, x):
    """The index of the linear piece of every unit at one point, number by number."""
    found = []
    x = x.unsqueeze(0)
    for layer in module:
        below = x
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d | nn.AdaptiveMaxPool2d):
            pool = F.max_pool2d if isinstance(layer, nn.MaxPool2d) else F.adaptive_max_pool2d
            size = 2 if isinstance(layer, nn.MaxPool2d) else 1
            found += [("argmax", i) for i in pool(below, size, return_indices=True)[1].flatten().tolist()]
        elif type(layer) in (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid):
            low, high = {
                nn.ReLU: lambda layer: (0, math.inf),
                nn.ReLU6: lambda layer: (0, 6),
                nn.Hardtanh: lambda layer: (layer.min_val, layer.max_val),
                nn.Hardsigmoid: lambda layer: (-3, 3),
            }[type(layer)](layer)
            found += [0 if z <= low else 1 if z <= high else 2 for z in below.flatten().tolist()]
    return found


def naive_transitions(module, path):
    with torch.no_grad():
        at = [codes(module, x) for x in path]
    return torch.tensor(
        [
            sum(int(p != q) if isinstance(p, tuple) else abs(p - q) for p, q in zip(here, there, strict=True))
            for here, there in zip(at, at[1:] + at[:1], strict=True)
        ]
    )


@pytest.mark.parametrize("activation", PIECEWISE)
def test_transitions_of_dense_networks_are_those_counted_unit_by_unit(activation):
    module = dense(activation=activation)
    path = 8 * ellipse(*normal(3, 3), points=30)
    expected = naive_transitions(module, path)
    assert torch.equal(transitions(module, path), expected)
    assert expected.sum() > 10


def test_transitions_of_convolutions_and_pools_are_those_counted_unit_by_unit():
    module, path = convolutional(), 3 * ellipse(*normal(3, 2, 6, 6), points=20)
    expected = naive_transitions(module, path)
    assert torch.equal(transitions(module, path), expected)
    assert expected.sum() > 10


def test_one_neuron_changes_twice_on_a_loop_however_many_points():
    module = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    module[0].weight.data, module[0].bias.data = torch.tensor([[1.0, 0.3]]).double(), torch.tensor([0.2]).double()
    for points in (7, 100, 200):
        angles = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
        circle = torch.stack([angles.cos(), angles.sin()], 1)
        found = transitions(module, circle)
        assert found.sum() == 2 and found.max() == 1
    assert transitions(module, 0.01 * circle).sum() == 0


def test_the_last_step_leads_back_to_the_first_point():
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2)).double()
    module[0].weight.data.fill_(1)
    path = torch.tensor([[-1.0], [-2.0], [3.0]]).double()
    assert transitions(module, path).tolist() == [0, 1, 1]
    assert transitions(module, path, chunk_size=1).tolist() == [0, 1, 1]


def test_a_piece_jumped_over_counts_twice():
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU6(), nn.Linear(1, 2)).double()
    module[0].weight.data.fill_(1)
    assert transitions(module, torch.tensor([[-1.0], [9.0]]).double()).tolist() == [2, 2]
    assert transitions(module, torch.tensor([[-1.0], [3.0], [9.0]]).double()).tolist() == [1, 1, 2]


class Written(nn.Module):
    """One operation on the input itself."""

    def __init__(self, function):
        super().__init__()
        self.function, self.head = function, nn.Linear(1, 2).double()

    def forward(self, x):
        return self.head(self.function(x))


@pytest.mark.parametrize(
    ("function", "kinks"),
    [
        (lambda x: F.relu(x), [0]),
        (lambda x: torch.relu(input=x), [0]),
        (lambda x: x.relu(), [0]),
        (lambda x: F.relu6(x), [0, 6]),
        (lambda x: F.leaky_relu(x, 0.3), [0]),
        (lambda x: F.hardtanh(x), [-1, 1]),
        (lambda x: F.hardtanh(x, -2, 3), [-2, 3]),
        (lambda x: F.hardtanh(x, max_val=5), [-1, 5]),
        (lambda x: F.hardsigmoid(x), [-3, 3]),
        (lambda x: x.clamp(0.5), [0.5]),
        (lambda x: x.clamp(max=-0.5), [-0.5]),
        (lambda x: x.clamp(-2, 4), [-2, 4]),
        (lambda x: x.abs(), [0]),
        (lambda x: torch.abs(x), [0]),
    ],
)
def test_every_way_to_write_an_activation_has_its_kinks(function, kinks):
    path = torch.arange(-7.9, 8, 0.1, dtype=torch.float64).unsqueeze(1)
    found = transitions(Written(function), path)
    assert path[:-1][found[:-1] > 0].flatten().tolist() == pytest.approx(kinks, abs=0.11)
    assert found[-1] == len(kinks)


@pytest.mark.parametrize(
    "layer", [nn.PReLU(), nn.LeakyReLU(0.1), nn.ReLU(inplace=True), nn.Hardtanh(-2, 2, inplace=True)]
)
def test_layers_with_a_slope_or_in_place(layer):
    path = torch.tensor([[-1.0], [0.5], [1.5]])
    module = nn.Sequential(nn.Identity(), layer, nn.Linear(1, 2))
    kept = path.clone()
    assert transitions(module, path).sum() == (0 if isinstance(layer, nn.Hardtanh) else 2)
    assert torch.equal(path, kept)


@pytest.mark.parametrize(("pool", "shape"), [(nn.MaxPool1d(2), (2, 6)), (nn.MaxPool3d(2), (1, 4, 4, 4)),
                                             (nn.AdaptiveMaxPool1d(2), (2, 6)), (nn.AdaptiveMaxPool3d(2), (1, 4, 4, 4)),
                                             (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 5, 5))])  # fmt: skip
def test_a_pool_changes_where_its_argmax_does(pool, shape):
    path = normal(10, *shape)
    with_indices = copy.deepcopy(pool)
    with_indices.return_indices = True
    at = with_indices(path)[1].flatten(1)
    expected = (at != at.roll(-1, 0)).sum(1)
    module = nn.Sequential(pool, nn.Flatten())
    assert torch.equal(transitions(module, path), expected)


def test_functions_methods_skips_and_layers_in_place():
    module, path = drawn(Functional().double()), 2 * ellipse(*normal(3, 2, 4), points=25)
    expected = torch.zeros(25, dtype=torch.long)
    with torch.no_grad():
        x = module.first(path)
        seen = [x > -0.3, x > 0.4]
        x = x.clamp(-0.3, 0.4)
        y = module.second(x)
        seen += [y > -0.2, y.clamp(min=-0.2) > 0]
        x = x + y.relu()
        seen += [x > 0]
        x, at = F.max_pool1d(F.leaky_relu(x, 0.2), 2, return_indices=True)
        seen += [at, x > 0, x.abs() > 0.05, x.abs() > 0.9]
    for code in seen:
        expected += (code != code.roll(-1, 0)).flatten(1).sum(1)
    assert torch.equal(transitions(module, path), expected)
    residual = drawn(Residual().double())
    assert transitions(residual, ellipse(*normal(3, 3, 4, 4), points=25)).sum() > 0


def test_every_operation_that_the_network_calls_piecewise_linear_has_its_pieces():
    assert set(pieces._KINKS) | set(pieces._POOLS) == operations._PIECEWISE_LINEAR


@pytest.mark.parametrize("chunk_size", [1, 4, 9, 10, 35, 1000])
def test_many_paths_and_chunks_change_nothing(chunk_size):
    module = dense()
    paths = 4 * ellipse(*normal(3, 2, 3, 3), points=10, dim=2)
    assert paths.shape == (2, 3, 10, 3)
    found = transitions(module, paths, dim=2, chunk_size=chunk_size)
    expected = torch.stack([transitions(module, path) for path in paths.flatten(0, 1)]).view(2, 3, 10)
    assert torch.equal(found, expected)


def test_a_stack_counts_for_each_network():
    modules = [dense(seed) for seed in range(3)]
    paths = 4 * ellipse(*normal(3, 2, 3), points=10, dim=1)
    found = transitions(Network.stack(modules), paths, dim=1)
    assert torch.equal(found, torch.stack([transitions(module, paths, dim=1) for module in modules]))
    assert transitions(Network.stack(modules[:1]), paths[0]).shape == (1, 10)


@given(st.integers(0, 10**6), st.sampled_from(PIECEWISE))
def test_more_points_never_miss_what_fewer_have_seen(seed, activation):
    module, (a, b, c) = dense(seed % 5, activation=activation), 4 * normal(3, 3, seed=seed)
    counts = [transitions(module, ellipse(a, b, c, points=points)).sum().item() for points in (10, 20, 40)]
    assert counts == sorted(counts)


def test_a_linear_network_has_no_transitions():
    assert transitions(nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 3)).tolist() == [0, 0, 0, 0]


def test_nothing_is_touched_by_transitions():
    module, path = convolutional(), normal(6, 2, 6, 6)
    with unchanged(module, path):
        transitions(module, path)


class Merged(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(torch.relu(x.reshape(-1, 2))).view(-1, 3)


@pytest.mark.parametrize(
    ("module", "path", "options", "message"),
    [
        (models.mlp(4, 3, activation="tanh"), torch.ones(3, 4), {}, "^network: 2 is not piecewise linear"),
        (models.mlp(4, 3, normalization="layer"), torch.ones(3, 4), {}, "^network: 2 is not piecewise linear"),
        (nn.Sequential(nn.Linear(4, 3), nn.Hardswish()), torch.ones(3, 4), {}, "operations 1 are unknown"),
        (Untraceable(nn.Linear(4, 3)), torch.ones(3, 4), {}, r"torch\.fx can't trace"),
        (models.mlp(4, 3), torch.ones(1, 4), {}, "^path has 1 points along axis 0; give at least 2"),
        (models.mlp(4, 3), torch.ones(3, 1, 4), {"dim": 1}, "^path has 1 points along axis 1"),
        (models.mlp(4, 3), torch.ones(3, 4), {"dim": 1}, "^dim is 1"),
        (models.mlp(4, 3), torch.ones(3, 4), {"chunk_size": 0}, "^chunk_size is 0"),
        (models.mlp(4, 3), torch.ones(3, 4).long(), {}, r"^path is of torch\.int64"),
        (models.mlp(4, 3), torch.full((3, 4), torch.nan), {}, "^path is not finite"),
        (models.mlp(4, 3, normalization="batch"), torch.ones(3, 4), {}, "BatchNorm in training mode"),
        (Merged(), torch.ones(3, 4), {}, "^network: relu sees 8 rows for 4 points"),
    ],
)
def test_transitions_refuse(module, path, options, message):
    with pytest.raises(ValueError, match=message):
        transitions(module, path, **options)


# ------------------------------------------------------------------------------------------------------- breakpoints


@pytest.mark.parametrize("activation", PIECEWISE)
@pytest.mark.parametrize("seed", range(3))
def test_breakpoints_are_those_of_dense_sampling(activation, seed):
    module, (start, end) = dense(seed, 20, activation=activation), 6 * normal(2, 3, seed=seed)
    found = breakpoints(module, start, end)
    t = torch.linspace(0, 1, 50_001, dtype=torch.float64)
    counts = transitions(module, torch.lerp(start, end, t.unsqueeze(1)))[:-1]
    expected = t[:-1][counts > 0]
    assert len(found) > 5 and len(expected) == len(found) == counts.sum()  # so fine that none share an interval
    assert (found >= expected).all() and (found <= expected + t[1]).all()
    assert (found.diff() > 0).all()


@pytest.mark.parametrize("activation", PIECEWISE)
def test_the_network_is_affine_between_breakpoints(activation):
    module, (start, end) = dense(activation=activation), 6 * normal(2, 3)
    inner = breakpoints(module, start, end)
    t = torch.cat([torch.zeros(1), inner, torch.ones(1)]).double()

    def at(t):
        with torch.no_grad():
            return module(torch.lerp(start, end, t.unsqueeze(1)))

    torch.testing.assert_close(at((t[1:] + t[:-1]) / 2), (at(t[1:]) + at(t[:-1])) / 2)


def test_breakpoints_by_hand():
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.Hardtanh(0.0, 0.1), nn.Linear(1, 2)).double()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        module[0].bias.copy_(torch.tensor([-0.5, 0.5]))
        module[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
        module[2].bias.fill_(0)
    # |x − 1/2| has both its units bend at 1/2 and is above 0.1 outside [0.4, 0.6].
    found = breakpoints(module, torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(found, torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64))
    reversed_ = breakpoints(module, torch.ones(1), torch.zeros(1))
    torch.testing.assert_close(1 - reversed_.flip(0), found)


def test_breakpoints_add_up_to_the_transitions_along_a_polygon():
    module, corners = dense(width=20), 4 * normal(3, 3)
    sides = list(zip(corners, corners.roll(-1, 0), strict=True))
    exact = sum(len(breakpoints(module, a, b)) for a, b in sides)
    t = torch.arange(5000, dtype=torch.float64).unsqueeze(1) / 5000
    path = torch.cat([torch.lerp(a, b, t) for a, b in sides])
    assert transitions(module, path).sum() == exact > 20


def test_without_kinks_there_are_no_breakpoints():
    assert (
        len(
            breakpoints(
                nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Identity()), torch.zeros(2, 2), torch.ones(2, 2)
            )
        )
        == 0
    )
    dead = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False), nn.ReLU())
    dead[0].weight.data = -dead[0].weight.data.abs()
    assert len(breakpoints(dead, torch.zeros(2), torch.ones(2))) == 0


def test_breakpoints_of_single_precision_are_float64_and_touch_nothing():
    module, (start, end) = dense().float(), 6 * normal(2, 3).float()
    with unchanged(module, start, end):
        found = breakpoints(module, start, end)
    exact = breakpoints(copy.deepcopy(module).double(), start, end)
    assert found.dtype == torch.float64 and torch.equal(found, exact)


@pytest.mark.parametrize(
    ("module", "start", "end", "message"),
    [
        (convolutional(), normal(2, 6, 6), normal(2, 6, 6, seed=1), r"^network is no Sequential of dense.*transitions"),
        (models.mlp(4, 3, activation="tanh"), torch.zeros(4), torch.ones(4), "^network: 2 is not piecewise linear"),
        (models.mlp(4, 3), torch.zeros(4), torch.ones(5), "^start has the shape"),
        (models.mlp(4, 3), torch.zeros(4), torch.zeros(4), "^start and end are equal or not finite"),
        (models.mlp(4, 3), torch.zeros(4), torch.full((4,), torch.nan), "^start and end are equal or not finite"),
        (Network.stack([models.mlp(4, 3)]), torch.zeros(4), torch.ones(4), r"^network is a stack.*network\.each"),
    ],
)
def test_breakpoints_refuse(module, start, end, message):
    with pytest.raises(ValueError, match=message):
        breakpoints(module, start, end)


# ------------------------------------------------------------------------------------------------------------- paths


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_an_ellipse_passes_through_its_points_and_solves_their_equations(seed, sixths):
    abc = normal(3, 4, seed=seed)
    points = 6 * sixths
    path = ellipse(*abc, points=points)
    torch.testing.assert_close(path[[points // 6, points // 2, 5 * points // 6]], abc)
    at = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64) * math.pi / 3
    matrix = torch.stack([torch.ones(3), at.cos(), at.sin()], 1).double()
    p = torch.linalg.solve(matrix, abc)
    angles = 2 * math.pi * torch.arange(points, dtype=torch.float64).unsqueeze(1) / points
    torch.testing.assert_close(path, p[0] + p[1] * angles.cos() + p[2] * angles.sin())


def test_the_points_of_a_circle_give_the_circle():
    abc = [torch.tensor([math.cos(angle), math.sin(angle)]) for angle in (math.pi / 3, math.pi, 5 * math.pi / 3)]
    path = ellipse(*abc, points=50)
    torch.testing.assert_close(path.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(path[0], torch.tensor([1.0, 0.0]))


def test_many_ellipses_are_each_ones_own():
    a, b, c = normal(3, 5, 2, 4)
    paths = ellipse(a, b, c, points=12, dim=1)
    assert paths.shape == (5, 12, 2, 4)
    torch.testing.assert_close(paths[3], ellipse(a[3], b[3], c[3], points=12))


def test_random_ellipses_have_the_scale_of_the_data_and_repeat():
    inputs = 5 + 2 * normal(100, 30)
    paths = random_ellipses(inputs, 200, points=6)
    assert paths.shape == (200, 6, 30)
    through = paths[:, [1, 3, 5]]
    assert through.mean().item() == pytest.approx(inputs.mean().item(), abs=0.1)
    assert through.std().item() == pytest.approx(inputs.std().item(), rel=0.03)
    assert torch.equal(random_ellipses(inputs, 200, points=6), paths)
    assert not torch.equal(random_ellipses(inputs, 200, points=6, generator=torch.Generator().manual_seed(1)), paths)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8)])
def test_a_translation_rolls_whole_pixels_and_interpolates_between(shape):
    image = normal(*shape)
    path = translation_loop(image, points=16)
    assert path.shape == (16, *shape)
    for i in range(8):
        torch.testing.assert_close(path[2 * i], image.roll(i, -1))
        torch.testing.assert_close(path[2 * i + 1], (image.roll(i, -1) + image.roll(i + 1, -1)) / 2)
    both = translation_loop(torch.stack([image, -image]), points=16, dim=1)
    torch.testing.assert_close(both, torch.stack([path, -path]))


def test_steps_of_a_translation_are_equal_however_many():
    image = torch.arange(5.0).double()
    path = translation_loop(image, points=7)
    torch.testing.assert_close(path[1], image - (image - image.roll(1)) * 5 / 7)
    torch.testing.assert_close(path.mean(0), image.mean().expand(5), rtol=0.2, atol=0)


def test_paths_and_breakpoints_are_made_where_the_data_are():
    module, x = dense(), 4 * normal(3, 3)
    calls = [
        lambda: ellipse(*x, points=5),
        lambda: random_ellipses(x, 2, points=5),
        lambda: translation_loop(x, points=5),
        lambda: breakpoints(module, x[0], x[1]),
    ]
    for call in calls:
        with torch.device("meta"):
            found = call()
        assert torch.equal(found, call())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ellipse(x, x, x[:1], points=5), "^a, b and c have the shapes"),
        (lambda x: ellipse(x, x, x, points=1), "^points is 1; a path has at least 2"),
        (lambda x: ellipse(x, x, x, points=5, dim=3), "^dim is 3"),
        (lambda x: translation_loop(x, points=0), "^points is 0"),
        (lambda x: translation_loop(x, points=5, dim=-1), "^dim is -1"),
        (lambda x: random_ellipses(x, 0, points=5), "^count is 0"),
        (lambda x: random_ellipses(x[:0], 2, points=5), "^count is 2 for 0 inputs"),
    ],
)
def test_bad_paths_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(4, 3))
