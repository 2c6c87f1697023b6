import copy

import pytest
import torch
import torch.nn.functional as F
from cases import HostReads, dense, permuted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, jacrev
from torch.utils._python_dispatch import TorchDispatchMode

from genlib import models
from genlib.curvature import (
    frobenius_norm,
    gauss_newton_eigenvalues,
    gauss_newton_error,
    hessian_vector_product,
    log_basin_volume,
    spectral_density,
    top_eigenvalues,
    trace,
)
from genlib.curvature.lanczos import largest, quadrature
from genlib.curvature.products import Operator
from genlib.estimates import Density
from genlib.network import Network
from genlib.sharpness import Objective


def cross_entropy(logits, labels):
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits))


def mse(logits, labels):
    targets = F.one_hot(labels, logits.shape[1]) if logits.shape[1] > 1 else torch.where(labels == 1, 1, -1)[:, None]
    return (logits - targets).square().mean()


MEANS = {"cross_entropy": cross_entropy, "mse": mse}


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
    "one output": lambda seed=0: made(lambda: models.mlp(5, 1, width=6, depth=2, seed=seed), (5,), seed, classes=2),
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


@pytest.mark.parametrize("loss", MEANS)
def test_a_stack_of_one_output_has_each_networks_exact_trace(loss):
    built = [PIECEWISE_LINEAR["one output"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    found = trace(Network.stack(modules), inputs, labels, loss=loss, method="exact", cotangents=2, chunk_size=3)
    expected = torch.stack([sum(blocks(module, inputs, labels, loss).values()) for module in modules])
    torch.testing.assert_close(found.value, expected)
    assert (found.standard_error == 0).all() and found.passes == 2


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


# ---------------------------------------------------------------------------------------------------------- products

TWINS = {
    name: {**PIECEWISE_LINEAR, **SMOOTH}[name] for name in ("dense", "one output", "max pool", "tanh", "shared weight")
}


def full(module, inputs, labels, loss="cross_entropy"):
    """The Hessian over all parameters, one after the other."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    mean = MEANS.get(loss, loss)
    found = jacrev(jacrev(lambda p: mean(functional_call(module, p, (inputs,)), labels)))(params)
    rows = [[found[a][b].reshape(params[a].numel(), -1) for b in params] for a in params]
    return torch.cat([torch.cat(row, 1) for row in rows])


def gauss_newton(module, inputs, labels, loss="cross_entropy"):
    """JᵀSJ by all Jacobians."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    jacobians = jacrev(lambda p: functional_call(module, p, (inputs,)))(params)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], 2)
    logits = module(inputs).detach()
    p = logits.softmax(1)
    if logits.shape[1] == 1 and loss == "cross_entropy":
        inner = (logits.sigmoid() * (1 - logits.sigmoid())).unsqueeze(2)
    elif loss == "mse":
        inner = torch.eye(p.shape[1], dtype=p.dtype).expand(len(p), -1, -1) * 2 / p.shape[1]
    else:
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nap,nab,nbq->pq", j, inner, j) / len(p)


def random_like(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in module.named_parameters()}


def flat(params):
    return torch.cat([part.flatten() for part in params.values()])


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", TWINS)
def test_products_are_those_of_the_full_hessian(name, loss, chunk_size):
    module, inputs, labels = TWINS[name]()
    v = random_like(module)
    kept = {name: part.clone() for name, part in v.items()}
    product = hessian_vector_product(module, inputs, labels, loss=loss, chunk_size=chunk_size)
    expected = full(module, inputs, labels, loss) @ flat(v)
    for _ in range(2):  # the graph serves again
        torch.testing.assert_close(flat(product(v)), expected)
    assert all(torch.equal(v[name], kept[name]) for name in v)


def test_a_stack_has_every_models_product_at_once():
    built = [PIECEWISE_LINEAR["max pool"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    vs = [random_like(module, seed) for seed, module in enumerate(modules)]
    along = {name: torch.stack([v[name] for v in vs]) for name in vs[0]}
    found = hessian_vector_product(Network.stack(modules), inputs, labels)(along)
    for i, (module, v) in enumerate(zip(modules, vs, strict=True)):
        expected = full(module, inputs, labels) @ flat(v)
        torch.testing.assert_close(flat({name: part[i] for name, part in found.items()}), expected)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_a_product_is_that_of_the_weights_at_its_making(chunk_size):
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    product, v = hessian_vector_product(module, inputs, labels, chunk_size=chunk_size), random_like(module)
    before = product(v)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(product(v), before, rtol=0, atol=0)


def test_a_vector_that_does_not_fit_is_refused():
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    product, v = hessian_vector_product(module, inputs, labels), random_like(module)
    with pytest.raises(ValueError, match=r"^v has other names or shapes"):
        product({name: part.flatten() for name, part in v.items()})


# ------------------------------------------------------------------------------------------------------- eigenvalues


def operator(matrix, products=None):
    """A dense matrix that counts its products."""

    def product(v):
        if products is not None:
            products.append(1)
        return matrix @ v

    return Operator(product, {"w": torch.zeros(len(matrix), dtype=matrix.dtype)}, 0.0, 1.0)


def with_spectrum(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    noise = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(noise).Q
    return q @ torch.diag(values) @ q.T


def top_of(matrix, k, tolerance=1e-8, max_matvecs=2000):
    return largest(operator(matrix), k, tolerance, max_matvecs, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", TWINS)
def test_eigenvalues_are_those_of_the_full_hessian(name, loss):
    case = TWINS[name]()
    matrix = full(*case, loss)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    for k in (1, 6, len(matrix)):
        found = top_eigenvalues(*case, k, loss=loss, tolerance=1e-9)
        torch.testing.assert_close(found.values, expected[:k], rtol=0, atol=1e-8 * expected.abs().max().item())
        torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k, dtype=torch.float64))
        residuals = (matrix @ found.vectors.T - found.vectors.T * found.values).norm(dim=0)
        torch.testing.assert_close(residuals, found.residuals, rtol=0, atol=1e-9 * expected.abs().max().item())
        assert found.converged.all() and found.passes == 3 + 6 * found.matvecs
        assert found.matvecs <= len(matrix)


def test_top_means_algebraically_largest():
    found = top_of(with_spectrum([-9.0, -8.0, *torch.linspace(-1, 1, 60), 2.0, 3.0]), 3)
    torch.testing.assert_close(found.values, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 40), st.data())
def test_eigenvalues_of_any_symmetric_matrix(seed, n, draw):
    k = draw.draw(st.integers(1, n))
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = top_of(with_spectrum(values, seed), k)
    torch.testing.assert_close(found.values, values.sort(descending=True).values[:k], rtol=0, atol=1e-7)


def test_clusters_are_resolved():
    cluster = 1 - 1e-3 * torch.arange(8, dtype=torch.float64)
    found = top_of(with_spectrum([*cluster, *torch.linspace(0, 0.5, 300)]), 8)
    torch.testing.assert_close(found.values, cluster, rtol=0, atol=1e-9)


def test_there_are_no_ghosts():
    # Without orthogonalization the largest eigenvalue comes back as a copy of itself after some 20 products.
    values = torch.logspace(3, -3, 400, dtype=torch.float64)
    for k in (5, 40):
        products = []
        matrix = with_spectrum(values)
        found = largest(operator(matrix, products), k, 1e-9, 2000, torch.Generator().manual_seed(0))
        torch.testing.assert_close(found.values, values[:k])
        torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k, dtype=torch.float64))
        assert found.matvecs == len(products) > 2 * k


REPEATED = [
    [0.0] * 50,
    [2.0] * 50,
    [3.0, 3.0, 2.0, 2.0, 2.0, 1.0] + [0.0] * 80,
    [5.0, -4.0] + [0.0] * 60,
    [1.0] * 30 + [-1.0] * 30,
    [2.0 - 0.1 * i for i in range(12)] * 4,
]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [*((values, torch.float64) for values in REPEATED), *((values, torch.float32) for values in REPEATED[:-1])],
)
def test_eigenvalues_that_repeat_are_counted_as_often_as_they_are(values, dtype):
    expected = torch.tensor(values, dtype=dtype).sort(descending=True).values
    tolerance = 1e-8 if dtype == torch.float64 else 1e-5
    for k in (1, 3, 8):
        found = top_of(with_spectrum(values).to(dtype), k, tolerance)
        torch.testing.assert_close(found.values, expected[:k], rtol=0, atol=10 * tolerance)
        torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k, dtype=dtype))
        assert found.converged.all() and found.matvecs < 2 * len(values)


