"""Passes that are shared and counted, starts and runs, refusals that say why."""

import copy
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from cases import WHOLE
from measures_cases import FREE, LOOKED_UP, SPECTRAL, WIDE, dense
from torch import nn
from torch.nn.utils import prune

from genlib.data import Dataset
from genlib.measures import CATALOGUE, cost, evaluate
from genlib.train import Run, Stop, fit


def test_all_together_equal_each_alone(measured):
    network, initial, inputs, labels, table = measured
    alone = (*LOOKED_UP, "flatness", "pac_bayes_magnitude_start", "keskar_sharpness", "sharpness_start", "hessian_norm")
    for name in [*FREE, *alone]:
        alone = evaluate(network, (inputs, labels), initial=initial, names=[name])
        assert alone.loc[name, "value"] == table.loc[name, "value"], name


class Counting(nn.Sequential):
    calls = 0

    def forward(self, x):
        Counting.calls += len(x) > 8  # the looks at a few samples that check the data and the network aside
        return super().forward(x)


def test_what_needs_one_forward_pass_shares_it(measured):
    network, initial, inputs, labels, _ = measured
    counting = Counting(*copy.deepcopy(network))

    def calls(*names):
        Counting.calls = 0
        table = evaluate(counting, (inputs, labels), initial=initial, names=names)
        assert table["passes"].tolist() == [1] + [0] * (len(names) - 1)
        return Counting.calls

    names = [name for name, measure in CATALOGUE.items() if measure.passes and measure.passes.parts == ("logits",)]
    # The path norm's pass is of a single input.
    passed_again = [name for name in names if calls("cross_entropy", name) > 1]
    assert passed_again == [] and len(names) >= 18 and calls(*names) == 1


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_the_stated_cost_is_the_cost(measured, name):
    network, initial, inputs, labels, _ = measured
    given = {"initial": initial, "first_epoch": initial}
    counted = evaluate(network, (inputs, labels), names=[name], **given)["passes"].iloc[0]
    stated, at_most = cost(network, (inputs, labels), [name], **given)[["passes", "at_most"]].iloc[0]
    if stated == at_most:
        assert counted == stated
    elif "eigenpairs" in CATALOGUE[name].passes.parts:
        assert 60 < counted < 3 + 6 * 79  # as many products as parameters would be all of the matrix
    elif name.startswith("sharpness"):
        assert (counted - 5) % 58 == 0 and 100 < counted < at_most  # the loss, a gradient, and 58 a radius
    else:
        assert 10 < counted < at_most


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
    alone = evaluate(network, (inputs, labels), names=WHOLE)
    lacking = {
        need: [name for name, measure in WHOLE.items() if need in measure.needs]
        for need in ("initial", "first_epoch", "run")
    }
    for need, names in lacking.items():
        assert alone.loc[names, "reason"].str.startswith(f"{need} is missing").all()
    others = [name for name in WHOLE if not any(name in names for names in lacking.values())]
    assert (alone.loc[others, "reason"] == "").drop(["transitions", *WIDE]).all()
    assert alone.loc["transitions", "reason"].startswith("the standard error is unknown")  # of one ellipse
    assert math.isfinite(alone.loc["transitions", "value"])
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
    area = evaluate(network, run=run, names="training_area").loc["training_area", "value"]
    assert area == pytest.approx(10 * (0.9 + (0.9 + 0.1) / 2 + (0.1 + 0.2) / 2 + (0.2 + 0.01) / 2 + (0.01 + 0.02) / 2))
    lost = replace(run, history=history.assign(loss=[0.9, math.nan, 1, 1, 1]))
    assert "is not finite at all checks" in evaluate(network, run=lost, names="training_area")["reason"].item()
    far = replace(run, history=history[:3])
    table = evaluate(network, (inputs, labels), run=far, names=["first_steps", "last_steps"])
    assert table.loc["first_steps", "value"] == 20
    assert table.loc["last_steps", "reason"] == "run: its training loss never fell to 0.01; train it further"


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.factor


