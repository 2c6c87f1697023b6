"""What every kernel promises: it leaves everything as it was, stays on the device, and reads the host a few times."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from genlib import curvature, landscape, margins, norms, pac_bayes, sensitivity, sharpness
from genlib.measures import CATALOGUE, evaluate
from genlib.network import Network
from genlib.sharpness import Objective

SHAPE = (2, 6, 6)


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def convolutional(seed=0):
    """Convolutions, BatchNorm with statistics of its own, a skip, both kinds of pooling, a dense layer."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.ReLU())),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    network(torch.randn(50, *SHAPE))  # statistics
    return network.eval()


def dense(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def data(network):
    inputs = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return inputs, network(inputs).argmax(-1)


def doubled(module):
    network = Network.of(module)
    return replace(network, params={name: 2 * w for name, w in network.params.items()})


def kernels(draws=8, steps=3):
    """Every public kernel, called on a network, its start, inputs and labels."""
    drawn = {"scale": 0.05, "draws": draws}
    return {
        **{name: lambda n, s, x, y, name=name: evaluate(n, (x, y), initial=s, names=[name]) for name in CATALOGUE},
        "frobenius_norms": lambda n, s, x, y: norms.frobenius_norms(n),
        "group_norms": lambda n, s, x, y: norms.group_norms(n, 2, 1),
        "spectral_norms": lambda n, s, x, y: norms.spectral_norms(n, input_shape=SHAPE),
        "stable_ranks": lambda n, s, x, y: norms.stable_ranks(n, input_shape=SHAPE),
        "distances": lambda n, s, x, y: norms.distances(n, s, norm="spectral", input_shape=SHAPE),
        "path_norm": lambda n, s, x, y: norms.path_norm(n, input_shape=SHAPE),
        "spectral_complexity": lambda n, s, x, y: norms.spectral_complexity(n, s, input_shape=SHAPE),
        "output_margins": lambda n, s, x, y: margins.output_margins(n, x, y),
        "layer_margins": lambda n, s, x, y: margins.layer_margins(n, x, y),
        "normalized_margins": lambda n, s, x, y: margins.normalized_margins(n, s, x, y),
        "jacobian_norms": lambda n, s, x, y: sensitivity.jacobian_norms(n, x, of=("logits", "probabilities")),
        "jacobian_norms, spectral": lambda n, s, x, y: sensitivity.jacobian_norms(n, x, norm="spectral"),
        "mean_squared_jacobian_norm": lambda n, s, x, y: sensitivity.mean_squared_jacobian_norm(n, x),
        "transitions": lambda n, s, x, y: sensitivity.transitions(n, x),
        "expected_sharpness": lambda n, s, x, y: sharpness.expected_sharpness(n, x, y, **drawn),
        "expected_sharpness by weights": lambda n, s, x, y: sharpness.expected_sharpness(
            n, x, y, sampling="weights", noise="magnitude", **drawn
        ),
        "worst_case_sharpness": lambda n, s, x, y: sharpness.worst_case_sharpness(
            n, x, y, radius=0.1, ball="adaptive", steps=steps, restarts=2
        ),
        "keskar_sharpness": lambda n, s, x, y: sharpness.keskar_sharpness(n, x, y, radius=1e-3, steps=steps),
        "sam_sharpness": lambda n, s, x, y: sharpness.sam_sharpness(n, x, y, radius=0.05),
        "pac_bayes_bound": lambda n, s, x, y: pac_bayes.pac_bayes_bound(n, x, y, initial=s, std=0.01, draws=draws),
        "sharpness_kl": lambda n, s, x, y: pac_bayes.sharpness_kl(n, x, y, scales=[0.01, 0.1], draws=draws),
        "largest_sigma": lambda n, s, x, y: pac_bayes.largest_sigma(n, x, y),
        "trace": lambda n, s, x, y: curvature.trace(n, x, y),
        "trace by vectors": lambda n, s, x, y: curvature.trace(n, x, y, method="hutch++", vectors=6),
        "hessian_vector_product": lambda n, s, x, y: curvature.hessian_vector_product(n, x, y)(
            {name: p.detach() for name, p in s.named_parameters()}
        ),
        "top_eigenvalues": lambda n, s, x, y: curvature.top_eigenvalues(n, x, y, 3),
        "frobenius_norm": lambda n, s, x, y: curvature.frobenius_norm(n, x, y, vectors=6),
        "gauss_newton_error": lambda n, s, x, y: curvature.gauss_newton_error(n, x, y, vectors=6),
        "gauss_newton_eigenvalues": lambda n, s, x, y: curvature.gauss_newton_eigenvalues(n, x, y),
        "spectral_density": lambda n, s, x, y: curvature.spectral_density(n, x, y, steps=4, draws=2),
        "log_basin_volume": lambda n, s, x, y: curvature.log_basin_volume(n, x, y, 3),
        "line": lambda n, s, x, y: landscape.line(n, s, x, y, points=draws),
        "plane": lambda n, s, x, y: landscape.plane(n, s, doubled(n), x, y, points=steps),
        "surface": lambda n, s, x, y: landscape.surface(n, x, y, points=steps),
        "basin_radius": lambda n, s, x, y: landscape.basin_radius(n, x, y, increase=0.1, directions=draws),
        "basin_radius by filters": lambda n, s, x, y: landscape.basin_radius(
            n, x, y, increase=0.1, directions=draws, filter_normalized=True
        ),
    }


NETWORKS = {"dense": dense, "convolutional": convolutional}


def case(kind):
    network, initial = NETWORKS[kind](), NETWORKS[kind](seed=1)
    return network, initial, *data(network)


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


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: a scalar read, or a result whose shape hangs on the values."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        boolean = name in ("index", "index_put_") and any(
            t is not None and t.dtype == torch.bool for t in args[1] if isinstance(t, torch.Tensor)
        )
        self.count += boolean or name in self.READS
        return func(*args, **(kwargs or {}))


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