def test_a_linear_network_has_each_eigenvalue_once_a_class():
    case = made(lambda: nn.Sequential(nn.Linear(4, 3)), (4,))
    expected = torch.linalg.eigvalsh(full(*case, "mse")).flip(0)
    assert (expected[:3] - expected[0]).abs().max() < 1e-12
    found = top_eigenvalues(*case, 7, loss="mse", tolerance=1e-9)
    torch.testing.assert_close(found.values, expected[:7])


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


def test_what_did_not_converge_is_said():
    case = made(lambda: models.mlp(4, 3, width=30), (4,), samples=40)
    with pytest.warns(RuntimeWarning, match=r"^\d of 5 eigenvalues did not converge in 8 products; raise max_matvecs"):
        found = top_eigenvalues(*case, 5, max_matvecs=8, tolerance=1e-9)
    matrix = full(*case)
    residuals = (matrix @ found.vectors.T - found.vectors.T * found.values).norm(dim=0)
    torch.testing.assert_close(found.residuals, residuals)
    assert found.matvecs == 8 and not found.converged.all()
    assert torch.equal(found.converged, found.residuals <= 1e-9 * found.values.max())


def test_residuals_hold_in_single_precision():
    module, inputs, labels = made(lambda: models.mlp(6, 4, width=24, depth=2), (6,), samples=50, classes=4)
    matrix = full(module, inputs, labels)
    found = top_eigenvalues(copy.deepcopy(module).float(), inputs.float(), labels, 10)
    vectors = found.vectors.double().T
    residuals = (matrix @ vectors - vectors * found.values.double()).norm(dim=0)
    assert found.vectors.dtype == torch.float32 and found.converged.all()
    assert (residuals <= 1.5e-5 * found.values[0]).all()


