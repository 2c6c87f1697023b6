import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev
from torch.utils._python_dispatch import TorchDispatchMode

from genlib import models
from genlib.curvature import trace
from genlib.network import Network
from genlib.sharpness import Objective

MEANS = {
    "cross_entropy": F.cross_entropy,
    "mse": lambda logits, labels: (logits - F.one_hot(labels, logits.shape[1])).square().mean(),
}


class Residual(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.inner = nn.BatchNorm2d(4)
        self.pool = pool
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        y = self.conv(x)
        x = self.relu(self.inner(y) + x)
        return self.head(self.pool(x).mean((2, 3)))


class Positions(nn.Module):
    """A dense layer that every position shares, then one over the sum of the positions."""

    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.relu(self.each(x)).sum(1))


class Odd(nn.Module):
    """Circular padding, dilation and one dimension, a transposed convolution, a learned slope."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=2, dilation=2, padding_mode="circular")
        self.slope = nn.PReLU(4)
        self.up = nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.one_slope = nn.PReLU()
        self.head = nn.Linear(2 * 12, 3)

    def forward(self, x):
        return self.head(self.one_slope(self.up(self.slope(self.first(x)))).flatten(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.twice(torch.relu(self.twice(x)))))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.head(torch.relu(self.other(torch.relu(self.one(x)))))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.shift = nn.Linear(4, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.head(x) + self.shift


class Merged(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(x.view(-1, 2)).view(-1, 2, 3).sum(1)


def made(build, shape, seed=0, samples=7, classes=3):
    torch.manual_seed(seed)
    module = build().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for _ in range(3):
            module(torch.randn(20, *shape).double())
    inputs = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return module.eval(), inputs, torch.arange(samples) % classes


PIECEWISE_LINEAR = {
    "dense": lambda seed=0: made(lambda: models.mlp(5, 4, width=6, depth=2, seed=seed), (5,), seed, classes=4),
    "average pool": lambda seed=0: made(lambda: Residual(nn.AvgPool2d(2)), (2, 8, 8), seed),
    "max pool": lambda seed=0: made(lambda: Residual(nn.MaxPool2d(2)), (2, 8, 8), seed),
    "positions": lambda seed=0: made(Positions, (6, 3), seed, classes=4),
    "odd": lambda seed=0: made(Odd, (2, 6), seed),
    "three dimensions": lambda seed=0: made(
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2, stride=2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(16, 3)),
        (1, 4, 4, 4),
        seed,
    ),
}
SMOOTH = {
    "tanh": lambda seed=0: made(lambda: models.mlp(4, 3, width=5, activation="tanh"), (4,), seed),
    "layer norm": lambda seed=0: made(lambda: models.mlp(4, 3, width=5, normalization="layer"), (4,), seed),
    "runs twice": lambda seed=0: made(Tied, (4,), seed),
    "shared weight": lambda seed=0: made(Shared, (4,), seed),
    "outside of a layer": lambda seed=0: made(Bare, (4,), seed),
}


def blocks(module, inputs, labels, loss):
    """The trace of the full Hessian's diagonal block of each parameter."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    mean = MEANS.get(loss, loss)
    full = jacrev(jacrev(lambda p: mean(functional_call(module, p, (inputs,)), labels)))(params)
    return {name: full[name][name].reshape(p.numel(), -1).trace() for name, p in params.items()}


def by_layer(blocks):
    layers = {name.rpartition(".")[0] for name in blocks}
    return {layer: sum(v for name, v in blocks.items() if name.rpartition(".")[0] == layer) for layer in layers}


# ------------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_the_exact_trace_is_that_of_the_full_hessian(name, loss):
    case = PIECEWISE_LINEAR[name]()
    found = trace(*case, loss=loss, method="exact")
    expected = blocks(*case, loss)
    torch.testing.assert_close(found.value, sum(expected.values()))
    torch.testing.assert_close(found.by_layer, by_layer(expected))
    assert found.standard_error == 0
    assert torch.equal(found.value, trace(*case, loss=loss).value)


def test_gram_matrices_and_products_agree():
    # Few places and wide layers, then many places and narrow ones: either way is the cheaper once.
    for channels, side in ((12, 2), (2, 8)):
        module, inputs, labels = made(
            lambda c=channels, s=side: nn.Sequential(
                nn.Conv2d(2, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1), nn.Flatten(), nn.Linear(c * s * s, 3)
            ),
            (2, side, side),
        )
        expected = sum(blocks(module, inputs, labels, "cross_entropy").values())
        torch.testing.assert_close(trace(module, inputs, labels, method="exact").value, expected)


