"""Lanczos' method on matrices of any spectrum: clusters, copies, breakdowns, and quadrature."""

import pytest
import torch
from curvature_cases import operator, with_spectrum
from hypothesis import given, settings
from hypothesis import strategies as st

from genlib.curvature import lanczos
from genlib.curvature.lanczos import largest, quadrature


def top_of(matrix, k, tolerance=1e-8, max_matvecs=2000):
    return largest(operator(matrix), k, tolerance, max_matvecs, torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_no_scale_is_lost_in_squares(scale):
    matrix = with_spectrum(torch.linspace(-1, 2, 60)).float()
    plain, scaled = top_of(matrix, 4, 1e-5), top_of(scale * matrix, 4, 1e-5)
    torch.testing.assert_close(scaled.values / scale, plain.values)
    assert scaled.converged.all() and scaled.matvecs > 8
    start = torch.ones(60)
    plain, scaled = (quadrature(operator(one), start, 10) for one in (matrix, scale * matrix))
    torch.testing.assert_close(scaled[0] / scale, plain[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scaled[1], plain[1], rtol=1e-3, atol=1e-4)


def test_a_scale_without_digits_is_refused():
    with pytest.raises(ValueError, match=r"^network: its Hessian is of order 2e-36, where torch.float32 runs out"):
        top_of(1e-36 * with_spectrum(torch.linspace(-1, 2, 60)).float(), 4, 1e-5)


@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_restarts_in_place_change_nothing(k, monkeypatch):
    matrix = with_spectrum(torch.linspace(0, 1, 300))
    monkeypatch.setattr(lanczos, "_COLUMNS", 7)
    products = []
    found = largest(operator(matrix, products), k, 1e-8, 2000, torch.Generator().manual_seed(0))
    assert len(products) > 3 * k + 30  # beyond what the basis holds
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matrix).flip(0)[:k], rtol=0, atol=1e-8)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(k, dtype=torch.float64))
    residuals = (matrix @ found.vectors.T - found.vectors.T * found.values).norm(dim=0)
    torch.testing.assert_close(residuals, found.residuals, rtol=0, atol=1e-9)
    assert len(found.vectors.untyped_storage()) == found.vectors.nbytes  # no row is kept but these


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
