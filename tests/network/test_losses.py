"""A network of one output is the same as one of the two logits 0 and f, wherever it is measured."""

import math
from dataclasses import fields, is_dataclass

import kernels
import pandas as pd
import pytest
import torch
from cases import WHOLE
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, vmap

from genlib import curvature, data, margins, models, sensitivity, train
from genlib.measures import CATALOGUE, evaluate
from genlib.network import Network
from genlib.network.losses import per_sample_loss, zero_one_loss
from genlib.sharpness import expected_sharpness
from genlib.train import Stop, fit, fit_many


class One(nn.Module):
    """f(x), of one output."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Two(One):
    """The logits 0 and f(x), with the very same weights."""

    def forward(self, x):
        return nn.functional.pad(self.inner(x), (1, 0))


def inner(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def case(kind):
    network, initial = kind(inner()).double(), kind(inner(seed=1)).double()
    inputs = torch.randn(24, *kernels.SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = (One(inner()).double()(inputs)[:, 0] > 0).long()
    labels[:3] = 1 - labels[:3]
    return network, initial, inputs, labels


def numbers(found):
    """All numbers of a result but its cost, and eigenvectors and residuals, which rounding decides."""
    if isinstance(found, pd.DataFrame):
        return [torch.tensor(found[["value", "standard_error"]].to_numpy())]
    if is_dataclass(found):
        kept = [f.name for f in fields(found) if f.name not in ("vectors", "residuals", "passes")]
        return [number for name in kept for number in numbers(getattr(found, name))]
    if isinstance(found, dict):
        return numbers(tuple(found.values()))
    if isinstance(found, tuple):
        return [number for value in found for number in numbers(value)]
    return [torch.as_tensor(found, dtype=torch.float64)] if isinstance(found, torch.Tensor | float) else []


OF_A_LAST_LAYER = (  # whose logits are its own, not padded
    *("relative_flatness", "feature_rank", "class_separation", "last_features"),
    *("row relative_flatness", "row feature_rank", "row class_separation"),
    "learning_coefficient",  # of the mean over outputs, for it is tried at a minimum
)


@pytest.mark.parametrize("kernel", [name for name in kernels.kernels() if name not in OF_A_LAST_LAYER])
def test_a_kernel_sees_the_network_of_two_logits(kernel):
    call = kernels.kernels()[kernel]
    found, expected = call(*case(One)), call(*case(Two))
    if kernel == "gauss_newton_eigenvalues":  # twice the rows
        assert expected[len(found) :].max() < 1e-12
        expected = expected[: len(found)]
    assert numbers(found)
    for a, b in zip(numbers(found), numbers(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12, equal_nan=True)


def test_margins_and_jacobians_of_one_output_by_hand():
    network, _, inputs, labels = case(One)
    x = inputs.clone().requires_grad_()
    f, y = network(x)[:, 0], 2 * labels - 1
    slope = torch.autograd.grad(f.sum(), x)[0].flatten(1).norm(dim=1)
    f = f.detach()
    expected = {
        "output_margins": y * f,
        "input_margins": y * f / slope,
        "jacobian_norms": {
            "logits": slope,
            "probabilities": 2**0.5 * f.sigmoid() * (-f).sigmoid() * slope,
            "cross_entropy": (f.sigmoid() * (-f).sigmoid()).sqrt() * slope,
        },
    }
    for kernel, value in expected.items():
        torch.testing.assert_close(kernels.kernels()[kernel](network, None, inputs, labels), value)
    torch.testing.assert_close(sensitivity.jacobian_norms(network, inputs, of="logits"), slope)


def test_of_labels_that_the_network_gives_every_row_but_the_runs_has_a_value():
    tables = []
    for kind in (One, Two):
        network, initial, inputs, _ = case(kind)
        labels = (network(inputs)[:, -1] > 0).long()
        tables.append(evaluate(network, (inputs, labels), initial=initial, first_epoch=initial, names=WHOLE))
    missing = tables[0].index[tables[0]["value"].isna()]
    of_the_run = {name for name, measure in CATALOGUE.items() if "run" in measure.needs}
    assert set(missing) == of_the_run | {"spectral_alpha", "lipschitz_bound", "rescaled_kl"}
    of_the_last_layer = ["relative_flatness", "feature_rank", "class_separation"]
    reasons = tables[1].loc[of_the_last_layer, "reason"]
    assert reasons.str.startswith("network: its outputs aren't those of a dense").all()
    tables = [table.drop(of_the_last_layer) for table in tables]
    for a, b in zip(*map(numbers, tables), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-12, equal_nan=True)


@given(f=st.floats(-800, 800), label=st.integers(0, 1))
def test_the_losses_of_one_output_are_their_formulas(f, label):
    logits, labels = torch.tensor([[f]], dtype=torch.float64), torch.tensor([label])
    y = 2 * label - 1
    z = -y * f
    expected = {"mse": (f - y) ** 2, "cross_entropy": max(z, 0) + math.log1p(math.exp(-abs(z)))}
    for name, value in expected.items():
        assert per_sample_loss(name)(logits, labels).item() == pytest.approx(value, rel=1e-14, abs=1e-300)
    assert zero_one_loss(logits, labels).item() == float(y * f <= 0)


def test_zero_and_what_is_not_finite_are_errors_for_both_classes():
    outputs = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf]).unsqueeze(1)
    for label in (0, 1):
        assert zero_one_loss(outputs, torch.full((5,), label)).tolist() == [1.0] * 5
    network = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(network.weight)
    for label in (0, 1):
        assert train.loss_and_accuracy(network, torch.randn(4, 3), torch.full((4,), label), loss="mse") == (1.0, 0.0)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_second_derivatives_are_those_of_the_gauss_newton_matrix(loss):
    f, labels = torch.linspace(-3, 3, 7, dtype=torch.float64), torch.arange(7) % 2

    def of_one(f, label):
        return per_sample_loss(loss)(f.view(1, 1), label.view(1)).sum()

    expected = 2 + 0 * f if loss == "mse" else f.sigmoid() * (1 - f.sigmoid())
    torch.testing.assert_close(vmap(grad(grad(of_one)))(f, labels), expected)


LABELS_ELSEWHERE = {
    "curvature": lambda n, x, y: curvature.trace(n, x, y),
    "sharpness": lambda n, x, y: expected_sharpness(n, x, y, scale=0.1, draws=4, loss="mse"),
    "catalogue": lambda n, x, y: evaluate(n, (x, y)),
    "accuracy": lambda n, x, y: train.loss_and_accuracy(n, x, y),
    "training": lambda n, x, y: fit(
        n, data.Dataset(x, y, x, y, tuple("abc")), lr=0.1, loss="mse", stop=Stop(steps=3, every=1)
    ),
}


@pytest.mark.parametrize("who", LABELS_ELSEWHERE)
def test_other_labels_than_0_and_1_are_refused(who):
    with pytest.raises(ValueError, match=r"^labels has values other than 0 and 1, .* one output a class"):
        LABELS_ELSEWHERE[who](nn.Linear(3, 1), torch.randn(3, 3), torch.tensor([0, 1, 2]))


def test_a_loss_of_ones_own_gets_one_column_and_the_labels():
    met = []

    def absolute(logits, labels):
        met.append((tuple(logits.shape), tuple(labels.shape), set(labels.tolist())))
        return (logits[:, 0] - (2 * labels - 1)).abs()

    inputs, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    dataset = data.Dataset(inputs, labels, inputs, labels, ("-1", "1"))
    run = fit(nn.Linear(3, 1), dataset, lr=0.1, loss=absolute, stop=Stop(steps=1))
    assert met and all(one == ((6, 1), (6,), {0, 1}) for one in met)
    targets = 2 * labels - 1
    torch.testing.assert_close(
        torch.tensor(run.history["loss"].iloc[-1]).float(), (run.module(inputs)[:, 0] - targets).abs().mean()
    )


@pytest.mark.parametrize("normalization", [None, "layer", "batch"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_training_learns_the_sign_and_a_stack_equals_its_networks(loss, normalization):
    dataset = data.load("parity", train=40, test=200, seed=1, dimension=8)
    options = {"normalization": normalization, "width": 16}
    if normalization == "batch":
        options["training_inputs"] = dataset.inputs
    networks = [models.two_layer(8, seed=seed, **options) for seed in range(2)]
    settings = {"lr": 0.02, "loss": loss, "batch_size": 10, "stop": Stop(steps=40, every=20), "track_test": True}
    runs = fit_many(networks, dataset, **settings, stacked=True)
    for seed, (network, run) in enumerate(zip(networks, runs, strict=True)):
        alone = fit(network, dataset, **settings, seed=seed)
        torch.testing.assert_close(run.module(dataset.inputs), alone.module(dataset.inputs), rtol=1e-4, atol=1e-5)
        f, y = alone.module(dataset.test_inputs)[:, 0], 2 * dataset.test_labels - 1
        assert alone.history["test_accuracy"].iloc[-1] == (f * y > 0).double().mean().item()
        assert alone.history["loss"].iloc[-1] < alone.history["loss"].iloc[0]
        both = train.loss_and_accuracy(alone.module, dataset.test_inputs, dataset.test_labels, loss=loss)
        assert both == pytest.approx(tuple(alone.history[["test_loss", "test_accuracy"]].iloc[-1]), rel=1e-6)


def test_margins_of_a_stack_of_one_output_are_those_of_its_networks():
    networks, inputs, labels = [nn.Linear(3, 1), nn.Linear(3, 1)], torch.randn(2, 3), torch.tensor([0, 1])
    each = torch.stack([margins.output_margins(network, inputs, labels) for network in networks])
    torch.testing.assert_close(margins.output_margins(Network.stack(networks), inputs, labels), each)
