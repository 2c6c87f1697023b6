"""Eigenvalues of the Hessian and of its Gauss-Newton part, against those of the full matrices."""

import copy

import pytest
import torch
from cases import HostReads, dense, permuted
from curvature_cases import MEANS, PIECEWISE_LINEAR, SMOOTH, TWINS, flat, full, gauss_newton, made, random_like
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genlib import models
from genlib.curvature import gauss_newton_eigenvalues, hessian_vector_product, spectral_density, top_eigenvalues, trace
from genlib.network import Network
from genlib.sharpness import Objective


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


def test_a_linear_network_has_each_eigenvalue_once_a_class():
    case = made(lambda: nn.Sequential(nn.Linear(4, 3)), (4,))
    expected = torch.linalg.eigvalsh(full(*case, "mse")).flip(0)
    assert (expected[:3] - expected[0]).abs().max() < 1e-12
    found = top_eigenvalues(*case, 7, loss="mse", tolerance=1e-9)
    torch.testing.assert_close(found.values, expected[:7])


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
    assert counts[0] == counts[1] <= checks.count + 3  # that at the derivatives among them


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
