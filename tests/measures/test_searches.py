"""The rows that are searched for or drawn, by searches and draws of the tests' own."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measures_cases import SEARCHED, dense, hessian, inputs_of, loss_at, own_labels
from torch import nn

from genlib.measures import evaluate
from genlib.pac_bayes import largest_sigma
from genlib.sharpness import largest_radius


def test_spectral_rows_are_those_of_the_full_hessian(measured):
    network, _, inputs, labels, table = measured
    exact = np.linalg.eigvalsh(hessian(network, inputs, labels))[::-1]
    assert table.loc["top_eigenvalue", "value"] == pytest.approx(exact[0], rel=1e-5)
    assert table.loc["log_volume", "value"] == pytest.approx(np.log(exact[:10]).sum(), abs=1e-2)
    norm, error = table.loc["hessian_norm", ["value", "standard_error"]]
    assert abs(norm - np.linalg.norm(exact)) < 4 * error < 0.1 * norm


def test_a_volume_with_too_few_positive_eigenvalues_is_refused():
    # A linear network of two classes has one curvature a sample.
    network = dense((5, 2))
    inputs = inputs_of(network, samples=4)
    table = evaluate(network, (inputs, own_labels(network, inputs)), names=["top_eigenvalue", "log_volume"])
    assert (
        table["reason"].tolist()[0] == ""
        and "of noise; measure it on more samples" in table.loc["log_volume", "reason"]
    )


def climbed(network, inputs, labels, room, steps=20):
    """The rise that an ascent in a box finds, by fresh random places and a fifth of the box a step."""
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    at_rest, best = loss_at(network, w, inputs, labels), 0.0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        point = w + 0.1 * room * (2 * torch.rand(w.shape, generator=generator, dtype=w.dtype) - 1)
        for _ in range(steps):
            leaf = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss_at(network, leaf, inputs, labels), leaf)
            point = (point + 0.2 * room * gradient.sign()).clamp(w - room, w + room)
            best = max(best, (loss_at(network, point, inputs, labels) - at_rest).item())
    return best, at_rest.item()


def test_worst_case_rows_are_what_an_ascent_finds(measured):
    network, _, inputs, labels, table = measured
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    rise, _ = climbed(network, inputs, labels, 2e-3 * (w.abs() + 1))
    assert table.loc["worst_case_sharpness", "value"] == pytest.approx(rise, rel=0.02)
    rise, at_rest = climbed(network, inputs, labels, 5e-4 * (w.abs() + 1))
    assert table.loc["keskar_sharpness", "value"] == pytest.approx(100 * rise / (1 + at_rest), rel=0.02)


def test_sharpness_rows_follow_from_their_radius(measured):
    network, initial, inputs, labels, table = measured
    w, w0 = (nn.utils.parameters_to_vector(n.parameters()).detach().numpy() for n in (network, initial))
    moved = {
        n: a.detach() - b.detach() for (n, a), b in zip(network.named_parameters(), initial.parameters(), strict=True)
    }
    m, omega, eps = len(labels), len(w), 1e-3
    alpha, magnitude, displacement = (
        largest_radius(network, inputs, labels, noise=noise, steps=20, start=start).value.item()
        for noise, start in (("isotropic", 5e-3), ("magnitude", 0.03), (("magnitude", moved), 0.03))
    )

    def isotropic(v):
        sigma = alpha / np.sqrt(np.log(2 * omega))
        return (v**2).sum() * np.log(2 * omega) / (4 * alpha**2) + np.log(m / sigma) + 10

    def by_magnitude(v, a):
        c = 4 * np.log(2 * omega / 0.05)
        terms = np.log((eps**2 + (a**2 + c) * (v**2).sum() / omega) / (eps**2 + a**2 * v**2))
        return terms.sum() / 4 + np.log(m * np.sqrt(c) / a) + 10

    expected = {
        "sharpness_flatness": alpha**-2,
        "sharpness_flatness_magnitude": magnitude**-2,
        "sharpness_origin": isotropic(w),
        "sharpness_start": isotropic(w - w0),
        "sharpness_magnitude_origin": by_magnitude(w, magnitude),
        "sharpness_magnitude_start": by_magnitude(w - w0, displacement),
    }
    assert set(expected) == SEARCHED
    np.testing.assert_allclose(table.loc[list(expected), "value"], list(expected.values()), rtol=1e-9)
    assert (table.loc[list(expected), "standard_error"] == 0).all()


def test_transitions_are_counted_along_ellipses_through_samples(measured):
    network, _, inputs, labels, table = measured
    counts = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        a, b, c = inputs[torch.randint(len(inputs), (3,), generator=generator)]
        t = torch.arange(400, dtype=a.dtype) * 2 * math.pi / 400
        weights = [(1 + 2 * torch.cos(t - k * math.pi / 3)) / 3 for k in (1, 3, 5)]
        x = sum(w[:, None] * point for w, point in zip(weights, (a, b, c), strict=True))
        changes = 0
        for layer in network:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                changes += ((x > 0) != (x > 0).roll(1, 0)).sum().item()
        counts.append(changes)
    many = evaluate(network, (inputs.repeat(100, 1), labels.repeat(100)), names=["transitions"])
    value, error = many.loc["transitions", ["value", "standard_error"]]
    assert abs(value - np.mean(counts)) < 4 * np.hypot(error, np.std(counts) / len(counts) ** 0.5)
    assert table.loc["transitions", "value"] > 0 and np.isinf(table.loc["transitions", "standard_error"])


def mean_rise(network, inputs, labels, deviation, of, draws=4000):
    """The mean rise over fresh one-sided draws of the noise, one weight vector after the other, and its error."""
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    generator = torch.Generator().manual_seed(5)
    rises = []
    for _ in range(draws):
        noisy = copy.deepcopy(network)
        nn.utils.vector_to_parameters(
            w + deviation * torch.randn(w.shape, generator=generator, dtype=w.dtype), noisy.parameters()
        )
        with torch.no_grad():
            logits = noisy(inputs)
        value = (logits.argmax(-1) != labels).double().mean() if of == "error" else F.cross_entropy(logits, labels)
        rises.append(value.item())
    return np.mean(rises), np.std(rises) / len(rises) ** 0.5


@pytest.mark.parametrize("name", ["flatness", "flatness_magnitude"])
def test_flatness_is_where_the_error_has_risen_by_a_tenth(measured, name):
    network, _, inputs, labels, table = measured
    sigma = table.loc[name, "value"] ** -0.5
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    deviation = torch.full_like(w, sigma) if name == "flatness" else torch.hypot(sigma * w, torch.tensor(1e-3))
    rise, error = mean_rise(network, inputs, labels, deviation, "error", draws=1500)
    relative = table.loc[name, "standard_error"] / table.loc[name, "value"]
    assert abs(rise - 0.1) < 4 * error + 0.1 * 4 * relative


def test_pac_bayes_rows_follow_from_their_sigma(measured):
    network, initial, inputs, labels, table = measured
    w, w0 = (nn.utils.parameters_to_vector(n.parameters()).detach().numpy() for n in (network, initial))
    m, omega, eps = len(labels), len(w), 1e-3
    sigma, magnitude = (table.loc[name, "value"] ** -0.5 for name in ("flatness", "flatness_magnitude"))

    def isotropic(v):
        return (v**2).sum() / (4 * sigma**2) + np.log(m / sigma) + 10

    def by_magnitude(v, s):
        terms = np.log((eps**2 + (s**2 + 1) * (v**2).sum() / omega) / (eps**2 + s**2 * v**2))
        return terms.sum() / 4 + np.log(m / s) + 10

    assert table.loc["pac_bayes_origin", "value"] == pytest.approx(isotropic(w))
    assert table.loc["pac_bayes_start", "value"] == pytest.approx(isotropic(w - w0))
    assert table.loc["pac_bayes_magnitude_origin", "value"] == pytest.approx(by_magnitude(w, magnitude))
    moved = {
        n: a.detach() - b.detach() for (n, a), b in zip(network.named_parameters(), initial.parameters(), strict=True)
    }
    start = 0.04 / np.sqrt(((w - w0) ** 2).mean())
    found = largest_sigma(network, inputs, labels, noise=("magnitude", moved), start=start)
    expected = by_magnitude(w - w0, found.value.item())
    assert table.loc["pac_bayes_magnitude_start", "value"] == pytest.approx(expected)
    assert 0 < table.loc["pac_bayes_magnitude_start", "standard_error"] < expected


def test_pac_bayes_scaled_is_the_divergence_at_a_rise_of_one_half(measured):
    network, _, inputs, labels, table = measured
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    unit = 10 * w.abs() + 1
    alpha = ((w / unit).square().sum() / 2 / table.loc["pac_bayes_scaled", "value"]).sqrt()
    rise, error = mean_rise(network, inputs, labels, alpha * unit, "loss", draws=1500)
    relative = table.loc["pac_bayes_scaled", "standard_error"] / table.loc["pac_bayes_scaled", "value"]
    assert abs(rise - 0.5) < 4 * error + 0.5 * 4 * relative
