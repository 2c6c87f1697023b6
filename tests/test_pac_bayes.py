import math

import cases
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import xlogy
from torch import nn

from genlib import models
from genlib.network import Network
from genlib.pac_bayes import (
    gaussian_kl,
    kl_inverse,
    largest_sigma,
    mcallester_bound,
    pac_bayes_bound,
    seeger_bound,
    sharpness_kl,
)
from genlib.sharpness import Objective, expected_sharpness, perturbed_losses


def dense(seed=0, **options):
    return cases.dense(seed, **{"width": 16, **options})


def data(seed=0, samples=200):
    """Inputs, and the labels that a first network gives them."""
    inputs, _ = cases.data(seed, samples)
    return inputs, dense(seed)(inputs).argmax(-1)


def flat(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def kl_of_bernoullis(q, p):
    return xlogy(q, q / p) + xlogy(1 - q, (1 - q) / (1 - p))


# -------------------------------------------------------------------------------------------------------- divergences


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


# ------------------------------------------------------------------------------------------------------------- bounds


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


def test_every_step_of_the_bound_by_hand():
    module, initial, (inputs, labels) = dense(0), dense(1), data()
    for prior, unit in (("isotropic", torch.ones_like(flat(initial))), ("scaled", 10 * flat(initial).abs() + 1)):
        found = pac_bayes_bound(module, inputs, labels, initial=initial, std=0.1, prior=prior, draws=40, delta=0.1)
        kls = torch.stack(
            [
                gaussian_kl(flat(module), 0.1, flat(initial), scale * unit)
                for scale in torch.logspace(-4, 1, 2048).double()
            ]
        )
        torch.testing.assert_close(found.kl, kls.min())
        # the prior's deviations are those of the initial weights: the 2020 reference code takes the distance's for both
        torch.testing.assert_close(found.kl, gaussian_kl(flat(module), 0.1, flat(initial), found.prior_scale * unit))
        errors = perturbed_losses(Objective.of(module, inputs, labels, "error"), scale=0.1, draws=40, antithetic=False)
        torch.testing.assert_close(found.gibbs_risk, errors.mean())
        torch.testing.assert_close(found.gibbs_bound, kl_inverse(errors.mean(), math.log(2 / 0.02) / 40))
        by_hand = kl_inverse(found.gibbs_bound, (found.kl + math.log(2 * math.sqrt(200) * 2048 / 0.08)) / 200)
        torch.testing.assert_close(found.value, by_hand)
        assert found.delta_draws + found.priors * found.delta_prior == pytest.approx(found.delta)
        assert (found.draws, found.samples, found.passes, found.guessing) == (40, 200, 40.0, 0.75)


def test_the_bound_of_independent_draws():
    # Antithetic draws depend on one another, so that they would not bound the Gibbs risk.
    module, (inputs, labels) = dense(), data()
    objective = Objective.of(module, inputs, labels, "error")
    for sampling in ("weights", "preactivations"):
        single = perturbed_losses(objective, scale=0.3, draws=400, antithetic=False, sampling=sampling)
        paired = perturbed_losses(objective, scale=0.3, draws=2000, sampling=sampling)
        assert single.shape == (400,)
        assert abs(single.mean() - paired.mean()) < 4 * single.std() / 20
        halves = torch.stack((single[::2], single[1::2]))
        assert abs(torch.corrcoef(halves)[0, 1]) < 0.3


def test_a_posterior_may_have_a_deviation_for_each_weight():
    module, initial, (inputs, labels) = dense(0), dense(1), data()
    std = {name: 0.05 + 0.1 * w.detach().abs() for name, w in module.named_parameters()}
    found = pac_bayes_bound(module, inputs, labels, initial=initial, std=std, draws=10)
    spread = torch.cat([s.flatten() for s in std.values()])
    torch.testing.assert_close(found.kl, gaussian_kl(flat(module), spread, flat(initial), found.prior_scale))


def test_it_says_when_it_is_vacuous():
    module, (inputs, labels) = dense(), data(samples=4000)
    near = pac_bayes_bound(module, inputs, labels, initial=module, std=0.1, draws=200)
    far = pac_bayes_bound(module, inputs[:200], labels[:200], initial=dense(1), std=1e-3, draws=200)
    assert near.value < 0.75 <= far.value
    assert not near.vacuous
    assert far.vacuous
    assert "(not vacuous)" in str(near)
    assert "(vacuous)" in str(far)
    assert "δ 0.01" in str(far)


def test_a_grid_of_priors_is_paid_for():
    module, (inputs, labels) = dense(), data()
    asked = {"initial": dense(1), "std": 0.1, "draws": 20}
    one, two = (
        pac_bayes_bound(module, inputs, labels, prior_scales=torch.tensor(scales), **asked)
        for scales in ([0.5], [0.5, 9.0])
    )
    assert one.kl == two.kl
    assert one.prior_scale == two.prior_scale == 0.5
    assert two.delta_prior == one.delta_prior / 2
    assert two.value > one.value


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("delta is 1.5", {"delta": 1.5}),
        ("draws is 0", {"draws": 0}),
        ("prior is 'learned'", {"prior": "learned"}),
        ("initial has other parameters", {"initial": dense(width=3)}),
        ("std must be positive", {"std": 0.0}),
        ("std must be positive", {"std": {n: torch.zeros(()) for n, _ in dense().named_parameters()}}),
        ("noise lacks or adds", {"std": {"0.weight": torch.ones(())}}),
        ("prior_scales is empty", {"prior_scales": torch.tensor([])}),
        ("prior_scales is empty or holds", {"prior_scales": torch.tensor([0.1, 0.0])}),
    ],
)
def test_the_bound_refuses(message, options):
    with pytest.raises(ValueError, match=message):
        pac_bayes_bound(dense(), *data(), **{"initial": dense(1), "std": 0.1, "draws": 4, **options})