@given(st.permutations(range(6)))
@settings(max_examples=5)
def test_the_order_of_hidden_units_does_not_matter(order):
    network = dense()
    inputs, labels = PIECEWISE_LINEAR["dense"]()[1:]
    pairs = [top_eigenvalues(one, inputs, labels, 4, tolerance=1e-9) for one in (network, permuted(network, order))]
    torch.testing.assert_close(pairs[1].values, pairs[0].values)


def test_a_stack_has_each_models_eigenvalues():
    built = [PIECEWISE_LINEAR["max pool"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    found = top_eigenvalues(Network.stack(modules), inputs, labels, 4, tolerance=1e-9)
    assert found.vectors.shape[:2] == found.residuals.shape == found.converged.shape == (3, 4)
    for module, values in zip(modules, found.values, strict=True):
        torch.testing.assert_close(values, torch.linalg.eigvalsh(full(module, inputs, labels)).flip(0)[:4])


def test_a_product_is_one_host_read_and_quadrature_none():
    case = made(lambda: models.mlp(4, 3, width=30), (4,), samples=40)
    with HostReads() as checks:
        Objective.of(*case)
    with HostReads() as reads:
        found = top_eigenvalues(*case, 2, tolerance=1e-9)
    assert reads.count <= checks.count + 4 + found.matvecs * 4  # a row a read, each of few numbers
    counts = []
    for steps in (4, 12):
        with HostReads() as reads:
            spectral_density(*case, steps=steps, draws=2)
        counts.append(reads.count)
    assert counts[0] == counts[1] <= checks.count + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "^k is 0; it must be from 1 to 106"),
        ({"k": 107}, "^k is 107; it must be from 1 to 106"),
        ({"k": 3, "loss": "error"}, "^loss is 'error'"),
        ({"k": 3, "tolerance": 1e-17}, "^tolerance is 1e-17; torch.float64 resolves"),
        ({"k": 3, "tolerance": 1.0}, "^tolerance is 1.0"),
        ({"k": 3, "max_matvecs": 2}, "^max_matvecs is 2; give at least k = 3"),
    ],
)
def test_bad_requests_for_eigenvalues_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        top_eigenvalues(*PIECEWISE_LINEAR["dense"](), **options)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # by what they import
def test_peers_agree():
    from curvlinops import HessianLinearOperator
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    for name in ("dense", "tanh"):
        module, inputs, labels = TWINS[name]()
        criterion, data = nn.CrossEntropyLoss(), [(inputs, labels)]
        theirs = HessianLinearOperator(module, criterion, list(module.parameters()), data)
        v = random_like(module)
        product = hessian_vector_product(module, inputs, labels)(v)
        torch.testing.assert_close(flat(product), theirs @ flat(v))
        matrix = HessianOperator(module, data, supervised_loss(criterion))
        values = lanczos(matrix, k=3, max_iter=40, reorthogonalize=True, which="LA", seed=0).eigenvalues
        found = top_eigenvalues(module, inputs, labels, 3, tolerance=1e-9).values
        torch.testing.assert_close(found, values.sort(descending=True).values)