def test_an_unknown_layer_is_left_out_and_named(measured):
    network, initial, inputs, labels, table = measured
    odd, start = (nn.Sequential(*copy.deepcopy(one), Scale().double()) for one in (network, initial))
    found = evaluate(odd, (inputs, labels), initial=start, first_epoch=start, names=WHOLE)
    layered = [name for name, measure in WHOLE.items() if "layers" in measure.needs]
    of_paths = [name for name in layered if "path" in name]
    over_the_rest = [name for name in layered if name not in {*of_paths, *WIDE, "lipschitz_bound"}]
    said = "over part of the network, without 5 (Scale), which no norm of layers knows: 3.66 % of its parameters"
    assert sum(p.numel() for p in odd.parameters()) == 82
    assert (found.loc[over_the_rest, "reason"] == said).all()
    same = [name for name in over_the_rest if name != "vc_dimension"]  # which counts all parameters
    np.testing.assert_allclose(found.loc[same, "value"], table.loc[same, "value"], rtol=1e-9)
    assert found.loc[of_paths, "value"].isna().all()
    assert found.loc[of_paths, "reason"].str.contains("is of type Scale.*register_norm").all()
    for name in ("lipschitz_bound", "rescaled_kl"):
        assert found.loc[name, "reason"].startswith("network is no Sequential of dense layers")
    others = [name for name in WHOLE if name not in layered and table.loc[name, "reason"] == ""]
    of_known_gradients = {"soft_rank", "tic", "log_evidence"}
    assert (
        found.loc[list(of_known_gradients), "reason"]
        .str.startswith("network: 5.factor is used outside of its layer")
        .all()
    )
    others = [name for name in others if name not in {*of_known_gradients, "rescaled_kl"}]
    assert (found.loc[others, "reason"] == "").all()


class Plain(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.token, self.gains = nn.Parameter(torch.ones(3)), nn.ModuleList([Scale() for _ in range(count)])
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = x + self.token
        for gain in self.gains:
            x = gain(x)
        return self.head(x)


def test_a_few_of_many_parts_are_named_and_values_at_the_edges_keep_their_reason():
    torch.manual_seed(0)
    data = torch.randn(20, 3), torch.randint(2, (20,))
    reasons = [evaluate(Plain(n), data, names="product_frobenius")["reason"].item() for n in range(4)]
    assert reasons[0].startswith("over part of the network, without token (Parameter), which")
    assert "without token (Parameter) and gains.0 (Scale), which no norm" in reasons[1]
    assert "without token (Parameter), gains.0 (Scale) and gains.1 (Scale), which no norm" in reasons[2]
    assert "gains.0 (Scale), gains.1 (Scale) and 1 more, which no norm of layers knows: 60 % of its" in reasons[3]
    zero = Plain(1)
    nn.init.zeros_(zero.head.weight)
    row = evaluate(zero, data, names="product_frobenius").iloc[0]
    assert math.isnan(row.value) and row.reason.startswith("the value is ln 0")


def test_what_no_part_of_is_known_or_is_tied_stays_refused_by_name():
    torch.manual_seed(0)
    data = torch.randn(20, 3), torch.randint(3, (20,))
    tied = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    twice = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    networks = {
        r"no layer with weights that is listed, but 0 \(Scale\)": nn.Sequential(Scale()),
        r"0\.weight and 2\.weight are one tied weight": tied,
        r"0 runs more than once": nn.Sequential(*twice, *twice),
        r"the weight of 0 is computed from other tensors": nn.Sequential(
            prune.identity(nn.Linear(3, 3), "weight"), nn.LayerNorm(3)
        ),
    }
    for said, network in networks.items():
        table = evaluate(network, data, names=["product_frobenius", "product_spectral", "parameters"])
        assert table["reason"].iloc[:2].str.contains(f"^network: .*{said}").all() and not table["reason"].iloc[2]


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


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 32), nn.Tanh(), nn.Linear(32, 10))


class Failing(nn.Sequential):
    """Raises an error at the forward pass over all samples whose number is given."""

    def __init__(self, error, at):
        super().__init__(*small())
        self.error, self.at, self.calls = error, at, 0

    def forward(self, x):
        self.calls += len(x) > 8
        if self.calls == self.at:
            raise self.error
        return super().forward(x)


ENDS = {
    "interrupted before": KeyboardInterrupt(),
    "out of memory": MemoryError(),
    "out of memory at": torch.OutOfMemoryError("CUDA out of memory"),
    "out of memory at this": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
}


