"""The catalogue: every row by brute force, every declared invariance, refusals that say why, passes that are shared."""

import copy
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from genlib.data import Dataset
from genlib.measures import CATALOGUE, INVARIANCES, Measure, catalogue, evaluate, register_measure
from genlib.network import Network
from genlib.pac_bayes import largest_sigma
from genlib.sharpness import largest_radius
from genlib.train import Run, Stop, fit, fit_many

DRAWN = {name for name in CATALOGUE if name.startswith(("flatness", "pac_bayes"))} | {"transitions"}
SEARCHED = {name for name in CATALOGUE if name.startswith("sharpness")}  # by an ascent from the weights themselves
CLIMBED = {"keskar_sharpness", "worst_case_sharpness"}  # by an ascent from a place drawn nearby
SPECTRAL = {"top_eigenvalue", "log_volume", "hessian_norm"}  # to the tolerance of Lanczos' method
OF_THE_RUN = {name for name, measure in CATALOGUE.items() if "run" in measure.needs}
FREE = [name for name, measure in CATALOGUE.items() if measure.passes <= 1 and "run" not in measure.needs]
LOOKED_UP = ["hessian_trace", "sam_sharpness", "input_margin", "jacobian_norm", "input_gradient", "gradient_variance"]


def dense(widths, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(widths):
        layer = nn.Linear(a, b, dtype=dtype)
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) * (
                0.9 if parameter.ndim == 2 else 0.2
            )
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def inputs_of(network, samples=40, seed=1):
    first = next(network.parameters())
    return torch.randn(samples, first.shape[1], generator=torch.Generator().manual_seed(seed), dtype=first.dtype)


def own_labels(network, inputs):
    """The labels that the network itself gives: every margin is positive."""
    with torch.no_grad():
        return network(inputs).argmax(-1)


@pytest.fixture(scope="module")
def measured():
    """A network, its start, data, and the table of all that is drawn from no generator."""
    network, initial = dense((5, 6, 4, 3)), dense((5, 6, 4, 3), seed=9)
    inputs = inputs_of(network)
    labels = own_labels(network, inputs)
    return network, initial, inputs, labels, evaluate(network, (inputs, labels), initial=initial, first_epoch=initial)


# Brute force


def paths(network, p):
    """Σ over paths Π |w|^p, one path after the other; a bias is a path that begins at its unit."""
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    matrices = [np.abs(layer.weight.detach().numpy()) ** p for layer in linear]
    biases = [np.abs(layer.bias.detach().numpy()) ** p for layer in linear]
    total = 0.0
    for first in range(len(matrices)):
        widths = [range(m.shape[0]) for m in matrices[first:]]
        for units in itertools.product(*widths):
            product = biases[first][units[0]] + (matrices[0][units[0]].sum() if first == 0 else 0)
            for layer, (a, b) in enumerate(itertools.pairwise(units), first + 1):
                product = product * matrices[layer][b, a]
            total += product
    return total