def test_a_network_with_tanh_has_another_trace_than_its_gauss_newton_part():
    module, inputs, labels = SMOOTH["tanh"]()
    expected = sum(blocks(module, inputs, labels, "cross_entropy").values())
    linear = copy.deepcopy(module)
    params = {name: p.detach() for name, p in module.named_parameters()}
    jacobians = jacrev(lambda p: functional_call(linear, p, (inputs,)))(params)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], 2)
    p = module(inputs).detach().softmax(1)
    gauss_newton = torch.einsum("nap,nab,nbp->", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j) / len(p)
    assert (expected - gauss_newton).abs() > 0.05 * expected.abs()
    found = trace(module, inputs, labels, vectors=200)
    torch.testing.assert_close(found.value, expected)  # more vectors than parameters: nothing is left to chance


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_change_nothing(chunk_size):
    case = PIECEWISE_LINEAR["max pool"]()
    for method in ("exact", "hutch++"):
        torch.testing.assert_close(
            trace(*case, method=method, chunk_size=chunk_size).value, trace(*case, method=method).value
        )


def test_single_precision_is_close():
    module, inputs, labels = PIECEWISE_LINEAR["max pool"]()
    found = trace(copy.deepcopy(module).float(), inputs.float(), labels)
    assert found.value.dtype == torch.float32
    torch.testing.assert_close(found.value.double(), trace(module, inputs, labels).value, rtol=1e-5, atol=0)


def test_half_precision_is_upcast():
    module = models.mlp(5, 4, width=6).bfloat16()
    inputs, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    torch.testing.assert_close(
        trace(module, inputs, labels).value, trace(copy.deepcopy(module).float(), inputs, labels).value
    )


# ------------------------------------------------------------------------------------------------- sampled cotangents


@pytest.mark.parametrize("loss", MEANS)
def test_sampled_cotangents_scatter_about_the_exact_trace_as_their_error_says(loss):
    case = PIECEWISE_LINEAR["dense"]()
    exact = trace(*case, loss=loss).value
    runs = [trace(*case, loss=loss, cotangents=2, generator=torch.Generator().manual_seed(seed)) for seed in range(150)]
    values, errors = torch.stack([r.value for r in runs]), torch.stack([r.standard_error for r in runs])
    assert (values.mean() - exact).abs() < 4 * values.std() / 150**0.5
    torch.testing.assert_close(errors.square().mean().sqrt(), values.std(), rtol=0.15, atol=0)


def test_a_hundred_classes_are_sampled_and_can_be_had_exactly():
    module, inputs, labels = made(lambda: models.mlp(5, 100, width=6, depth=2), (5,), classes=100)
    exact = trace(module, inputs, labels, cotangents=100)
    torch.testing.assert_close(exact.value, sum(blocks(module, inputs, labels, "cross_entropy").values()))
    found = trace(module, inputs, labels)
    assert (found.passes, exact.passes, exact.standard_error) == (17, 101, 0)
    assert 0 < found.standard_error < 0.2 * exact.value
    assert (found.value - exact.value).abs() < 4 * found.standard_error
    torch.testing.assert_close(sum(found.by_layer.values()), found.value)


# --------------------------------------------------------------------------------------------------------- estimated


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_not_piecewise_linear_is_estimated(name):
    case = SMOOTH[name]()
    expected = blocks(*case, "cross_entropy")
    found = trace(*case, vectors=200)
    torch.testing.assert_close(found.value, sum(expected.values()))
    torch.testing.assert_close(found.by_layer, by_layer(expected))
    with pytest.raises(ValueError, match=r"^network: .*hutch\+\+"):
        trace(*case, method="exact")


def test_hutch_plus_plus_scatters_about_the_trace_as_its_error_says():
    case = made(lambda: models.mlp(4, 3, width=12, activation="tanh"), (4,), samples=40)
    expected = by_layer(blocks(*case, "cross_entropy"))
    runs = [trace(*case, vectors=9, generator=torch.Generator().manual_seed(seed)) for seed in range(100)]
    values, errors = torch.stack([r.value for r in runs]), torch.stack([r.standard_error for r in runs])
    assert (values.mean() - sum(expected.values())).abs() < 4 * values.std() / 10
    torch.testing.assert_close(errors.square().mean().sqrt(), values.std(), rtol=0.3, atol=0)
    for layer, value in expected.items():
        parts = torch.stack([r.by_layer[layer] for r in runs])
        assert (parts.mean() - value).abs() < 4 * parts.std() / 10