# ---------------------------------------------------------------------------------------------------- the sigma search


@pytest.mark.parametrize("noise", ["isotropic", "scaled", "magnitude"])
@pytest.mark.parametrize("of", ["error", "loss"])
def test_the_rise_at_sigma_is_what_was_asked_for(of, noise):
    module, (inputs, labels) = dense(), data()
    found = largest_sigma(module, inputs, labels, of=of, noise=noise, draws=60)  # few pairs don't know their own error
    assert found.converged
    assert 0 < found.standard_error < 0.2 * found.value
    assert found.lower <= found.value <= found.upper
    loss = "error" if of == "error" else "cross_entropy"

    def rise(sigma):
        return expected_sharpness(module, inputs, labels, scale=sigma, noise=noise, draws=400, loss=loss).value

    # fresh draws, and the same σ: a search that took σ² for the deviation would be far off
    assert rise(found.value - 4 * found.standard_error) < 0.1 < rise(found.value + 4 * found.standard_error)


def test_sigma_by_the_curvature():
    # A linear network, a small rise: L(w + ν) − L(w) is ½ σ² tr H to second order.
    torch.manual_seed(0)
    module, (inputs, labels) = nn.Sequential(nn.Linear(5, 4)).double(), data()
    names = [name for name, _ in module.named_parameters()]

    def loss(*params):
        return F.cross_entropy(
            torch.func.functional_call(module, dict(zip(names, params, strict=True)), inputs), labels
        )

    params = tuple(p.detach() for p in module.parameters())
    hessian = torch.autograd.functional.hessian(loss, params)
    trace = sum(hessian[i][i].reshape(params[i].numel(), -1).trace() for i in range(2))
    exact = (2 * 1e-3 / trace).sqrt()
    found = largest_sigma(
        module, inputs, labels, of="loss", increase=1e-3, draws=100, start=exact.item(), tolerance=0.05
    )
    assert abs(found.value - exact) < 4 * found.standard_error + 0.01 * exact
    assert found.standard_error < 0.05 * exact