def by_brute_force(network, initial, inputs, labels):
    W = [p.detach().numpy() for p in network.parameters() if p.ndim == 2]
    W0 = [p.detach().numpy() for p in initial.parameters() if p.ndim == 2]
    w, w0 = (nn.utils.parameters_to_vector(n.parameters()).detach().numpy() for n in (network, initial))
    logits = network(inputs).detach().numpy()
    rivals = [np.delete(row, label).max() for row, label in zip(logits, labels, strict=True)]
    margins = logits[np.arange(len(labels)), labels] - rivals
    g10, g5, d, m = np.percentile(margins, 10), np.percentile(margins, 5), len(W), len(labels)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    frobenius = np.array([np.linalg.norm(a) for a in W])
    spec = np.array([np.linalg.norm(a, 2) for a in W])
    moved = np.array([np.linalg.norm(a - b) for a, b in zip(W, W0, strict=True)])
    rows = np.array([np.linalg.norm(a - b, axis=1).sum() for a, b in zip(W, W0, strict=True)])
    h = np.array([len(a) for a in W])
    l3 = [(np.linalg.norm(a, 3, axis=1) ** 1.5).sum() ** (1 / 1.5) for a in W]
    l2_path, l1_path = paths(network, 2), paths(network, 1)
    pf, ps = np.prod(frobenius**2), np.prod(spec**2)
    longest = max(np.linalg.norm(x) for x in inputs.numpy())
    prefactor = (84 * longest * np.sqrt(h.max()) + np.sqrt(np.log(4 * h.max() ** 2 * d))) ** 2
    jacobians = [torch.autograd.functional.jacobian(network, x).numpy() for x in inputs]
    toward = [
        np.linalg.norm(np.delete(j[label] - j, label, 0)[np.delete(row, label).argmax()])
        for j, row, label in zip(jacobians, logits, labels, strict=True)
    ]
    with np.errstate(divide="ignore"):  # where nothing moves the output, no input is far enough
        distances = margins / toward
    of_softmax = [(np.diag(q) - np.outer(q, q)) @ j for q, j in zip(p, jacobians, strict=True)]
    return {
        "parameters": len(w),
        "vc_dimension": len(w) * d * np.log(len(w)),
        "l2": np.linalg.norm(w),
        "l2_distance": np.linalg.norm(w - w0),
        "parameter_norm": (frobenius**2).sum(),
        "frobenius_distance": (moved**2).sum(),
        "spectral_distance": sum(np.linalg.norm(a - b, 2) ** 2 for a, b in zip(W, W0, strict=True)),
        "product_frobenius": np.log(pf),
        "product_spectral": np.log(ps),
        "sum_frobenius": d * pf ** (1 / d),
        "sum_spectral": d * ps ** (1 / d),
        "stable_rank": (frobenius**2 / spec**2).sum(),
        "path": np.log(l2_path),
        "l1_path": np.log(l1_path**2),
        "inverse_margin": g10**-2,
        "product_frobenius_margin": np.log(pf / g10**2),
        "product_spectral_margin": np.log(ps / g10**2),
        "sum_frobenius_margin": d * (pf / g10**2) ** (1 / d),
        "sum_spectral_margin": d * (ps / g10**2) ** (1 / d),
        "spectral_from_origin": np.log(ps / g10**2 * (frobenius**2 / spec**2).sum()),
        "spectral_from_start": np.log(ps / g10**2 * (moved**2 / spec**2).sum()),
        "spectral_origin": np.log(prefactor * ps / g10**2 * (frobenius**2 / spec**2).sum()),
        "spectral_start": np.log(prefactor * ps / g10**2 * (moved**2 / spec**2).sum()),
        "path_margin": np.log(l2_path / g10**2),
        "l1_path_margin": np.log(l1_path**2 / g10**2),
        "l1_max_margin": np.log(np.prod([np.abs(a).sum(1).max() ** 2 for a in W]) / g10**2),
        "l3_margin": np.log(np.prod(np.square(l3)) / g10**2),
        "neyshabur_l2": np.log(np.prod(4 * frobenius**2) / g5**2),
        "neyshabur_l1_path": np.log((2**d * l1_path) ** 2 / g5**2),
        "neyshabur_l2_path": np.log(np.prod(4 * h) * l2_path / g5**2),
        "neyshabur_spectral": np.log(np.prod(h * spec**2) / g5**2),
        "spectral_complexity": np.log(
            np.prod(spec) * ((rows / spec) ** (2 / 3)).sum() ** 1.5 * np.linalg.norm(inputs) / m / g10
        ),
        "frobenius_complexity": np.log(d * np.prod(spec) * (h * moved**2 / spec**2).sum() ** 0.5 / g10 / m**0.5),
        "cross_entropy": -np.log(p[np.arange(m), labels]).mean(),
        "negative_entropy": (p * np.log(p)).sum(1).mean(),
        "input_margin": np.percentile(distances, 10) ** -2,
        "jacobian_norm": np.mean([np.linalg.norm(j) for j in of_softmax]),
        "input_gradient": np.mean([np.linalg.norm(j) ** 2 for j in jacobians]),
        "hessian_trace": np.trace(hessian(network, inputs, labels)),
        "gradient_variance": gradient_variance(network, inputs, labels),
        "first_gradient_variance": gradient_variance(initial, inputs, labels),
        "sam_sharpness": sam(network, inputs, labels),
    }


def loss_at(network, vector, inputs, labels):
    shapes, split = {}, vector.split([p.numel() for p in network.parameters()])
    for (name, p), part in zip(network.named_parameters(), split, strict=True):
        shapes[name] = part.view_as(p)
    return F.cross_entropy(torch.func.functional_call(network, shapes, (inputs,)), labels)


