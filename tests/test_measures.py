"""The catalogue: every row by brute force, every declared invariance, refusals that say why, passes that are shared."""

import copy
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from genlib import measures
from genlib.data import Dataset
from genlib.measures import CATALOGUE, INVARIANCES, Measure, evaluate, register_measure
from genlib.network import Network
from genlib.pac_bayes import largest_sigma
from genlib.train import Stop, fit

DRAWN = {name for name in CATALOGUE if name.startswith(("flatness", "pac_bayes", "keskar"))}
FREE = [name for name, measure in CATALOGUE.items() if measure.passes <= 1 and "run" not in measure.needs]


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
    return network, initial, inputs, labels, evaluate(network, (inputs, labels), initial=initial)


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
        "hessian_trace": np.trace(hessian(network, inputs, labels)),
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


def sam(network, inputs, labels):
    w = nn.utils.parameters_to_vector(network.parameters()).detach().requires_grad_()
    at_rest = loss_at(network, w, inputs, labels)
    (gradient,) = torch.autograd.grad(at_rest, w)
    return (loss_at(network, w + 0.05 * gradient / gradient.norm(), inputs, labels) - at_rest).item()


def test_every_exact_row_equals_its_twin(measured):
    network, initial, inputs, labels, table = measured
    twin = by_brute_force(network, initial, inputs, labels)
    assert set(twin) == set(CATALOGUE) - DRAWN - {"steps"}
    found = table.loc[list(twin), "value"]
    np.testing.assert_allclose(found, list(twin.values()), rtol=1e-9)
    assert (table.loc[list(twin), "standard_error"] == 0).all()


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
    found = largest_sigma(network, inputs, labels, noise=("magnitude", moved))
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
    names = [*FREE, "hessian_trace", "sam_sharpness"]
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
    names = [name for name in DRAWN if "permutation" in CATALOGUE[name].invariances and name != "keskar_sharpness"]
    then = evaluate(transformed(network, "permutation", 4), (inputs, labels), names=names)
    apart = (then["value"] - table.loc[names, "value"]).abs()
    assert (apart < 5 * np.hypot(then["standard_error"], table.loc[names, "standard_error"])).all()


# The catalogue itself


def test_the_catalogue_is_described():
    keys = set(re.findall(r"@\w+{([^,]+),", (Path(__file__).parents[1] / "chapters/references.bib").read_text("utf-8")))
    for name, measure in CATALOGUE.items():
        assert name == measure.name
        assert measure.citation in keys, measure.citation
        for text in (measure.symbol, measure.formula):
            assert text.count("{") == text.count("}") and text.count(r"\big(") == text.count(r"\big)")
    assert len(CATALOGUE) >= 40


def test_the_catalogue_is_read_only():
    with pytest.raises(TypeError):
        CATALOGUE["l2"] = CATALOGUE["path"]


def test_a_measure_of_ones_own(measured, monkeypatch):
    network, _, inputs, labels, _ = measured
    monkeypatch.setattr(measures, "_catalogue", catalogue := dict(CATALOGUE))
    monkeypatch.setattr(measures, "CATALOGUE", catalogue)
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
    for name in [*FREE, "flatness", "pac_bayes_magnitude_start", "keskar_sharpness"]:
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
    cost = evaluate(network, (inputs, labels), initial=initial, names=[name])["passes"].iloc[0]
    stated = CATALOGUE[name].passes
    if stated == measures._SEARCH:
        assert 10 < cost < 1 + 15 * (2 + 10) + 4  # what it could cost at worst
    elif name == "hessian_trace":  # 1 + the number of classes
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
    lacking = [name for name, measure in CATALOGUE.items() if "initial" in measure.needs]
    assert alone.loc[lacking, "reason"].str.startswith("initial is missing").all()
    assert alone.loc["steps", "reason"].startswith("run is missing")
    others = [name for name in CATALOGUE if name not in (*lacking, "steps")]
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


def test_a_stack_is_measured_one_by_one(measured):
    network, initial, inputs, labels, table = measured
    other, before = dense((5, 6, 4, 3), seed=3), dense((5, 6, 4, 3), seed=4)
    stack = evaluate(Network.stack([other, network]), (inputs, labels), initial=Network.stack([before, initial]))
    np.testing.assert_allclose(stack.loc[1].drop(columns="reason"), table.drop(columns="reason"), rtol=1e-9)
    assert stack.index.names == ["network", "measure"]
    with pytest.raises(ValueError, match="initial holds None networks, network 2"):
        evaluate(Network.stack([other, network]), (inputs, labels), initial=initial)


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
    monkeypatch.setattr(measures, "CATALOGUE", {"broken": broken})
    with pytest.raises(FloatingPointError, match="broken"):
        evaluate(network, (inputs, labels))