def test_the_error_of_sigma_is_the_spread_over_draws():
    module, (inputs, labels) = dense(), data()
    for of in ("error", "loss"):
        found = [
            largest_sigma(module, inputs, labels, of=of, generator=torch.Generator().manual_seed(seed))
            for seed in range(40)
        ]
        spread = torch.stack([one.value for one in found]).std()
        stated = torch.stack([one.standard_error for one in found]).square().mean().sqrt()
        assert 0.7 < spread / stated < 1.4


def test_the_search_is_short():
    passes = [
        largest_sigma(dense(seed, width=width), *data(seed), of=of, noise=noise).passes
        for seed in range(3)
        for width in (16, 64)
        for of in ("error", "loss")
        for noise in ("isotropic", "magnitude")
    ]
    assert sum(passes) / len(passes) <= 30


@pytest.mark.parametrize("of", ["error", "loss"])
def test_where_it_starts_does_not_matter(of):
    module, (inputs, labels) = dense(), data()
    near, far, small = (
        largest_sigma(module, inputs, labels, of=of, start=start, tolerance=0.01) for start in (0.1, 10.0, 1e-5)
    )
    torch.testing.assert_close(far.value, near.value, rtol=0.01, atol=0)
    torch.testing.assert_close(small.value, near.value, rtol=0.01, atol=0)


def test_the_last_secant_saves_steps():
    module, (inputs, labels) = dense(), data()
    for start in (0.08, 0.15, 0.3):
        rough, fine = (
            largest_sigma(module, inputs, labels, of="loss", start=start, tolerance=tolerance)
            for tolerance in (0.3, 1e-4)
        )
        assert rough.passes < fine.passes
        torch.testing.assert_close(rough.value, fine.value, rtol=0.02, atol=0)


def test_the_passes_are_those_it_made(monkeypatch):
    module, (inputs, labels) = nn.Sequential(dense()), data()
    calls, apply = [], Network.apply
    monkeypatch.setattr(Network, "apply", lambda *a, **k: calls.append(1) or apply(*a, **k))
    found = largest_sigma(module, inputs, labels)
    assert found.passes == len(calls) - 1  # the first looks at one sample


def test_a_search_without_an_upper_bracket_says_so():
    module, (inputs, labels) = dense(), data()
    found = largest_sigma(module, inputs, labels, increase=0.99)  # no noise makes so many errors
    assert not found.converged
    assert found.value == found.lower == 10
    assert found.upper == found.standard_error == torch.inf


def test_a_search_without_a_lower_bracket_says_so():
    # On inputs this large the floor of the magnitude-aware noise is too much already.
    module, (inputs, labels) = dense(bias=False), data()
    found = largest_sigma(module, 1e5 * inputs, labels, of="loss", noise="magnitude")
    assert not found.converged
    assert found.lower == 0
    assert found.value == found.upper == pytest.approx(1e-5)
    assert found.standard_error == torch.inf


def test_losses_that_are_not_finite_are_counted(monkeypatch):
    torch.manual_seed(0)
    module, (inputs, labels) = models.mlp(5, 4, width=16, depth=2, seed=0), data()
    inputs = inputs.float()
    with torch.no_grad():
        module[-1].weight.mul_(1e-6)
    # with so wide a start the logits overflow
    found = largest_sigma(module, inputs, labels, of="loss", start=1e18, limits=(1e-3, 1e18))
    assert found.not_finite > 0
    assert found.converged
    again = largest_sigma(module, inputs, labels, of="loss")
    assert again.not_finite == 0
    torch.testing.assert_close(found.value, again.value, rtol=0.05, atol=0)