def hessian(network, inputs, labels):
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    return torch.autograd.functional.hessian(lambda v: loss_at(network, v, inputs, labels), w).numpy()


def gradient_variance(network, inputs, labels):
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    gradients = [
        torch.autograd.functional.jacobian(lambda v, x=x, y=y: loss_at(network, v, x, y), w)
        for x, y in zip(inputs.split(1), labels.split(1), strict=True)
    ]
    return np.var(torch.stack(gradients).numpy(), axis=0).sum()


def sam(network, inputs, labels):
    w = nn.utils.parameters_to_vector(network.parameters()).detach().requires_grad_()
    at_rest = loss_at(network, w, inputs, labels)
    (gradient,) = torch.autograd.grad(at_rest, w)
    return (loss_at(network, w + 0.05 * gradient / gradient.norm(), inputs, labels) - at_rest).item()


def test_every_exact_row_equals_its_twin(measured):
    network, initial, inputs, labels, table = measured
    twin = by_brute_force(network, initial, inputs, labels)
    assert set(twin) == set(CATALOGUE) - DRAWN - SEARCHED - CLIMBED - SPECTRAL - OF_THE_RUN
    found = table.loc[list(twin), "value"]
    np.testing.assert_allclose(found, list(twin.values()), rtol=1e-9)
    assert (table.loc[list(twin), "standard_error"] == 0).all()


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
        largest_radius(network, inputs, labels, noise=noise, start=start).value.item()
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


# Invariances


def transformed(network, invariance, seed):
    """The network after what a measure may be blind to."""
    network, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    first, second = linear[:2]
    hidden = len(first.weight)
    with torch.no_grad():
        if invariance == "layer scaling":
            for i, layer in enumerate(linear, 1):
                layer.weight.mul_(1.7)
                layer.bias.mul_(1.7**i)
        elif invariance == "permutation":
            order = torch.randperm(hidden, generator=generator)
            first.weight.copy_(first.weight[order])
            first.bias.copy_(first.bias[order])
            second.weight.copy_(second.weight[:, order])
        else:
            factor = 0.3 + 2 * torch.rand(hidden, generator=generator, dtype=first.weight.dtype)
            factor = torch.full_like(factor, 3.0) if invariance == "Dinh per layer" else factor
            first.weight.mul_(factor[:, None])
            first.bias.mul_(factor)
            second.weight.div_(factor)
    return network


@pytest.mark.parametrize("invariance", INVARIANCES)
@settings(max_examples=5)
@given(hidden=st.lists(st.integers(3, 7), min_size=1, max_size=3), seed=st.integers(0, 2**20))
def test_measures_are_blind_to_what_they_declare_and_to_nothing_else(invariance, hidden, seed):
    network, initial = dense((4, *hidden, 3), seed=seed), dense((4, *hidden, 3), seed=seed + 1)
    inputs = inputs_of(network, seed=seed + 2)
    labels = own_labels(network, inputs)
    after = transformed(network, invariance, seed + 3)
    names = [*FREE, *LOOKED_UP]
    before, then = (evaluate(n, (inputs, labels), initial=initial, names=names)["value"] for n in (network, after))
    # Logarithms may lie near zero, where a change is still a change by a factor.
    change = (then - before).abs() / before.abs().clip(lower=1)
    for name in names:
        if invariance in CATALOGUE[name].invariances:
            assert change[name] < 1e-8, name
    if invariance != "permutation":
        unlike = {name for name in names if change[name] > 1e-8}
        assert unlike == {name for name in names if invariance not in CATALOGUE[name].invariances}


def test_drawn_measures_are_blind_to_the_order_of_neurons(measured):
    network, _, inputs, labels, table = measured
    names = [
        name for name in (DRAWN - {"transitions"}) | SPECTRAL | SEARCHED if "permutation" in CATALOGUE[name].invariances
    ]
    then = evaluate(transformed(network, "permutation", 4), (inputs, labels), names=names)
    apart = (then["value"] - table.loc[names, "value"]).abs()
    allowed = 5 * np.hypot(then["standard_error"], table.loc[names, "standard_error"]) + 1e-2
    assert (apart < allowed).all()


@pytest.mark.parametrize("invariance", INVARIANCES)
def test_transitions_do_not_see_how_a_function_is_written(measured, invariance):
    network, _, inputs, labels, table = measured
    then = evaluate(transformed(network, invariance, 4), (inputs, labels), names=["transitions"])
    assert then.loc["transitions", "value"] == table.loc["transitions", "value"]


