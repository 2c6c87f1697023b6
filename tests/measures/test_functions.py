"""Rows of functions, spectra and rescaled weights, whose values rest on draws or on wide layers."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from measures_cases import dense, inputs_of, own_labels
from torch import nn

from genlib import norms, sensitivity
from genlib.measures import evaluate
from genlib.pac_bayes import rescaled_kl


def test_the_rescaled_divergence_is_at_the_deviation_of_flatness(measured):
    network, _, _, _, table = measured
    sigma = table.loc["flatness", "value"] ** -0.5
    value, error = table.loc["rescaled_kl", ["value", "standard_error"]]
    assert value == pytest.approx(rescaled_kl(network, sigma).item(), rel=1e-9)
    deviation = table.loc["flatness", "standard_error"] / 2 * sigma**3
    step = 1e-4 * sigma
    slope = (rescaled_kl(network, sigma + step) - rescaled_kl(network, sigma - step)).item() / (2 * step)
    assert error == pytest.approx(abs(slope) * deviation, rel=0.2)  # by a difference, which bends
    weights = nn.utils.parameters_to_vector(network.parameters()).detach()
    assert value < (len(weights) / 2 * (1 + weights.square().mean() / sigma**2).log()).item()  # of the best t alone


def test_units_near_samples_are_those_of_random_directions(measured):
    network, _, inputs, _, table = measured
    value, error = table.loc["local_complexity", ["value", "standard_error"]]
    found = [
        sensitivity.local_complexity(network, inputs, generator=torch.Generator().manual_seed(seed)).double().mean()
        for seed in range(20)
    ]
    assert abs(value - np.mean(found)) < 4 * np.std(found) + 1e-9 and 0 < error < value


def test_of_many_samples_sixty_four_stand_for_all():
    network = dense((5, 30, 20, 3))
    inputs = inputs_of(network, 500)
    row = evaluate(network, inputs, names="local_complexity").loc["local_complexity"]
    distances = torch.nn.functional.pdist(inputs)
    all_of_them = sensitivity.local_complexity(network, inputs, radius=0.05 * distances.median().item()).double()
    assert abs(row["value"] - all_of_them.mean()) < 5 * row["standard_error"]
    assert row["standard_error"] == pytest.approx(all_of_them.std().item() / 8, rel=0.4)
    assert row["passes"] == pytest.approx(10 * 80 / 500)


@pytest.mark.parametrize("samples", [20, 60, 90])
def test_the_error_of_units_near_samples_is_that_of_the_seeds(samples):
    """Of few samples all are taken, and directions alone are drawn."""
    network = dense((5, 30, 20, 3))
    inputs = inputs_of(network, samples)
    rows = pd.concat([evaluate(network, inputs, names="local_complexity", seed=seed) for seed in range(60)])
    assert rows["standard_error"].pow(2).mean() ** 0.5 == pytest.approx(rows["value"].std(), rel=0.3)


def test_the_exponent_of_spectra_is_the_mean_over_large_layers():
    network = dense((60, 64, 70, 3))
    row = evaluate(network, input_shape=(60,), names="spectral_alpha").loc["spectral_alpha"]
    tails = list(norms.tail_exponents(network, input_shape=(60,)).values())
    assert len(tails) == 2
    assert row["value"] == pytest.approx(np.mean([tail.value for tail in tails]))
    assert row["standard_error"] == pytest.approx(np.linalg.norm([tail.standard_error for tail in tails]) / 2)


def test_confidence_keeps_its_digits_where_all_are_sure():
    network = nn.Sequential(nn.Linear(2, 3)).float()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[30.0, 0], [0, 30], [-30, 0]]))
        network[0].bias.zero_()
    inputs = torch.tensor([[1.0, 0], [0, 1]])
    expected = (copy.deepcopy(network).double()(inputs.double()).softmax(1).sort(1).values[:, :-1].sum(1)).mean().item()
    row = evaluate(network, (inputs, own_labels(network, inputs)), names="confidence").loc["confidence"]
    assert row["value"] == pytest.approx(expected, rel=1e-4) and 0 < expected < 1e-12