@pytest.mark.parametrize("sampling", ["weights", "preactivations"])
def test_a_stack_is_its_networks_side_by_side(sampling):
    modules, (inputs, labels) = [dense(seed) for seed in range(3)], data()
    labels = torch.stack([m(inputs).argmax(-1) for m in modules])
    stack, each = Network.stack(modules), inputs.expand(3, -1, -1)
    found = largest_sigma(stack, each, labels, of="loss", sampling=sampling, tolerance=1e-3)
    bound = pac_bayes_bound(stack, each, labels, initial=stack, std=0.1, draws=10, sampling=sampling)
    curve = sharpness_kl(stack, each, labels, scales=[0.01, 0.1], draws=4, sampling=sampling)
    for i, module in enumerate(modules):
        alone = largest_sigma(module, inputs, labels[i], of="loss", sampling=sampling, tolerance=1e-3)
        torch.testing.assert_close(found.value[i], alone.value, rtol=1e-4, atol=0)
        single = pac_bayes_bound(module, inputs, labels[i], initial=module, std=0.1, draws=10, sampling=sampling)
        torch.testing.assert_close(bound.value[i], single.value)
        one = sharpness_kl(module, inputs, labels[i], scales=[0.01, 0.1], draws=4, sampling=sampling)
        torch.testing.assert_close(curve.sharpness[:, i], one.sharpness)
        torch.testing.assert_close(curve.kl[:, i], one.kl)
    assert str(bound).startswith("error at most")


def test_one_of_a_stack_that_is_not_bracketed_does_not_hold_up_the_others():
    modules, (inputs, labels) = [dense(0), dense(1)], data()
    labels = torch.stack([modules[0](inputs).argmax(-1), torch.zeros_like(labels)])
    each = inputs.expand(2, -1, -1)
    found = largest_sigma(Network.stack(modules), each, labels, increase=0.6)
    alone = [largest_sigma(m, inputs, y, increase=0.6) for m, y in zip(modules, labels, strict=True)]
    assert found.converged.tolist() == [one.converged.item() for one in alone] == [True, False]
    torch.testing.assert_close(found.value, torch.stack([one.value for one in alone]), rtol=0.02, atol=0)


def test_everything_is_left_as_it_was():
    module, (inputs, labels) = dense(), data()
    with cases.unchanged(module, inputs):
        first = largest_sigma(module, inputs, labels)
        pac_bayes_bound(module, inputs, labels, initial=dense(1), std=0.1, draws=4)
        sharpness_kl(module, inputs, labels, scales=[0.1], draws=4)
    assert largest_sigma(module, inputs, labels).value == first.value


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("of is 'accuracy'", {"of": "accuracy"}),
        ("draws is 3", {"draws": 3}),
        ("increase is 0", {"increase": 0.0}),
        ("tolerance 0", {"tolerance": 0.0}),
        ("limits", {"limits": (1.0, 0.1)}),
        ("start is 0", {"start": 0.0}),
        ("noise is 'white'", {"noise": "white"}),
    ],
)
def test_the_search_refuses(message, options):
    with pytest.raises(ValueError, match=message):
        largest_sigma(dense(), *data(), **options)


# -------------------------------------------------------------------------------------------- the sharpness-KL curve


@pytest.mark.parametrize("start", [False, True])
def test_the_curve_by_hand(start):
    module, initial, (inputs, labels) = dense(0), dense(1), data()
    scales = [0.01, 0.03, 0.1]
    found = sharpness_kl(module, inputs, labels, scales=scales, draws=8, initial=initial if start else None)
    for i, scale in enumerate(scales):
        alone = expected_sharpness(module, inputs, labels, scale=scale, noise="scaled", draws=8)
        torch.testing.assert_close(found.sharpness[i], alone.value)
        torch.testing.assert_close(found.standard_error[i], alone.standard_error)
        std = scale * (10 * flat(module).abs() + 1)
        torch.testing.assert_close(found.kl[i], gaussian_kl(flat(module), std, flat(initial) * start, std))
    assert found.passes == 25


@pytest.mark.parametrize("scales", [[], [0.1, 0.0]])
def test_the_curve_refuses(scales):
    with pytest.raises(ValueError, match="scales is empty or holds"):
        sharpness_kl(dense(), *data(), scales=scales, draws=4)
