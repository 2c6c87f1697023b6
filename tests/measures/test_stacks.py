"""A stack is measured as its networks one by one."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from cases import WHOLE
from measures_cases import dense, inputs_of, own_labels

from genlib.data import Dataset
from genlib.measures import evaluate
from genlib.network import Network
from genlib.train import Run, Stop, fit_many


def test_a_stack_is_its_networks_one_by_one(measured):
    network, initial, inputs, labels, table = measured
    other, before = dense((5, 6, 4, 3), seed=3), dense((5, 6, 4, 3), seed=4)
    start = Network.stack([before, initial])
    stack = evaluate(Network.stack([other, network]), (inputs, labels), initial=start, first_epoch=start, names=WHOLE)
    alone = evaluate(other, (inputs, labels), initial=before, first_epoch=before, names=WHOLE)
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