# ------------------------------------------------------------------------------------------------- Gauss-Newton part


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", [*PIECEWISE_LINEAR, "tanh"])
def test_gauss_newton_eigenvalues_are_those_of_the_full_matrix(name, loss):
    case = {**PIECEWISE_LINEAR, **SMOOTH}[name]()
    matrix = gauss_newton(*case, loss)
    found = gauss_newton_eigenvalues(*case, loss=loss)
    rows = len(case[1]) * case[0](case[1]).shape[1]
    assert len(found) == min(rows, len(matrix)) and (found >= 0).all()
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    torch.testing.assert_close(found, expected[: len(found)].clamp(min=0), rtol=1e-7, atol=1e-12)
    if name != "tanh":
        torch.testing.assert_close(found.sum(), trace(*case, loss=loss, method="exact").value)
    torch.testing.assert_close(gauss_newton_eigenvalues(*case, loss=loss, chunk_size=4), found)


def test_gauss_newton_eigenvalues_of_a_stack_and_in_single_precision():
    built = [PIECEWISE_LINEAR["max pool"](seed) for seed in range(2)]
    modules, (_, inputs, labels) = [module.float() for module, _, _ in built], built[0]
    found = gauss_newton_eigenvalues(Network.stack(modules), inputs.float(), labels)
    assert found.dtype == torch.float32
    for module, values in zip(modules, found, strict=True):
        expected = gauss_newton_eigenvalues(module.double(), inputs.float().double(), labels)
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["shared weight", "runs twice", "outside of a layer", "layer norm"])
def test_gauss_newton_eigenvalues_of_unknown_layers_are_refused(name):
    with pytest.raises(ValueError, match=r"^network: .*; top_eigenvalues"):
        gauss_newton_eigenvalues(*SMOOTH[name]())


