"""A bound on the error of a perturbed network, every step of it by hand."""

import math

import pytest
import torch
from cases import flat, labelled, wide

from genlib.pac_bayes import gaussian_kl, kl_inverse, pac_bayes_bound
from genlib.sharpness import Objective, perturbed_losses


def test_every_step_of_the_bound_by_hand():
    module, initial, (inputs, labels) = wide(0), wide(1), labelled()
    for prior, unit in (("isotropic", torch.ones_like(flat(initial))), ("scaled", 10 * flat(initial).abs() + 1)):
        found = pac_bayes_bound(module, inputs, labels, initial=initial, std=0.1, prior=prior, draws=40, delta=0.1)
        scales = torch.logspace(-4, 1, 2048).double()
        kls = gaussian_kl(flat(module), 0.1, flat(initial), scales[:, None] * unit)
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
    module, (inputs, labels) = wide(), labelled()
    objective = Objective.of(module, inputs, labels, "error")
    for sampling in ("weights", "preactivations"):
        single = perturbed_losses(objective, scale=0.3, draws=400, antithetic=False, sampling=sampling)
        paired = perturbed_losses(objective, scale=0.3, draws=2000, sampling=sampling)
        assert single.shape == (400,)
        assert abs(single.mean() - paired.mean()) < 4 * single.std() / 20
        halves = torch.stack((single[::2], single[1::2]))
        assert abs(torch.corrcoef(halves)[0, 1]) < 0.3


def test_a_posterior_may_have_a_deviation_for_each_weight():
    module, initial, (inputs, labels) = wide(0), wide(1), labelled()
    std = {name: 0.05 + 0.1 * w.detach().abs() for name, w in module.named_parameters()}
    found = pac_bayes_bound(module, inputs, labels, initial=initial, std=std, draws=10)
    spread = torch.cat([s.flatten() for s in std.values()])
    torch.testing.assert_close(found.kl, gaussian_kl(flat(module), spread, flat(initial), found.prior_scale))


def test_it_says_when_it_is_vacuous():
    module, (inputs, labels) = wide(), labelled(samples=4000)
    near = pac_bayes_bound(module, inputs, labels, initial=module, std=0.1, draws=200)
    far = pac_bayes_bound(module, inputs[:200], labels[:200], initial=wide(1), std=1e-3, draws=200)
    assert near.value < 0.75 <= far.value
    assert not near.vacuous
    assert far.vacuous
    assert "(not vacuous)" in str(near)
    assert "(vacuous)" in str(far)
    assert "δ 0.01" in str(far)


def test_a_grid_of_priors_is_paid_for():
    module, (inputs, labels) = wide(), labelled()
    asked = {"initial": wide(1), "std": 0.1, "draws": 20}
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
        ("initial has other parameters", {"initial": wide(width=3)}),
        ("std must be positive", {"std": 0.0}),
        ("std must be positive", {"std": {n: torch.zeros(()) for n, _ in wide().named_parameters()}}),
        ("noise lacks or adds", {"std": {"0.weight": torch.ones(())}}),
        ("prior_scales is empty", {"prior_scales": torch.tensor([])}),
        ("prior_scales is empty or holds", {"prior_scales": torch.tensor([0.1, 0.0])}),
    ],
)
def test_the_bound_refuses(message, options):
    with pytest.raises(ValueError, match=message):
        pac_bayes_bound(wide(), *labelled(), **{"initial": wide(1), "std": 0.1, "draws": 4, **options})
