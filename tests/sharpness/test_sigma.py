"""The search for the noise that a network bears."""

import pytest
import torch
import torch.nn.functional as F
from cases import LOOKS, labelled, wide
from torch import nn

from genlib import models
from genlib.network import Network
from genlib.pac_bayes import largest_sigma
from genlib.sharpness import expected_sharpness


@pytest.mark.parametrize("noise", ["isotropic", "scaled", "magnitude"])
@pytest.mark.parametrize("of", ["error", "loss"])
def test_the_rise_at_sigma_is_what_was_asked_for(of, noise):
    module, (inputs, labels) = wide(), labelled()
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
    module, (inputs, labels) = nn.Sequential(nn.Linear(5, 4)).double(), labelled()
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
    module, (inputs, labels) = wide(), labelled()
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
        largest_sigma(wide(seed, width=width), *labelled(seed), of=of, noise=noise).passes
        for seed in range(3)
        for width in (16, 64)
        for of in ("error", "loss")
        for noise in ("isotropic", "magnitude")
    ]
    assert sum(passes) / len(passes) <= 30


@pytest.mark.parametrize("of", ["error", "loss"])
def test_where_it_starts_does_not_matter(of):
    module, (inputs, labels) = wide(), labelled()
    near, far, small = (
        largest_sigma(module, inputs, labels, of=of, start=start, tolerance=0.01) for start in (0.1, 10.0, 1e-5)
    )
    torch.testing.assert_close(far.value, near.value, rtol=0.01, atol=0)
    torch.testing.assert_close(small.value, near.value, rtol=0.01, atol=0)


def test_the_last_secant_saves_steps():
    module, (inputs, labels) = wide(), labelled()
    for start in (0.08, 0.15, 0.3):
        rough, fine = (
            largest_sigma(module, inputs, labels, of="loss", start=start, tolerance=tolerance)
            for tolerance in (0.3, 1e-4)
        )
        assert rough.passes < fine.passes
        torch.testing.assert_close(rough.value, fine.value, rtol=0.02, atol=0)


def test_the_passes_are_those_it_made(monkeypatch):
    module, (inputs, labels) = nn.Sequential(wide()), labelled()
    calls, apply = [], Network.apply
    monkeypatch.setattr(Network, "apply", lambda *a, **k: calls.append(1) or apply(*a, **k))
    found = largest_sigma(module, inputs, labels)
    assert found.passes == len(calls) - LOOKS


def test_a_search_without_an_upper_bracket_says_so():
    module, (inputs, labels) = wide(), labelled()
    found = largest_sigma(module, inputs, labels, increase=0.99)  # no noise makes so many errors
    assert not found.converged
    assert found.value == found.lower == 10
    assert found.upper == found.standard_error == torch.inf


def test_a_search_without_a_lower_bracket_says_so():
    # On inputs this large the floor of the magnitude-aware noise is too much already.
    module, (inputs, labels) = wide(bias=False), labelled()
    found = largest_sigma(module, 1e5 * inputs, labels, of="loss", noise="magnitude")
    assert not found.converged
    assert found.lower == 0
    assert found.value == found.upper == pytest.approx(1e-5)
    assert found.standard_error == torch.inf


def test_losses_that_are_not_finite_are_counted(monkeypatch):
    torch.manual_seed(0)
    module, (inputs, labels) = models.mlp(5, 4, width=16, depth=2, seed=0), labelled()
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


def test_one_of_a_stack_that_is_not_bracketed_does_not_hold_up_the_others():
    modules, (inputs, labels) = [wide(0), wide(1)], labelled()
    labels = torch.stack([modules[0](inputs).argmax(-1), torch.zeros_like(labels)])
    each = inputs.expand(2, -1, -1)
    found = largest_sigma(Network.stack(modules), each, labels, increase=0.6)
    alone = [largest_sigma(m, inputs, y, increase=0.6) for m, y in zip(modules, labels, strict=True)]
    assert found.converged.tolist() == [one.converged.item() for one in alone] == [True, False]
    torch.testing.assert_close(found.value, torch.stack([one.value for one in alone]), rtol=0.02, atol=0)


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
        largest_sigma(wide(), *labelled(), **options)