def test_too_many_rows_for_all_eigenvalues_are_refused(monkeypatch):
    monkeypatch.setattr("genlib.curvature.eigenvalues._GRAM_LIMIT", 27)
    with pytest.raises(ValueError, match=r"^inputs has 7 samples, of 4 outputs.*top_eigenvalues"):
        gauss_newton_eigenvalues(*PIECEWISE_LINEAR["dense"]())


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", TWINS)
def test_the_gauss_newton_error_is_that_of_the_full_matrices(name, loss):
    case = TWINS[name]()
    h = full(*case, loss)
    expected = (h - gauss_newton(*case, loss)).norm() / h.norm()
    found = gauss_newton_error(*case, loss=loss, vectors=150)
    assert expected > 0.05
    assert (found.value - expected).abs() < 4 * found.standard_error
    assert found.standard_error < 0.15 * expected
    whole, parts = (gauss_newton_error(*case, loss=loss, vectors=6, chunk_size=size) for size in (None, 3))
    torch.testing.assert_close(parts.value, whole.value)


def test_the_gauss_newton_part_of_a_linear_network_is_all():
    case = made(lambda: nn.Sequential(nn.Linear(4, 3)), (4,))
    assert gauss_newton_error(*case).value < 1e-12


# ------------------------------------------------------------------------------------------------- norm and spectrum


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", TWINS)
def test_the_frobenius_norm_is_that_of_the_full_hessian(name, loss):
    case = TWINS[name]()
    expected = full(*case, loss).norm()
    torch.testing.assert_close(frobenius_norm(*case, loss=loss, vectors=700).value, expected)


def test_the_frobenius_norm_scatters_as_its_error_says():
    case = made(lambda: models.mlp(4, 3, width=12, activation="tanh"), (4,), samples=40)
    expected = full(*case).norm()
    runs = [frobenius_norm(*case, vectors=12, generator=torch.Generator().manual_seed(seed)) for seed in range(100)]
    squares = torch.stack([r.value for r in runs]).square()
    errors = torch.stack([2 * r.value * r.standard_error for r in runs])
    assert (squares.mean() - expected**2).abs() < 4 * squares.std() / 10
    torch.testing.assert_close(errors.square().mean().sqrt(), squares.std(), rtol=0.3, atol=0)


@pytest.mark.parametrize("stacked", [False, True])
def test_known_eigenpairs_leave_the_rest_of_the_norm_to_chance(stacked):
    case = made(lambda: models.mlp(4, 3, width=12, activation="tanh"), (4,), samples=40)
    expected, network = full(*case).norm(), Network.stack([case[0]] * 2) if stacked else case[0]
    pairs = top_eigenvalues(network, *case[1:], 10)
    blind, found = (frobenius_norm(network, *case[1:], vectors=9, known=known) for known in (None, pairs))
    assert (found.standard_error < 0.5 * blind.standard_error).all() and found.passes == 3 + 6 * 9
    assert ((found.value - expected).abs() < 4 * found.standard_error).all()
    every = top_eigenvalues(network, *case[1:], sum(p.numel() for p in case[0].parameters()))
    whole = frobenius_norm(network, *case[1:], vectors=6, known=every)
    torch.testing.assert_close(whole.value, expected.expand_as(whole.value))


