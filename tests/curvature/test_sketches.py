"""Traces, norms and errors that are estimated: what they scatter about, and by how much."""

from dataclasses import replace

import pytest
import torch
from curvature_cases import (
    MEANS,
    PIECEWISE_LINEAR,
    SMOOTH,
    TWINS,
    blocks,
    by_layer,
    full,
    gauss_newton,
    made,
    operator,
    with_spectrum,
)
from scipy import special
from torch import nn

from genlib import models
from genlib.curvature import frobenius_norm, gauss_newton_error, top_eigenvalues, trace
from genlib.curvature.sketches import xtrace
from genlib.network import Network


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_not_piecewise_linear_is_estimated(name):
    case = SMOOTH[name]()
    expected = blocks(*case, "cross_entropy")
    found = trace(*case, vectors=200)
    torch.testing.assert_close(found.value, sum(expected.values()))
    torch.testing.assert_close(found.by_layer, by_layer(expected))
    with pytest.raises(ValueError, match=r"^network: .*xtrace"):
        trace(*case, method="exact")


def test_xtrace_scatters_about_the_trace_as_its_error_says():
    case = made(lambda: models.mlp(4, 3, width=12, activation="tanh"), (4,), samples=40)
    expected = by_layer(blocks(*case, "cross_entropy"))
    runs = [trace(*case, vectors=9, generator=torch.Generator().manual_seed(seed)) for seed in range(100)]
    values, errors = torch.stack([r.value for r in runs]), torch.stack([r.standard_error for r in runs])
    assert (values.mean() - sum(expected.values())).abs() < 4 * values.std() / 10
    torch.testing.assert_close(errors.square().mean().sqrt(), values.std(), rtol=0.3, atol=0)
    for layer, value in expected.items():
        parts = torch.stack([r.by_layer[layer] for r in runs])
        assert (parts.mean() - value).abs() < 4 * parts.std() / 10


_I = torch.arange(60)
SPECTRA = {
    "flat": 3 - _I / 30,
    "slow": 1 / (_I + 1),
    "fast": 0.8**_I,
    "indefinite": (-1.0) ** _I / (_I + 1),
    "gap": torch.where(_I < 5, 1.0, 1e-3),
    "repeated": torch.where(_I < 30, 1.0, -0.5),
}
LAYERS = nn.Sequential(nn.Linear(6, 5), nn.Linear(4, 5))


def estimated(spectrum, vectors, seed=0, dtype=torch.float64):
    matrix = with_spectrum(spectrum).to(dtype)
    like = {name: p.detach().to(dtype) for name, p in LAYERS.named_parameters()}
    return xtrace(replace(operator(matrix), like=like), vectors, torch.Generator().manual_seed(seed), LAYERS)


@pytest.mark.parametrize("name", SPECTRA)
def test_xtrace_is_that_of_a_basis_for_every_pair_left_out(name):
    matrix, k = with_spectrum(SPECTRA[name]), 6
    source = torch.Generator().manual_seed(0)
    tests = torch.stack([operator(matrix).signs(source) for _ in range(k)], 1)
    each = torch.empty(2, k, k, dtype=torch.float64)
    for i in range(k):
        for j in range(k):
            q = torch.linalg.qr(matrix @ tests[:, [c for c in range(k) if c not in (i, j)]]).Q
            u = tests[:, i] - q @ (q.T @ tests[:, i])
            diagonal = (q * (matrix @ q)).sum(1) + u * (matrix @ u)
            each[:, i, j] = torch.stack([part.sum() for part in diagonal.split([35, 25])])
    found = estimated(SPECTRA[name], 2 * k + 1)
    t = each.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close([*found.by_layer.values()], [*t.mean(1)])
    torch.testing.assert_close(found.value, t.mean(1).sum())
    for error, of in ((found.standard_error, each.sum(0)), *zip(found.errors_by_layer.values(), each, strict=True)):
        t, pairs = of.diagonal(), [(i, j) for i in range(k) for j in range(k) if i != j]
        together = sum((t[i] - of[i, j]) * (t[j] - of[j, i]) for i, j in pairs) / len(pairs)
        torch.testing.assert_close(error, (t.var() / k + together.abs()).sqrt())
    assert found.passes == 2 * k


