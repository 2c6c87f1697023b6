"""Every invariance that a measure declares, and that it has no other."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measures_cases import DRAWN, FREE, LOOKED_UP, SEARCHED, SPECTRAL, dense, inputs_of, own_labels
from torch import nn

from genlib.measures import CATALOGUE, INVARIANCES, evaluate


def transformed(network, invariance, seed):
    """The network after what a measure may be blind to."""
    network, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    first, second = linear[-2:]  # for some measures see the last layer alone
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