def test_quadrature_gives_functions_of_the_matrix():
    matrix = with_spectrum(torch.linspace(-1, 2, 30))
    z = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for steps, function in ((30, torch.linalg.matrix_exp), (4, lambda a: torch.linalg.matrix_power(a, 7))):
        nodes, weights = quadrature(operator(matrix), z, steps)
        found = (weights * (nodes.exp() if steps == 30 else nodes**7)).sum()
        torch.testing.assert_close(found, z @ function(matrix) @ z / (z @ z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quadrature_goes_on_where_lanczos_breaks_down(dtype):
    matrix = with_spectrum([3.0, 3.0, 1.0] + [0.0] * 20).to(dtype)
    nodes, weights = quadrature(operator(matrix), torch.ones(23, dtype=dtype), 10)
    assert nodes.isfinite().all() and weights.sum() == pytest.approx(1)
    near = (nodes[:, None] - torch.tensor([0.0, 1.0, 3.0])).abs().min(1).values < 1e-5
    assert weights[~near].sum() < 1e-5


def test_the_density_is_that_of_all_eigenvalues():
    case, draws = PIECEWISE_LINEAR["dense"](), 40
    exact = torch.linalg.eigvalsh(full(*case))
    found = spectral_density(*case, steps=40, draws=draws)
    assert found.passes == 3 + 6 * 40 * draws and found.nodes.shape == found.weights.shape == (draws, 40)
    grid, width = torch.linspace(-3, 13, 400, dtype=torch.float64), 0.5
    heights = torch.exp(-(((grid[:, None] - exact) / width) ** 2) / 2) / (width * (2 * torch.pi) ** 0.5)
    density = found.on(grid, width=width)
    each = Density(found.nodes.unsqueeze(1), draws * found.weights.unsqueeze(1), 0.0).on(grid, width=width)
    torch.testing.assert_close(each.mean(0), density)
    assert ((density - heights.mean(1)).abs() <= 5 * each.std(0) / draws**0.5 + 1e-3).all()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=r"^width is 0"):
        found.on(grid, width=0.0)


def test_a_stack_has_each_models_density_and_norm():
    built = [PIECEWISE_LINEAR["dense"](seed) for seed in range(2)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    stack = Network.stack(modules)
    density = spectral_density(stack, inputs, labels, steps=6, draws=3)
    assert density.nodes.shape == (2, 3, 6) and density.on(torch.linspace(0, 1, 5).double(), width=0.1).shape == (2, 5)
    expected = torch.stack([full(module, inputs, labels).norm() for module in modules])
    torch.testing.assert_close(frobenius_norm(stack, inputs, labels, vectors=400).value, expected)
    assert gauss_newton_error(stack, inputs, labels).value.shape == (2,)


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


# ------------------------------------------------------------------------------------------------------------ volume


@pytest.mark.parametrize("loss", MEANS)
def test_the_volume_is_that_of_the_full_hessians_eigenvalues(loss):
    case = PIECEWISE_LINEAR["dense"]()
    exact = torch.linalg.eigvalsh(full(*case, loss)).flip(0)
    found = log_basin_volume(*case, 5, loss=loss)
    torch.testing.assert_close(found.value, -exact[:5].log().sum())
    assert (found.counted, found.negative, found.standard_error) == (5, 0, 0)
    floor = 1e-2
    found = log_basin_volume(*case, floor=floor, loss=loss)
    above = exact[exact > floor * exact[0]]
    assert found.counted == len(above) > 16 and len(found.eigenvalues) == 64
    torch.testing.assert_close(found.value, -above.log().sum())


def test_eigenvalues_below_zero_are_counted_and_left_out():
    case = PIECEWISE_LINEAR["dense"]()
    exact = torch.linalg.eigvalsh(full(*case)).flip(0)
    found = log_basin_volume(*case, 106, floor=1e-3, tolerance=1e-9)
    assert found.negative > 0 and found.counted == (exact > 1e-3 * exact[0]).sum()
    torch.testing.assert_close(found.value, -exact[exact > 1e-3 * exact[0]].log().sum())
    torch.testing.assert_close(log_basin_volume(*case, floor=1e-3, tolerance=1e-9).value, found.value)


def test_a_stack_has_each_models_volume():
    built = [PIECEWISE_LINEAR["dense"](seed) for seed in range(3)]
    modules, (_, inputs, labels) = [module for module, _, _ in built], built[0]
    for options in ({"k": 4}, {"floor": 0.05}):
        found = log_basin_volume(Network.stack(modules), inputs, labels, **options)
        singles = [log_basin_volume(module, inputs, labels, **options) for module in modules]
        torch.testing.assert_close(found.value, torch.stack([one.value for one in singles]))
        assert torch.equal(found.counted, torch.stack([one.counted for one in singles]))
