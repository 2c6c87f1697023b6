"""The mean rise under noise, with the error of its draws."""

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, data, dense, first_logit, linear
from torch import nn

from genlib.network import Network
from genlib.sharpness import Objective, expected_sharpness, perturbed_losses


def test_the_estimate_is_the_mean_over_pairs_with_their_error():
    module, inputs, labels = CASES["residual"]()
    found = expected_sharpness(module, inputs, labels, scale=0.2, draws=8)
    losses = perturbed_losses(Objective.of(module, inputs, labels), scale=0.2, draws=8)
    pairs = (losses - F.cross_entropy(module(inputs), labels).detach()).view(4, 2).mean(1)
    torch.testing.assert_close(found.value, pairs.mean())
    torch.testing.assert_close(found.standard_error, pairs.std() / 2)
    assert found.passes == 9
    assert found.not_finite == 0


@pytest.mark.parametrize("sampling", ["weights", "preactivations"])
@pytest.mark.parametrize("noise", ["isotropic", "scaled", "magnitude"])
def test_the_scale_is_a_standard_deviation(noise, sampling):
    # The 2020 reference code hands the variance to torch.normal as the deviation: the rise would be σ⁴, not σ².
    module, (inputs, labels) = linear(), data()
    found = expected_sharpness(
        module, inputs, labels, scale=0.1, noise=noise, draws=1000, loss="mse", sampling=sampling
    )
    variance = {
        "isotropic": lambda w: torch.full_like(w, 0.01),
        "scaled": lambda w: 0.01 * (10 * w.abs() + 1) ** 2,
        "magnitude": lambda w: 0.01 * w**2 + 1e-6,
    }[noise]
    with torch.no_grad():
        exact = (inputs**2 @ variance(module[0].weight).T + variance(module[0].bias)).mean()
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.1 * exact


@pytest.mark.parametrize("noise", ["isotropic", "scaled", "magnitude"])
def test_preactivation_sampling_has_the_same_mean_and_less_spread(noise):
    module, (inputs, labels) = dense(), data(samples=40)
    scale = {"isotropic": 0.3, "scaled": 0.05, "magnitude": 0.5}[noise]
    by_weights, by_units = (
        expected_sharpness(module, inputs, labels, scale=scale, noise=noise, draws=1000, sampling=sampling)
        for sampling in ("weights", "preactivations")
    )
    error = torch.hypot(by_weights.standard_error, by_units.standard_error)
    assert abs(by_weights.value - by_units.value) < 4 * error
    assert by_units.standard_error < 0.7 * by_weights.standard_error


def test_preactivation_sampling_of_the_error_of_a_deep_network():
    shared = nn.ReLU()  # one instance used twice, which named_children lists once
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6), shared, nn.Linear(6, 6, bias=False), shared, nn.Linear(6, 4)).double()
    inputs, labels = data(samples=60)
    by_weights, by_units = (
        expected_sharpness(module, inputs, labels, scale=0.3, draws=1500, loss="error", sampling=sampling)
        for sampling in ("weights", "preactivations")
    )
    error = torch.hypot(by_weights.standard_error, by_units.standard_error)
    assert abs(by_weights.value - by_units.value) < 4 * error


def test_preactivations_refuse_a_layer_used_twice():
    layer = nn.Linear(5, 5).double()
    module = nn.Sequential(layer, nn.ReLU(), layer)
    inputs, labels = data()
    with pytest.raises(ValueError, match="sampling='weights'"):
        expected_sharpness(module, inputs, labels, scale=0.1, draws=4, sampling="preactivations")


def test_antithetic_draws_cancel_what_is_linear():
    module, (inputs, labels) = linear(), data()
    for sampling in ("weights", "preactivations"):
        found = expected_sharpness(module, inputs, labels, scale=1.0, draws=4, loss=first_logit, sampling=sampling)
        assert abs(found.value) < 1e-12


def test_no_noise_no_rise():
    for name in CASES:
        found = expected_sharpness(*CASES[name](), scale=0.0, draws=4)
        torch.testing.assert_close(found.value, torch.zeros_like(found.value))


def test_chunks_of_preactivations_have_the_same_mean():
    module, (inputs, labels) = dense(), data()
    whole, parts = (
        expected_sharpness(module, inputs, labels, scale=0.2, draws=1000, chunk_size=size) for size in (None, 5)
    )
    assert abs(whole.value - parts.value) < 4 * torch.hypot(whole.standard_error, parts.standard_error)


def test_a_loss_that_is_not_finite_is_counted_and_not_averaged_away():
    module, (inputs, labels) = linear(), data()

    def fragile(logits, labels):
        return torch.where(logits.abs().amax(-1) > 4, torch.nan, logits.abs().amax(-1))

    objective = Objective.of(module, inputs, labels, fragile)
    losses = perturbed_losses(objective, scale=0.5, draws=20)
    found = expected_sharpness(module, inputs, labels, scale=0.5, draws=20, loss=fragile)
    assert 0 < found.not_finite == (~losses.isfinite()).sum() < 20
    assert found.value == found.standard_error == torch.inf


def test_a_stack_may_have_a_scale_for_each():
    modules, (inputs, labels) = [dense(seed) for seed in range(3)], data()
    scales = torch.tensor([0.1, 0.0, 0.3]).double()
    for sampling in ("weights", "preactivations"):
        found = expected_sharpness(
            Network.stack(modules), inputs, labels, scale=scales, draws=4, sampling=sampling
        ).value
        for value, module, scale in zip(found, modules, scales.tolist(), strict=True):
            alone = expected_sharpness(module, inputs, labels, scale=scale, draws=4, sampling=sampling).value
            torch.testing.assert_close(value, alone)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("draws is 2", {"draws": 2}),
        ("draws is 5", {"draws": 5}),
        ("scale is -1", {"scale": -1.0}),
        ("scale is -1", {"scale": torch.tensor(-1.0)}),
        ("scale is nan", {"scale": float("nan")}),
        ("noise is 'white'", {"noise": "white"}),
        ("noise lacks or adds", {"noise": {}}),
        ("sampling is 'fast'", {"sampling": "fast"}),
    ],
)
def test_a_bad_noise_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        expected_sharpness(dense(), *data(), **{"scale": 0.1, "draws": 4, **options})
