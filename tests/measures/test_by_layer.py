"""The table of layers: what it takes from norms, gradients and traces by autograd, and what it leaves out."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from cases import drawn
from grammar import Cube
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from genlib import norms
from genlib.measures import evaluate, layers
from genlib.network import Network


def convolutional(seed=0):
    """A folded BatchNorm, one by itself, and two parts that no norm knows."""
    torch.manual_seed(seed)
    body = [nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.PReLU(), nn.Flatten()]
    return drawn(nn.Sequential(*body, nn.Linear(12, 4), nn.PReLU(4), nn.Linear(4, 3)).double(), seed)


def images(seed=0, samples=10):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 2, 3, 3, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (samples,), generator=generator)


class Recurrent(nn.Module):
    """So few parameters that ten random vectors span all."""

    def __init__(self, kind, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.rnn, self.head = kind(1, 1, batch_first=True, bias=kind is nn.RNN), nn.Linear(1, 2, bias=False)
        self.double().eval()

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def sequences(samples=8):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, 1, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(2, (samples,), generator=generator)


def by_autograd(network, data, rows, loss=F.cross_entropy):
    """The gradient's norm and the Hessian's trace over some of the parameters each; `rows` are pairs of a parameter and
    its part."""
    names, params = zip(*network.named_parameters(), strict=True)
    sizes = [p.numel() for p in params]

    def value(vector):
        parts = (part.view_as(p) for part, p in zip(vector.split(sizes), params, strict=True))
        return loss(torch.func.functional_call(network, dict(zip(names, parts, strict=True)), (data[0],)), data[1])

    w = nn.utils.parameters_to_vector(params).detach()
    gradient = torch.autograd.functional.jacobian(value, w)
    diagonal = torch.autograd.functional.hessian(value, w).diagonal()
    gradients, diagonals = (
        {name: part.view_as(p) for name, part, p in zip(names, vector.split(sizes), params, strict=True)}
        for vector in (gradient, diagonal)
    )
    return [
        (
            sum(gradients[name][part].square().sum() for name, part in row).sqrt().item(),
            sum(diagonals[name][part].sum() for name, part in row).item(),
        )
        for row in rows
    ]


def whole(*modules):
    return [(f"{name}.{part}", slice(None)) for name in modules for part in ("weight", "bias")]


def test_the_norms_are_those_of_the_kernels_over_the_parts_that_are_known():
    network, start = convolutional(), convolutional(1)
    table = layers(network, initial=start, input_shape=(2, 3, 3))
    parts = {"exclude": ["4", "7"]}
    assert table.index.tolist() == norms.layer_names(network, **parts) == ["0", "3", "6", "8"]
    assert table["type"].tolist() == ["Conv2d", "BatchNorm2d", "Linear", "Linear"]
    assert table["batch_norm"].tolist() == ["1", "", "", ""]
    assert table[["outputs", "inputs", "taps"]].to_numpy().tolist() == [[3, 2, 4], [3, 3, 1], [4, 12, 1], [3, 4, 1]]
    assert table["parameters"].tolist() == [2 * 3 * 4 + 3 + 6, 6, 12 * 4 + 4, 4 * 3 + 3]
    assert table["parameters"].sum() + 5 == sum(p.numel() for p in network.parameters())
    shape = {"input_shape": (2, 3, 3), **parts}
    for column, expected in {
        "frobenius_norm": norms.frobenius_norms(network, **parts),
        "spectral_norm": norms.spectral_norms(network, **shape),
        "stable_rank": norms.stable_ranks(network, **shape),
        "group_norm": norms.group_norms(network, 2, 1, **parts),
        "distance": norms.distances(network, start, **parts),
    }.items():
        np.testing.assert_allclose(table[column], expected, rtol=1e-12)
    assert (table["reason"] == "").all()
    assert table.attrs == {"left_out": dict.fromkeys(("4", "7"), "PReLU, which no norm of layers knows")}
    assert table.columns[-1] == "reason" and "gradient_norm" not in table and "singular_values" not in table


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_gradients_and_exact_traces_are_those_of_autograd(loss):
    network, data = convolutional(), images()
    table = layers(network, data, loss=loss)
    own = {"cross_entropy": F.cross_entropy, "mse": lambda f, y: F.mse_loss(f, F.one_hot(y, 3).double())}[loss]
    expected = by_autograd(network, data, [whole("0", "1"), whole("3"), whole("6"), whole("8")], own)
    np.testing.assert_allclose(table[["gradient_norm", "hessian_trace"]], expected, rtol=1e-9)
    assert (table["standard_error"] == 0).all() and (table["reason"] == "").all()
    assert table.attrs["passes"] == 3 + 1 + 2 * 3
    np.testing.assert_allclose(table["spectral_norm"], layers(network, input_shape=(2, 3, 3))["spectral_norm"])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
def test_traces_of_gates_are_those_of_their_blocks(kind):
    network, data = Recurrent(kind), sequences()
    table = layers(network, data)
    if kind is nn.GRU:
        weights = ("rnn.weight_ih_l0", "rnn.weight_hh_l0")
        rows = [[(weight, slice(i, i + 1))] for weight in weights for i in range(3)]
    else:
        rows = [[(f"rnn.{part}_{of}_l0", slice(None)) for part in ("weight", "bias")] for of in ("ih", "hh")]
    expected = by_autograd(network, data, [*rows, [("head.weight", slice(None))]])
    np.testing.assert_allclose(table[["gradient_norm", "hessian_trace"]], expected, rtol=1e-6, atol=1e-9)
    assert (table["standard_error"] < 1e-6).all()
    assert table["parameters"].tolist() == [
        sum(network.get_parameter(n)[p].numel() for n, p in row) for row in rows
    ] + [2]


def test_a_part_of_the_layers_and_data_in_another_form():
    network, (inputs, labels) = convolutional(), images()
    all_of_them = layers(network, (inputs, labels))
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=4)
    for options, names in (
        ({"include": ["0", "8"]}, ["0", "8"]),
        ({"exclude": "6"}, ["0", "3", "8"]),
        ({"include": "[0-6]", "exclude": ["3"]}, ["0", "6"]),
    ):
        table = layers(network, loader, **options)
        numbers = all_of_them.columns.drop(["type", "batch_norm", "reason"])
        np.testing.assert_allclose(table[numbers], all_of_them.loc[names, numbers], rtol=1e-9)
        assert table.attrs == all_of_them.attrs


def test_what_is_left_out_changes_no_norm():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    odd = nn.Sequential(plain[0], nn.LayerNorm(5), plain[1], plain[2])
    table, of_odd = layers(plain), layers(odd)
    np.testing.assert_array_equal(of_odd.drop(columns=["type", "reason"]), table.drop(columns=["type", "reason"]))
    assert of_odd.attrs["left_out"] == {"1": "LayerNorm, which no norm of layers knows"}
    assert table.attrs["left_out"] == {}
    rows = evaluate(odd, (torch.randn(9, 4), torch.arange(9) % 3), names=["parameter_norm", "stable_rank"])["value"]
    assert rows["parameter_norm"] == pytest.approx((of_odd["frobenius_norm"] ** 2).sum())
    assert rows["stable_rank"] == pytest.approx(of_odd["stable_rank"].sum())


def test_singular_values_and_numbers_that_are_missing():
    network = convolutional()
    nn.init.zeros_(network[6].weight)
    table = layers(network, input_shape=(2, 3, 3), singular_values=2)
    expected = torch.linalg.svdvals(network[8].weight.detach())[:2]
    assert table.loc["8", "singular_values"] == pytest.approx(expected.tolist())
    assert math.isnan(table.loc["0", "singular_values"]) and math.isnan(table.loc["6", "stable_rank"])
    assert table["reason"].tolist() == [
        "singular_values: those of a convolution on its whole image are not computed",
        "",
        "stable_rank: all weights are zero",
        "",
    ]


class Cubed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(Cube.apply(self.layer(x)))


def test_without_a_second_derivative_there_is_no_trace_and_the_rest_stays():
    table = layers(Cubed(), (torch.randn(9, 4), torch.arange(9) % 3))
    assert table["hessian_trace"].isna().all() and table["standard_error"].isna().all()
    assert table["reason"].str.startswith("hessian_trace: network: torch").all()
    assert (table["gradient_norm"] > 0).all() and table.attrs["passes"] == 3


def test_a_stack_is_its_networks_one_by_one():
    networks, starts = [convolutional(seed) for seed in range(2)], [convolutional(seed) for seed in (2, 3)]
    inputs, labels = zip(*(images(seed) for seed in range(2)), strict=True)
    alone = [
        layers(network, data, initial=start, singular_values=1)
        for network, start, data in zip(networks, starts, zip(inputs, labels, strict=True), strict=True)
    ]
    data = torch.stack(inputs), torch.stack(labels)
    stack = layers(Network.stack(networks), data, initial=Network.stack(starts), singular_values=1)
    assert stack.index.names == ["network", "layer"]
    for i, table in enumerate(alone):
        pd.testing.assert_frame_equal(stack.loc[i], table)
    shared = layers(Network.stack(networks), (inputs[0], labels[0]))
    pd.testing.assert_frame_equal(shared.loc[1], layers(networks[1], (inputs[0], labels[0])))
    with pytest.raises(ValueError, match="initial holds 3 networks, network 2"):
        layers(Network.stack(networks), initial=Network.stack([*starts, starts[0]]), input_shape=(2, 3, 3))


def test_nothing_is_touched():
    network, data = convolutional(), images()
    before, kept = copy.deepcopy(network.state_dict()), data[0].clone()
    layers(network, data, initial=network, singular_values=1)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(data[0], kept) and all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": images(), "loss": "error"}, "loss is 'error', which has no gradient"),
        ({"data": images(), "loss": "hinge"}, "loss is 'hinge'"),
        ({}, "input_shape is missing; 0 is a convolution"),
        ({"input_shape": (5, 3, 3)}, r"input_shape \(5, 3, 3\) does not fit"),
        ({"data": images(), "exclude": "9"}, "exclude holds '9', which is no part"),
        ({"data": images(), "include": "[47]"}, "network: it has no layer with weights that is listed"),
        ({"input_shape": (2, 3, 3), "singular_values": -1}, "singular_values is -1"),
        ({"data": (images()[0], images()[1] + 3)}, "labels has values outside"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        layers(convolutional(), **options)
