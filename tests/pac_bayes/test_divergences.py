"""Divergences, the inverse of that of Bernoullis, and the bounds that they give."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import xlogy

from genlib.pac_bayes import gaussian_kl, kl_inverse, mcallester_bound, seeger_bound


def kl_of_bernoullis(q, p):
    return xlogy(q, q / p) + xlogy(1 - q, (1 - q) / (1 - p))


def test_gaussian_kl_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean, prior_mean = torch.randn(2, 3, 7, generator=generator)
    std, prior_std = torch.rand(2, 3, 7, generator=generator) + 0.1
    normals = [torch.distributions.Normal(m.double(), s.double()) for m, s in ((mean, std), (prior_mean, prior_std))]
    exact = torch.distributions.kl_divergence(*normals).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, std, prior_mean, prior_std), exact)


def test_gaussian_kl_of_the_isotropic_case_is_the_norm():
    w = torch.tensor([3.0, 4.0])
    assert gaussian_kl(w, 0.5, 0.0, 0.5) == 25 / (2 * 0.25)
    assert gaussian_kl(1.0, 0.5, 1.0, 0.5) == 0


def test_gaussian_kl_of_extreme_deviations():
    assert gaussian_kl(0.0, 1e-12, 0.0, 1.0) == pytest.approx(12 * math.log(10) - 0.5)
    near = 1e-7  # ½ (r² − 1 − ln r²) is ε² to second order
    assert gaussian_kl(0.0, 1 + near, 0.0, 1.0) == pytest.approx(near**2, rel=1e-2)


@given(st.floats(-10, 10), st.floats(1e-6, 1e6), st.floats(-10, 10), st.floats(1e-6, 1e6))
def test_gaussian_kl_is_never_negative(mean, std, prior_mean, prior_std):
    assert gaussian_kl(mean, std, prior_mean, prior_std) >= 0


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_gaussian_kl_refuses_what_is_no_deviation(std):
    with pytest.raises(ValueError, match="must be positive"):
        gaussian_kl(torch.zeros(3), std, 0.0, 1.0)


def test_kl_inverse_agrees_with_brentq():
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(900, generator=generator, dtype=torch.float64)
    risks = torch.cat([spread[:300], 10 ** (-12 * spread[300:600]), 1 - 10 ** (-9 * spread[600:])])
    bounds = 10 ** (11 * torch.rand(900, generator=generator, dtype=torch.float64) - 9)
    roots, nearly_one = [], 1 - 1e-16
    for q, bound in zip(risks.tolist(), bounds.tolist(), strict=True):
        outside = kl_of_bernoullis(q, nearly_one) < bound
        root = 1.0 if outside else brentq(lambda p, q=q, b=bound: kl_of_bernoullis(q, p) - b, q, nearly_one, xtol=1e-14)
        roots.append(root)
    error = (kl_inverse(risks, bounds) - torch.tensor(roots, dtype=torch.float64)).abs()
    assert error.max() < 1e-10


@given(st.floats(0, 1), st.floats(0, 50))
def test_kl_inverse_is_the_upper_root(risk, bound):
    p = kl_inverse(risk, bound).item()
    assert risk <= p <= 1
    if risk < p < 1 - 1e-9 and bound > 1e-9:
        assert kl_of_bernoullis(risk, p) == pytest.approx(bound, rel=1e-5)


@given(st.floats(0, 1), st.floats(0, 20), st.floats(1e-3, 5))
def test_kl_inverse_grows_with_the_bound(risk, bound, more):
    assert kl_inverse(risk, bound + more) >= kl_inverse(risk, bound)


def test_kl_inverse_at_the_edges():
    inf = math.inf
    risks = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.3, 0.3, 1e-300, 5e-324, 1 - 2**-53], dtype=torch.float64)
    bounds = torch.tensor([0.0, 0.7, inf, 0.0, 2.0, 0.0, inf, 0.7, 0.7, 40.0], dtype=torch.float64)
    e = 1 - math.exp(-0.7)
    expected = torch.tensor([0.0, e, 1.0, 1.0, 1.0, 0.3, 1.0, e, e, 1.0], dtype=torch.float64)
    found = kl_inverse(risks, bounds)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert kl_inverse(torch.rand(3, 1), torch.rand(4)).shape == (3, 4)


def test_kl_inverse_of_bounds_that_rounding_hides():
    risks = torch.tensor([1e-9, 1e-3, 0.05, 0.5, 0.999], dtype=torch.float64)[:, None]
    bounds = 10 ** torch.linspace(-300, -12, 145, dtype=torch.float64)
    parabola = risks + (2 * risks * (1 - risks) * bounds).sqrt()
    torch.testing.assert_close(kl_inverse(risks, bounds), parabola, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("risk", "bound", "message"),
    [(-0.1, 1.0, "risk"), (1.1, 1.0, "risk"), (math.nan, 1.0, "risk"), (0.5, -1.0, "bound"), (0.5, math.nan, "bound")],
)
def test_kl_inverse_refuses(risk, bound, message):
    with pytest.raises(ValueError, match=f"{message} must"):
        kl_inverse(risk, bound)


def test_the_bounds_by_hand():
    complexity = (50 + math.log(2 * math.sqrt(1000) / 0.05)) / 1000
    assert mcallester_bound(0.1, 50.0, samples=1000, delta=0.05) == pytest.approx(0.1 + math.sqrt(complexity / 2))
    root = brentq(lambda p: kl_of_bernoullis(0.1, p) - complexity, 0.1, 0.999)
    assert seeger_bound(0.1, 50.0, samples=1000, delta=0.05) == pytest.approx(root)


@given(st.floats(0, 1), st.floats(0, 1e4), st.integers(1, 10**6), st.floats(1e-6, 0.5))
def test_the_bounds_are_in_order_and_fall_with_the_samples(risk, kl, samples, delta):
    given_ = {"samples": samples, "delta": delta}
    assert risk <= seeger_bound(risk, kl, **given_) <= 1
    assert seeger_bound(risk, kl, **given_) <= mcallester_bound(risk, kl, **given_) + 1e-12
    # ln(2√m)/m falls from m = 2 on, and with δ below ½ from 1
    for bound in (seeger_bound, mcallester_bound):
        assert bound(risk, kl, samples=4 * samples, delta=delta) <= bound(risk, kl, **given_) + 1e-12


@pytest.mark.parametrize("bound", [mcallester_bound, seeger_bound])
@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("risk must", {"risk": 1.5}),
        ("kl must", {"kl": -1.0}),
        ("kl must", {"kl": math.nan}),
        ("samples is 0", {"samples": 0}),
        ("delta is 0", {"delta": 0.0}),
        ("delta is 1", {"delta": 1.0}),
    ],
)
def test_the_bounds_refuse(bound, message, options):
    asked = {"risk": 0.1, "kl": 5.0, "samples": 100, "delta": 0.05, **options}
    with pytest.raises(ValueError, match=message):
        bound(**asked)