def test_a_loss_of_ones_own_is_estimated():
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()

    def loss(logits, labels):
        return logits.gather(1, labels[:, None])[:, 0] ** 4

    expected = blocks(module, inputs, labels, lambda logits, labels: loss(logits, labels).mean())
    torch.testing.assert_close(trace(module, inputs, labels, loss=loss, vectors=400).value, sum(expected.values()))
    with pytest.raises(ValueError, match=r"^loss is .*whose Hessian"):
        trace(module, inputs, labels, loss=loss, method="exact")


def test_a_loss_without_curvature_has_no_trace():
    module, inputs, labels = made(lambda: nn.Sequential(nn.Linear(4, 3)), (4,))
    found = trace(module, inputs, labels, loss=lambda logits, labels: logits[:, 0] + 0 * labels)
    assert (found.value, found.standard_error) == (0, 0)


# ---------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("method", ["exact", "hutch++"])
def test_a_stack_gives_each_networks_own(method):
    built = [PIECEWISE_LINEAR["max pool"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    found = trace(Network.stack(modules), inputs, labels, method=method)
    singles = [trace(module, inputs, labels, method=method) for module in modules]
    if method == "exact":
        torch.testing.assert_close(found.value, torch.stack([one.value for one in singles]))
        torch.testing.assert_close(found.by_layer["conv"], torch.stack([one.by_layer["conv"] for one in singles]))
    assert found.value.shape == found.standard_error.shape == (3,)
    each = trace(Network.stack(modules), inputs.expand(3, *inputs.shape), labels.expand(3, -1), method=method)
    torch.testing.assert_close(each.value, found.value)


@pytest.mark.parametrize("method", ["exact", "hutch++"])
def test_nothing_is_touched(method):
    module, inputs, labels = PIECEWISE_LINEAR["max pool"]()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    kept = inputs.clone()
    trace(module, inputs, labels, method=method)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert all((p.grad == 1).all() and p.requires_grad for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(inputs, kept)
    assert not any(layer._forward_hooks for layer in module.modules())


def test_draws_repeat_and_follow_the_generator():
    case = PIECEWISE_LINEAR["dense"]()
    for options in ({"cotangents": 2}, {"method": "hutch++", "vectors": 6}):
        first, again = (trace(*case, **options).value for _ in range(2))
        other = trace(*case, **options, generator=torch.Generator().manual_seed(1)).value
        assert first == again != other


@pytest.mark.parametrize("options", [{}, {"cotangents": 2}, {"method": "hutch++"}])
def test_the_host_reads_are_those_of_the_checks(options):
    class Count(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.reads += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    case = PIECEWISE_LINEAR["max pool"]()
    with Count() as checks:
        Objective.of(*case)
    with Count() as count:
        trace(*case, chunk_size=3, **options)
    assert count.reads <= checks.reads + 1  # whether the result is finite


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "error"}, "^loss is 'error'"),
        ({"loss": "hinge"}, "^loss is 'hinge'"),
        ({"method": "hutchinson"}, r"^method is 'hutchinson'; choose auto, exact or hutch\+\+"),
        ({"cotangents": 1}, "^cotangents is 1"),
        ({"vectors": 5}, "^vectors is 5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trace(*PIECEWISE_LINEAR["dense"](), **options)


def test_bad_data_are_refused():
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    with pytest.raises(ValueError, match=r"^labels has values outside"):
        trace(module, inputs, labels + 3)
    with pytest.raises(ValueError, match="not finite"):
        trace(module, inputs * torch.inf, labels)
    module, inputs, labels = PIECEWISE_LINEAR["max pool"]()
    with pytest.raises(ValueError, match="BatchNorm in training mode"):
        trace(module.train(), inputs, labels)


def test_rows_that_are_no_samples_are_refused_by_the_name_of_their_layer():
    case = made(Merged, (4,))
    with pytest.raises(ValueError, match=r"^network: head sees .* rows for .* samples.*hutch\+\+"):
        trace(*case)
    expected = sum(blocks(*case, "cross_entropy").values())
    torch.testing.assert_close(trace(*case, method="hutch++", vectors=40).value, expected)


def test_statistics_of_the_batch_at_hand_are_refused():
    case = made(
        lambda: nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2, track_running_stats=False), nn.Flatten()), (1, 4)
    )
    with pytest.raises(ValueError, match=r"^network: 1 normalizes by the batch at hand"):
        trace(*case, method="exact")