# The catalogue itself


def test_the_catalogue_is_described():
    keys = set(re.findall(r"@\w+{([^,]+),", (Path(__file__).parents[1] / "chapters/references.bib").read_text("utf-8")))
    for name, measure in CATALOGUE.items():
        assert name == measure.name
        assert measure.citation in keys, measure.citation
        for text in (measure.symbol, measure.formula):
            assert text.count("{") == text.count("}") and text.count(r"\big(") == text.count(r"\big)")
    assert len(CATALOGUE) >= 48


def test_the_catalogue_is_read_only():
    with pytest.raises(TypeError):
        CATALOGUE["l2"] = CATALOGUE["path"]


def test_a_measure_of_ones_own(measured, monkeypatch):
    network, _, inputs, labels, _ = measured
    monkeypatch.setattr("genlib.measures.measure.registry", catalogue := dict(CATALOGUE))
    monkeypatch.setattr("genlib.measures.evaluation.CATALOGUE", catalogue)
    own = Measure("largest_weight", r"\max|w|", r"\max_i|w_i|", "mine", (), 0, ("permutation",),
                  lambda s: torch.stack([w.abs().max() for w in s.weights.values()]).max())  # fmt: skip
    register_measure(own)
    assert evaluate(network, (inputs, labels), names=["largest_weight"]).loc[
        "largest_weight", "value"
    ] == pytest.approx(max(p.abs().max().item() for p in network.parameters()))
    with pytest.raises(ValueError, match="already"):
        register_measure(own)


@pytest.mark.parametrize("field", ["needs", "invariances"])
def test_a_measure_with_an_unknown_word_is_refused(field):
    words = {"needs": (), "invariances": ()} | {field: ("luck",)}
    with pytest.raises(ValueError, match=f"{field} of odd holds .*luck"):
        Measure("odd", "", "", "mine", words["needs"], 0, words["invariances"], lambda s: s.square)


# evaluate


def test_all_together_equal_each_alone(measured):
    network, initial, inputs, labels, table = measured
    alone = (*LOOKED_UP, "flatness", "pac_bayes_magnitude_start", "keskar_sharpness", "sharpness_start", "hessian_norm")
    for name in [*FREE, *alone]:
        alone = evaluate(network, (inputs, labels), initial=initial, names=[name])
        assert alone.loc[name, "value"] == table.loc[name, "value"], name


class Counting(nn.Sequential):
    calls = 0

    def forward(self, x):
        Counting.calls += len(x) > 1  # the look at one sample that checks the data aside
        return super().forward(x)


def test_what_needs_one_forward_pass_shares_it(measured):
    network, initial, inputs, labels, _ = measured
    counting = Counting(*copy.deepcopy(network))
    Counting.calls = 0
    names = [name for name, measure in CATALOGUE.items() if measure.passes == 1]
    table = evaluate(counting, (inputs, labels), initial=initial, names=names)
    # The path norm's pass is of a single input.
    assert len(names) >= 18 and Counting.calls == 1 == table["passes"].sum()
    assert table["passes"].iloc[0] == 1


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_the_stated_cost_is_the_cost(measured, name):
    network, initial, inputs, labels, _ = measured
    table = evaluate(network, (inputs, labels), initial=initial, first_epoch=initial, names=[name])
    cost = table["passes"].iloc[0]
    stated = CATALOGUE[name].passes
    if stated == catalogue._SEARCH:
        assert 10 < cost < 1 + 15 * (2 + 10) + 4  # what it could cost at worst
    elif stated == catalogue._RADIUS:
        assert (cost - 5) % 13 == 0 and 30 < cost < 5 + 15 * 13  # the loss, a gradient, and 13 a radius
    elif stated == catalogue._LANCZOS:
        assert 60 < cost < 3 + 6 * 79  # as many products as parameters would be all of the matrix
    elif name == "transitions":  # an ellipse a 64 samples
        assert cost == 256 / 40
    elif stated == 11:  # 1 + the number of classes
        assert cost == 4
    else:
        assert cost == stated


