"""Random small networks of all idioms: each measure is right by brute force, or refused by name."""

import functools
import os
import re
import warnings

import pytest
import torch
import twins
from cases import WHOLE
from grammar import IDIOMS, drawn

from genlib import norms
from genlib.measures import CATALOGUE, evaluate

EVERY = os.environ.get("GENLIB_ALL") == "1"
NUMBERS = range(300 if EVERY else 20)
ARGUMENT = re.compile(r"(network|data|inputs|labels|initial|first_epoch)\b")
DRAWN = [
    "transitions",
    "local_complexity",
    "rescaled_kl",
    "lipschitz_bound",
    *(n for n in CATALOGUE if n.startswith(("flatness", "pac_bayes", "sharpness_"))),
]
NAMES = [name for name, measure in WHOLE.items() if "run" not in measure.needs]


@functools.cache
def measured(number):
    """The table of network `number`, or why there is none; the network and its data stay as they were."""
    one, kept = drawn(number), drawn(number)
    start = {"initial": one.initial, "first_epoch": one.initial}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genlib says when it measures a copy
        try:
            found = evaluate(one.network, (one.inputs, one.labels), **start, names=NAMES)
        except ValueError as refusal:
            found = str(refusal)
    assert torch.equal(one.inputs, kept.inputs)
    states = [(one.network, kept.network), (one.initial, kept.initial)]
    for a, b in [(a.state_dict(), b.state_dict()) for a, b in states]:
        assert all(torch.equal(a[name], b[name]) for name in b)
    return found


@functools.cache
def left_out(number):
    """The parts over which the rows of layers don't go."""
    found = norms.unknown_parts(drawn(number).network)
    return {*found, *(f"module.{name}" for name in found)}  # of what stands behind a wrapper


@functools.cache
def truths(number):
    """What the rows of network `number` must be, those that are known."""
    one, plain = drawn(number, plain=["checkpointed"]), drawn(number, plain=IDIOMS)
    for network in (one.network, one.initial, plain.network, plain.initial):
        network.requires_grad_(True)
    x, y = one.inputs, one.labels.long()
    known = twins.of_weights(one.network, one.initial)
    outputs = {}
    if "data" not in one.without:
        outputs = twins.of_outputs(one.network, x, y)
        known |= outputs | twins.of_the_loss(one.network, plain.network, x, y)
        known |= twins.of_functions(one.network, one.initial, x, y)
        known["first_gradient_variance"] = twins.gradient_variance(one.initial, x, y)
    if "norms" not in one.without:
        known |= twins.of_layers(plain.network, plain.initial, x, y, outputs, left_out(number))
    if "norms" not in one.without and "paths" not in one.without:
        known |= twins.of_paths(plain.network, x, outputs)
    known |= dict.fromkeys(DRAWN, None if outputs else twins.REFUSED)
    if "norms" not in one.without:
        known["spectral_alpha"] = None  # of layers that are large enough
    return {name: known.get(name, twins.REFUSED) for name in NAMES}


@pytest.mark.parametrize("number", NUMBERS)
def test_each_row_is_right_or_refused(number):
    table, one = measured(number), drawn(number)
    if isinstance(table, str):
        assert ARGUMENT.match(table), table
        return
    true = truths(number)
    wrong = [twins.wrong(name, table.loc[name], true[name]) for name in NAMES]
    assert not any(wrong), f"{', '.join(one.idioms)}:\n" + "\n".join(filter(None, wrong))
    assert not table.loc["lipschitz_bound", "value"] > table.loc["product_spectral_margin", "value"] + 1e-9
    layered = table.loc[[name for name in NAMES if "layers" in CATALOGUE[name].needs]].dropna(subset="value")
    assert (layered["reason"].str.startswith("over part of the network") == bool(left_out(number))).all()


def test_most_rows_that_have_a_value_are_compared():
    compared = known = 0
    for number in NUMBERS[:20]:
        table, true = measured(number), truths(number)
        names = [name for name in NAMES if true[name] not in (None, twins.REFUSED)]
        known += len(names)
        compared += 0 if isinstance(table, str) else table.loc[names, "value"].notna().sum()
    assert compared > known / 2


def test_the_networks_hold_all_idioms():
    met = {idiom for number in NUMBERS for idiom in drawn(number).idioms}
    assert len(met & set(IDIOMS)) >= (len(IDIOMS) if EVERY else 20)