@pytest.mark.parametrize("reason", ENDS)
def test_what_ends_a_table_leaves_the_rows_that_are_done(reason):
    inputs, labels = torch.randn(20, 40), torch.randint(10, (20,))
    names = ["l2", "cross_entropy", "sam_sharpness", "keskar_sharpness", "parameters"]
    whole = evaluate(small(), (inputs, labels), names=names)
    table = evaluate(Failing(ENDS[reason], 2), (inputs, labels), names=names)
    assert table.index.tolist() == names
    pd.testing.assert_frame_equal(table.iloc[:2], whole.iloc[:2])
    assert table["value"].iloc[2:].isna().all()
    assert table["reason"].iloc[2:].str.startswith(reason).all()


@pytest.mark.parametrize("reason", ENDS)
def test_within_a_sweep_what_ends_a_table_raises(reason, monkeypatch):
    monkeypatch.setenv("GENLIB_SWEEP", "1")
    with pytest.raises(type(ENDS[reason])):
        evaluate(Failing(ENDS[reason], 2), (torch.randn(20, 40), torch.randint(10, (20,))), names=["sam_sharpness"])


def test_an_end_within_a_stack_leaves_the_networks_that_are_done():
    class Stopped(nn.Linear):
        def forward(self, x):
            if self.weight.flatten()[0] > 5 and len(x) > 8:
                raise KeyboardInterrupt
            return super().forward(x)

    modules = [Stopped(4, 3) for _ in range(3)]
    nn.init.constant_(modules[1].weight, 6.0)
    stack = [
        evaluate(module, (torch.ones(20, 4), torch.zeros(20).long()), names=["l2", "cross_entropy"])
        for module in modules
    ]
    assert [table["value"].notna().sum() for table in stack] == [2, 1, 2]


def test_fewer_parameters_than_eigenvalues_are_no_obstacle():
    table = evaluate(nn.Linear(2, 2), (torch.randn(20, 2), torch.randint(2, (20,))), names=["top_eigenvalue"])
    assert table["reason"].tolist() == [""]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_fewer_bits_are_those_of_many(dtype):
    inputs, labels = torch.randn(40, 5), torch.randint(2, (40,))
    names = ["cross_entropy", "flatness", "sharpness_flatness", "negative_entropy"]
    for outputs in (1, 2):
        torch.manual_seed(0)
        network = nn.Linear(5, outputs)
        tables = [evaluate(network, (inputs, one), names=names) for one in (labels, labels.to(dtype))]
        pd.testing.assert_frame_equal(*tables)


def test_the_matrices_of_words_have_norms_and_their_indices_none():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.rnn, self.head = nn.Embedding(9, 3), nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, tokens):
            return self.head(self.rnn(self.words(tokens))[0][:, -1])

    network, tokens = Bag().double(), torch.randint(9, (20, 5), generator=torch.Generator().manual_seed(0))
    names = ["product_spectral", "vc_dimension", "spectral_origin", "spectral_complexity"]
    table = evaluate(network, (tokens, network(tokens).argmax(1)), initial=Bag().double(), names=names)
    matrices = [network.words.weight.T, *network.rnn.weight_ih_l0.chunk(3), *network.rnn.weight_hh_l0.chunk(3)]
    tops = [torch.linalg.matrix_norm(m.detach(), 2).log() for m in [*matrices, network.head.weight]]
    assert table.loc["product_spectral", "value"] == pytest.approx(2 * sum(tops).item(), rel=1e-9)
    parameters = sum(p.numel() for p in network.parameters())
    assert table.loc["vc_dimension", "value"] == pytest.approx(8 * parameters * math.log(parameters))
    assert table.loc[names[2:], "reason"].str.startswith("inputs are indices of an embedding").all()


def test_a_spectrum_is_taken_on_request_alone(measured):
    network, _, inputs, labels, table = measured
    default = evaluate(network, (inputs, labels))
    waiting = default.index[default["reason"].str.contains("only on request")]
    assert set(waiting) == {name for name, row in CATALOGUE.items() if row.on_request} >= SPECTRAL
    assert (default.loc[waiting, "passes"] == 0).all() and default.loc[waiting, "value"].isna().all()
    assert (cost(network, (inputs, labels)).loc[waiting, "passes"] == 0).all()
    assert default.loc["top_eigenvalue", "reason"] == (
        "takes some 129 forward passes, so only on request: names=['top_eigenvalue'], or names=measures.CATALOGUE for "
        "all rows"
    )
    assert table.loc["top_eigenvalue", "value"] > 0  # of a table that names it