def test_a_negative_margin_is_refused_with_the_reason(measured):
    network, initial, inputs, labels, table = measured
    wrong = evaluate(network, (inputs, (labels + 1) % 3), initial=initial)
    divided = [name for name, measure in CATALOGUE.items() if "margin" in measure.needs]
    assert wrong.loc[divided, "value"].isna().all()
    assert wrong.loc[divided, "reason"].str.contains("margin is -.*misclassified").all()
    assert wrong.loc["flatness", "reason"].startswith("network: it is wrong on 100%")
    free = [name for name in FREE if "data" not in CATALOGUE[name].needs]
    np.testing.assert_array_equal(wrong.loc[free, "value"], table.loc[free, "value"])


def test_what_lacks_the_start_or_the_run_says_so(measured):
    network, _, inputs, labels, table = measured
    alone = evaluate(network, (inputs, labels))
    lacking = {
        need: [name for name, measure in CATALOGUE.items() if need in measure.needs]
        for need in ("initial", "first_epoch", "run")
    }
    for need, names in lacking.items():
        assert alone.loc[names, "reason"].str.startswith(f"{need} is missing").all()
    others = [name for name in CATALOGUE if not any(name in names for names in lacking.values())]
    assert (alone.loc[others, "reason"] == "").all()
    assert table.loc["steps", "reason"].startswith("run is missing")


def test_a_run_brings_its_start(measured):
    _, _, inputs, labels, _ = measured
    dataset = Dataset(inputs.float(), labels, inputs.float(), labels, ("a", "b", "c"))
    run = fit(dense((5, 6, 4, 3), dtype=torch.float32), dataset, lr=0.05, batch_size=8, stop=Stop(steps=7))
    table = evaluate(run.module, dataset, run=run, names=["steps", "l2_distance"])
    expected = nn.utils.parameters_to_vector(run.module.parameters()) - nn.utils.parameters_to_vector(
        run.initial.parameters()
    )
    assert table.loc["steps", "value"] == 7
    assert table.loc["l2_distance", "value"] == pytest.approx(expected.norm().item(), rel=1e-6)


def test_steps_are_counted_to_the_first_check_below(measured):
    network, initial, inputs, labels, _ = measured
    history = pd.DataFrame({"step": [10, 20, 30, 40, 50], "loss": [0.9, 0.1, 0.2, 0.01, 0.02]})
    run = Run(network, initial, history, True, 50, 1.0)
    table = evaluate(network, (inputs, labels), run=run, names=["steps", "first_steps", "last_steps"])
    assert table["value"].tolist() == [50, 20, 20]
    far = replace(run, history=history[:3])
    table = evaluate(network, (inputs, labels), run=far, names=["first_steps", "last_steps"])
    assert table.loc["first_steps", "value"] == 20
    assert table.loc["last_steps", "reason"] == "run: its training loss never fell to 0.01; train it further"


def test_a_stack_is_its_networks_one_by_one(measured):
    network, initial, inputs, labels, table = measured
    other, before = dense((5, 6, 4, 3), seed=3), dense((5, 6, 4, 3), seed=4)
    start = Network.stack([before, initial])
    stack = evaluate(Network.stack([other, network]), (inputs, labels), initial=start, first_epoch=start)
    alone = evaluate(other, (inputs, labels), initial=before, first_epoch=before)
    columns = ["value", "standard_error"]
    np.testing.assert_allclose(stack.loc[1][columns], table[columns], rtol=1e-9)
    assert (stack.loc[1]["reason"] == table["reason"]).all() and (stack.loc[0]["reason"] == alone["reason"]).all()
    np.testing.assert_allclose(stack.loc[0][columns], alone[columns], rtol=1e-9)
    assert stack.index.names == ["network", "measure"]
    # What all search for together takes as long as the longest.
    longest = np.maximum(table["passes"], alone["passes"])
    assert ((stack.loc[1]["passes"] == table["passes"]) | (stack.loc[1]["passes"] == longest)).all()


