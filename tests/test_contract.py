"""What every kernel promises: it leaves everything as it was, stays on the device, and reads the host a few times."""

import inspect

import jaxtyping
import pytest
import torch
from cases import HostReads
from kernels import NETWORKS, case, data, kernels
from torch import nn

from genlib import bayes, curvature, features, landscape, margins, norms, optimizers, pac_bayes, sensitivity, sharpness
from genlib.network import Network
from genlib.sharpness import Objective


def snapshot(*modules):
    state = [{name: t.clone() for name, t in m.state_dict(keep_vars=False).items()} for m in modules]
    grads = [[None if p.grad is None else p.grad.clone() for p in m.parameters()] for m in modules]
    flags = [[(p.requires_grad, p.data_ptr(), p._version) for p in m.parameters()] for m in modules]
    modes = [
        [(part.training, dict(part._forward_hooks), dict(part._forward_pre_hooks)) for part in m.modules()]
        for m in modules
    ]
    return state, grads, flags, modes


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_every_public_kernel_is_tried():
    rooms = (norms, margins, features, landscape, sensitivity, curvature, sharpness, pac_bayes, bayes, optimizers)
    public = {name: getattr(room, name) for room in rooms for name in room.__all__}
    first = {
        name: next(iter(inspect.signature(function).parameters))
        for name, function in public.items()
        if inspect.isfunction(function)
    }
    taken = {name for name, argument in first.items() if argument in ("network", "start", "origin")}
    no_measures = {"layer_names", "layer_shapes", "unknown_parts", "filter_normalized_directions"}
    of_dense_layers_alone, of_wide_layers = {"breakpoints", "log_lipschitz_bound"}, {"tail_exponents"}
    assert taken - set(kernels()) == no_measures | of_dense_layers_alone | of_wide_layers


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("kernel", kernels())
def test_everything_is_left_as_it_was(kernel, kind):
    network, initial, inputs, labels = case(kind)
    network.train(kind == "dense")  # a mode of its own, where the mode changes nothing
    for module in (network, initial):
        for parameter in list(module.parameters())[::2]:
            parameter.grad = torch.full_like(parameter, 0.5)
    network[-1].bias.requires_grad_(False)
    before, kept = snapshot(network, initial), (inputs.clone(), labels.clone())
    torch.manual_seed(17)
    random_state = torch.get_rng_state()
    kernels()[kernel](network, initial, inputs, labels)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same(snapshot(network, initial), before)
    assert same((inputs, labels), kept)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("kernel", kernels())
def test_every_tensor_is_made_where_the_data_are(kernel, kind):
    # Whatever is made without a device lands on `meta` here, and a product with it fails or is lost there.
    network, initial, inputs, labels = case(kind)
    with torch.device("meta"):
        found = kernels()[kernel](network, initial, inputs, labels)
    expected = kernels()[kernel](network, initial, inputs, labels)
    assert repr(found) == repr(expected)


def reads(kernel, *arguments):
    with HostReads() as mode:
        kernel(*arguments)
    return mode.count


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("kernel", ["expected_sharpness", "expected_sharpness by weights", "worst_case_sharpness",
                                    "keskar_sharpness", "pac_bayes_bound", "sharpness_kl",
                                    "line", "plane", "surface"])  # fmt: skip
def test_host_reads_do_not_grow_with_draws_or_steps(kernel, kind):
    network, initial, inputs, labels = case(kind)
    few, many = (
        reads(kernels(draws=draws, steps=steps)[kernel], network, initial, inputs, labels)
        for draws, steps in ((8, 3), (16, 9))
    )
    assert few == many


@pytest.mark.parametrize("kernel", ["output_margins", "layer_margins", "sam_sharpness", "trace", "expected_sharpness",
                                    "jacobian_norms", "transitions"])  # fmt: skip
def test_host_reads_do_not_grow_with_samples_or_chunks(kernel):
    network, initial, inputs, labels = case("convolutional")
    call = kernels()[kernel]
    few = reads(call, network, initial, inputs, labels)
    assert few == reads(call, network, initial, inputs.repeat(200, 1, 1, 1), labels.repeat(200))


@pytest.mark.parametrize("kernel", ["frobenius_norms", "group_norms", "path_norm", "output_margins", "trace",
                                    "jacobian_norms", "transitions"])  # fmt: skip
def test_host_reads_do_not_grow_with_layers(kernel):
    def deep(layers):
        torch.manual_seed(0)
        hidden = [part for _ in range(layers) for part in (nn.Linear(8, 8), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), *hidden, nn.Linear(8, 3))

    counts = {}
    for layers in (1, 6):
        network, initial = deep(layers), deep(layers)
        inputs, labels = data(network)
        counts[layers] = reads(kernels()[kernel], network, initial, inputs, labels)
    assert counts[1] == counts[6]


@pytest.mark.parametrize("kernel", ["largest_sigma"])
def test_a_search_reads_once_a_step(kernel):
    network, initial, inputs, labels = case("dense")
    found = pac_bayes.largest_sigma(network, inputs, labels)
    assert reads(kernels()[kernel], network, initial, inputs, labels) <= 8 + found.passes / 2


# Compiled


@pytest.fixture
def compiled(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # Dynamo can't trace the checks of shapes
    torch._dynamo.reset()
    yield lambda function: torch.compile(function, backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_objective_and_its_gradient_compile_to_the_same(kind, stacked, compiled):
    network, initial, inputs, labels = case(kind)
    objective = Objective.of(Network.stack([network, initial]) if stacked else network, inputs, labels)
    weights = objective.network.params
    torch.testing.assert_close(compiled(objective)(weights), objective(weights))

    def gradient(params):
        return torch.func.grad(lambda p: objective(p).sum())(params)

    expected = objective.gradient(weights)[1]
    for name, found in compiled(gradient)(weights).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)