@pytest.mark.parametrize("name", ["slow", "fast", "indefinite", "gap"])
def test_the_interval_of_xtrace_holds_the_trace(name):
    runs = [estimated(SPECTRA[name], 10, seed) for seed in range(100)]
    diagonal, t = with_spectrum(SPECTRA[name]).diagonal(), special.stdtrit(4, 0.975)
    for value, found, errors in (
        (diagonal.sum(), [r.value for r in runs], [r.standard_error for r in runs]),
        (diagonal[:35].sum(), [r.by_layer["0"] for r in runs], [r.errors_by_layer["0"] for r in runs]),
    ):
        off = (torch.stack(found) - value).abs()
        assert (off <= t * torch.stack(errors)).double().mean() >= 0.91
        assert (off <= 0.5 * torch.stack(errors)).double().mean() <= 0.6  # nor is the error too large


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [0, 1, 3, 8])
def test_the_trace_of_a_low_rank_is_exact(rank, dtype):
    spectrum = torch.zeros(60)
    spectrum[:rank] = torch.arange(1, rank + 1) * (-1.0) ** torch.arange(rank)
    found, diagonal = estimated(spectrum, 20, dtype=dtype), with_spectrum(spectrum).diagonal().to(dtype)
    near = 20 * torch.finfo(dtype).eps * spectrum.abs().sum().item()
    assert (found.value - diagonal.sum()).abs() <= near and found.standard_error <= near
    for share, error, part in zip(
        found.by_layer.values(), found.errors_by_layer.values(), diagonal.split([35, 25]), strict=True
    ):
        assert (share - part.sum()).abs() <= near and error <= 20 * near


def test_as_many_vectors_as_parameters_give_every_entry():
    found = estimated(SPECTRA["indefinite"], 61)
    diagonal = with_spectrum(SPECTRA["indefinite"]).diagonal()
    torch.testing.assert_close([*found.by_layer.values()], [part.sum() for part in diagonal.split([35, 25])])
    assert found.passes == 60 and not found.standard_error and not any(found.errors_by_layer.values())


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


@pytest.mark.parametrize("loss", MEANS)
@pytest.mark.parametrize("name", TWINS)
def test_the_frobenius_norm_is_that_of_the_full_hessian(name, loss):
    case = TWINS[name]()
    matrix = full(*case, loss)  # a third of the vectors spans all parameters: nothing is left to chance
    torch.testing.assert_close(frobenius_norm(*case, loss=loss, vectors=3 * len(matrix)).value, matrix.norm())


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


def test_the_traces_of_gates_and_their_errors():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(2, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    case = made(Recurrent, (3, 2), samples=10)
    found = trace(*case, vectors=250)  # more than parameters
    names = [f"rnn.weight_{of}_l0.{gate}" for of in ("ih", "hh") for gate in "rzn"]
    assert [*found.by_layer] == [*found.errors_by_layer] == [*names, "head"]
    diagonal = dict(zip((n for n, _ in case[0].named_parameters()), _diagonals(*case), strict=True))
    for i, name in enumerate(names):
        of, rows = name[11:13], slice(3 * (i % 3), 3 * (i % 3) + 3)
        expected = diagonal[f"rnn.weight_{of}_l0"][rows].sum() + diagonal[f"rnn.bias_{of}_l0"][rows].sum()
        torch.testing.assert_close(found.by_layer[name], expected)
    few = [trace(*case, vectors=9, generator=torch.Generator().manual_seed(seed)) for seed in range(100)]
    for name in (names[0], "head"):
        values, errors = (torch.stack([getattr(r, of)[name] for r in few]) for of in ("by_layer", "errors_by_layer"))
        torch.testing.assert_close(errors.square().mean().sqrt(), values.std(), rtol=0.3, atol=0)


def _diagonals(module, inputs, labels):
    diagonal = full(module, inputs, labels).diagonal()
    return [
        part.view_as(p)
        for part, p in zip(diagonal.split([p.numel() for p in module.parameters()]), module.parameters(), strict=True)
    ]