def test_the_networks_of_a_stack_may_have_data_and_runs_of_their_own(measured):
    modules = [dense((5, 6, 3), seed=seed, dtype=torch.float32) for seed in range(2)]
    inputs = [inputs_of(modules[0], seed=seed) for seed in range(2)]
    labels = [own_labels(dense((5, 3), seed=9, dtype=torch.float32), x) for x in inputs]
    sets = [Dataset(x, y, x, y, ("a", "b", "c")) for x, y in zip(inputs, labels, strict=True)]
    runs = fit_many(modules, sets, lr=0.1, batch_size=8, stop=Stop(accuracy=1.0, epochs=400, every=20))
    names = ["steps", "l2_distance", "cross_entropy", "keskar_sharpness", "sharpness_start", "pac_bayes_start"]
    stack = evaluate(Network.stack(runs.modules), (torch.stack(inputs), torch.stack(labels)), run=runs, names=names)
    for i, run in enumerate(runs):
        alone = evaluate(run.module, sets[i], run=run, names=names)
        np.testing.assert_allclose(stack.loc[i]["value"], alone["value"], rtol=1e-3)


def test_one_network_in_trouble_is_no_trouble_to_the_others(measured):
    network, _, inputs, labels, table = measured
    hopeless = copy.deepcopy(network)
    hopeless[-1].weight.data.neg_()
    hopeless[-1].bias.data.neg_()
    names = ["flatness", "sharpness_flatness", "keskar_sharpness", "l2"]
    stack = evaluate(Network.stack([hopeless, network]), (inputs, labels), names=names)
    np.testing.assert_allclose(stack.loc[1]["value"], table.loc[names, "value"], rtol=1e-9)
    assert stack.loc[0].loc["flatness", "reason"].startswith("network: it is wrong on")
    assert stack.loc[0].loc["sharpness_flatness", "reason"].startswith("network: it is wrong on")
    assert stack.loc[0].loc["l2", "value"] == pytest.approx(table.loc["l2", "value"])


def test_a_stack_needs_a_start_and_a_run_of_each(measured):
    network, initial, inputs, labels, _ = measured
    stack = Network.stack([network, network])
    for name in ("initial", "first_epoch"):
        with pytest.raises(ValueError, match=f"{name} holds None networks, network 2"):
            evaluate(stack, (inputs, labels), **{name: initial})
    with pytest.raises(ValueError, match="run holds 1 runs, network 2"):
        evaluate(stack, (inputs, labels), run=[Run(network, initial, pd.DataFrame(), True, 1, 1.0)], initial=stack)


def test_a_loader_is_read_whole(measured):
    network, _, inputs, labels, table = measured
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=7)
    found = evaluate(network, loader, names=["cross_entropy", "inverse_margin"])
    np.testing.assert_allclose(found["value"], table.loc[found.index, "value"], rtol=1e-12)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.factor


def test_an_unknown_layer_leaves_what_needs_no_layers(measured):
    network, _, inputs, labels, _ = measured
    odd = nn.Sequential(*copy.deepcopy(network), Scale().double())
    table = evaluate(odd, (inputs, labels))
    layered = [n for n, m in CATALOGUE.items() if "layers" in m.needs and "initial" not in m.needs]
    assert table.loc[layered, "reason"].str.contains("is of type Scale.*register_norm").all()
    kept = ["parameters", "l2", "inverse_margin", "cross_entropy", "flatness", "hessian_trace"]
    assert table.loc[kept, "value"].notna().all()


def test_refusals(measured):
    network, _, inputs, labels, _ = measured
    with pytest.raises(ValueError, match=r"names holds 'flatnes'.*did you mean flatness"):
        evaluate(network, (inputs, labels), names=["flatnes"])
    with pytest.raises(ValueError, match="labels"):
        evaluate(network, (inputs, labels + 3))
    with pytest.raises(ValueError, match="inputs is empty"):
        evaluate(network, (inputs[:0], labels[:0]))
    with pytest.raises(ValueError, match=r"BatchNorm in training mode.*eval"):
        evaluate(nn.Sequential(network, nn.BatchNorm1d(3).double()), (inputs, labels))
    with pytest.raises(ValueError, match="initial has other parameters"):
        raise_reason(evaluate(network, (inputs, labels), initial=dense((5, 3)), names=["l2_distance"]))


def raise_reason(table):
    raise ValueError(table["reason"].iloc[0])


def test_a_measure_that_is_silently_no_number_is_our_fault(measured, monkeypatch):
    network, _, inputs, labels, _ = measured
    broken = Measure("broken", "", "", "mine", (), 0, (), lambda s: s.number(math.nan))
    monkeypatch.setattr("genlib.measures.evaluation.CATALOGUE", {"broken": broken})
    with pytest.raises(FloatingPointError, match="broken"):
        evaluate(network, (inputs, labels))
