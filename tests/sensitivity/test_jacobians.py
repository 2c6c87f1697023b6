"""Norms of Jacobians are those of the whole matrix."""

import copy
import math

import hypothesis.strategies as st
import pytest
import torch
from cases import CASES, HostReads, Untraceable, drawn, unchanged
from hypothesis import given, settings
from sensitivity_cases import OUTPUTS, Functional, convolutional, dense, normal
from torch import nn
from torch.func import jacrev, vmap

from genlib import models
from genlib.network import Network
from genlib.sensitivity import jacobian_norms, mean_squared_jacobian_norm
from genlib.sensitivity.jacobians import _in_row_space

MATRIX = {"frobenius": torch.linalg.matrix_norm, "spectral": lambda j: torch.linalg.matrix_norm(j, 2)}


def jacobians(module, inputs, of):
    with torch.no_grad():
        return vmap(jacrev(lambda x: OUTPUTS[of](module(x.unsqueeze(0)))[0]))(inputs).flatten(2)


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


@pytest.mark.parametrize("name", ["dense", "residual", "pooled", "linear", "functional", "smooth"])
def test_of_cross_entropy_the_square_is_the_trace_of_its_hessian_in_the_inputs(name):
    module, inputs = NETWORKS[name]()
    with torch.no_grad():
        hessians = vmap(jacrev(jacrev(lambda x: -module(x.unsqueeze(0)).log_softmax(-1)[0, 0])))(inputs)
    numbers = inputs[0].numel()
    traces = hessians.view(len(inputs), numbers, numbers).diagonal(dim1=1, dim2=2).sum(1)
    found = jacobian_norms(module, inputs, of="cross_entropy").square()
    if name == "smooth":  # of which it is the Gauss-Newton part
        assert (found - traces).abs().max() > 0.01 * traces.abs().max()
    else:
        torch.testing.assert_close(found, traces)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.01, 30), st.sampled_from(list(MATRIX)))
def test_softmax_at_least_halves_the_norm(seed, scale, norm):
    module, inputs = dense(seed % 7), scale * normal(5, 3, seed=seed)
    found = jacobian_norms(module, inputs, of=("logits", "probabilities"), norm=norm)
    assert (found["probabilities"] <= found["logits"] / 2 * (1 + 1e-12)).all()


@settings(max_examples=40)
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
    roots = [
        jacobian_norms(copy.deepcopy(module).to(x), x, of="cross_entropy", norm=norm) for x in (inputs.float(), inputs)
    ]
    torch.testing.assert_close(roots[0].double()[seen], roots[1][seen], rtol=1e-3, atol=0)
    assert expected[seen].min() < 1e-8 or scale == 1


@pytest.mark.parametrize("norm", MATRIX)
def test_more_inputs_than_units_are_turned_away(norm):
    module, inputs = models.mlp(4 * 10, 3, width=6, depth=2).double(), normal(30, 4, 10)
    assert _in_row_space(Network.of(module), inputs, 3)[1](inputs).shape == (30, 6)
    for of in OUTPUTS:
        found = jacobian_norms(module, inputs, of=of, norm=norm)
        torch.testing.assert_close(found, MATRIX[norm](jacobians(module, inputs, of)))
    torch.testing.assert_close(jacobian_norms(Network.stack([module]), inputs, of=of, norm=norm)[0], found)


def test_all_outputs_share_the_passes(monkeypatch):
    module, inputs = CASES["dense"]()[:2]
    single = {of: jacobian_norms(module, inputs, of=of) for of in OUTPUTS}
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or grad(*args, **kwargs))
    both = jacobian_norms(module, inputs, of=tuple(OUTPUTS))
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
            sizes.append(int(x.shape[0]))  # which torch.fx can't follow
            return super().forward(x)

    module, inputs = Recorded(6, 5), torch.ones(20, 6)
    expected = jacobian_norms(module, inputs)
    monkeypatch.setattr("genlib.sensitivity.jacobians._JACOBIAN_BYTES", 3 * 6 * 5 * 4)  # of three samples
    sizes.clear()
    torch.testing.assert_close(jacobian_norms(module, inputs), expected)
    at_the_door, to_see_the_classes, at_the_gradient, *chunks = sizes[:4], sizes[4], sizes[5:7], *sizes[7:]
    assert at_the_door == [8, 8, 1, 8] and to_see_the_classes == 1 and at_the_gradient == [8, 8]
    assert max(chunks) == 3 and sum(chunks) == 20


@pytest.mark.parametrize("norm", MATRIX)
@pytest.mark.parametrize(("numbers", "classes"), [(3, 12), (12, 3), (5, 6), (6, 6), (1, 2), (2, 9)])
def test_jacobians_too_large_for_the_limit_come_class_by_class(numbers, classes, norm, monkeypatch):
    module = models.mlp(numbers, classes, width=20, depth=2, activation="tanh").double()
    inputs = normal(4, numbers)
    expected = {of: MATRIX[norm](jacobians(module, inputs, of)) for of in OUTPUTS}
    monkeypatch.setattr("genlib.sensitivity.jacobians._JACOBIAN_BYTES", 1)
    torch.testing.assert_close(jacobian_norms(module, inputs, of=tuple(OUTPUTS), norm=norm), expected)
    for of in OUTPUTS:
        torch.testing.assert_close(jacobian_norms(module, inputs, of=of, norm=norm), expected[of])
    stack = jacobian_norms(Network.stack([module, module]), inputs, of=tuple(OUTPUTS), norm=norm)
    torch.testing.assert_close(stack, {of: norms.expand(2, -1) for of, norms in expected.items()})


@pytest.mark.parametrize("norm", MATRIX)
@pytest.mark.parametrize("scale", [10, 50])
def test_nothing_cancels_class_by_class(scale, norm, monkeypatch):
    module = dense(depth=1)
    module[-1].weight.data *= scale
    inputs = normal(40, 3)
    expected = jacobian_norms(module, inputs, norm=norm)
    monkeypatch.setattr("genlib.sensitivity.jacobians._JACOBIAN_BYTES", 1)
    both = jacobian_norms(copy.deepcopy(module).float(), inputs.float(), of=tuple(OUTPUTS), norm=norm)
    with torch.no_grad():
        seen = module(inputs).topk(2).values.diff().squeeze().abs() < 80
    torch.testing.assert_close(both["probabilities"].double()[seen], expected[seen], rtol=1e-3, atol=0)
    assert expected[seen].min() < 1e-8


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
    with pytest.raises(ValueError, match=r"^of is 'cross_entropy'; choose probabilities or logits"):
        mean_squared_jacobian_norm(module, inputs, of="cross_entropy")
    with pytest.raises(ValueError, match=r"^projections is 1"):
        mean_squared_jacobian_norm(module, inputs, projections=1)
