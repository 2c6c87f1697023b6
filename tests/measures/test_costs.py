"""The bill beforehand: passes as they are counted afterwards, memory that holds, and what costs nothing."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import WHOLE
from measures_cases import OF_THE_RUN, WIDE, own_labels
from memory import peak
from torch import nn

from genlib import data
from genlib.measures import CATALOGUE, INVARIANCES, Measure, cost, evaluate, memory
from genlib.measures.measure import registry
from genlib.measures.parts import PARTS, Passes
from genlib.measures.searches import Shared
from genlib.network import Network


class Transformer(nn.Module):
    """Rows of an image as eight tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(8, 16), nn.Parameter(torch.zeros(8, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.block(self.embed(x[:, 0]) + self.place).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.rnn(x[:, 0])[0][:, -1])


def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutional(channels=8):
    first = [nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))


NETWORKS = {"perceptron": perceptron, "convolutional": convolutional, "transformer": Transformer, "lstm": Recurrent}


def digits(samples):
    found = data.load("digits")
    return found.inputs[:samples].reshape(-1, 1, 8, 8), found.labels[:samples]


def started_and_trained(kind, steps=400):
    """The network at its start, and after a training; of the same seed."""
    inputs, labels = digits(400)
    for count in (0, steps):
        torch.manual_seed(0)
        network = NETWORKS[kind]()
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(count):
            chosen = torch.randperm(len(inputs))[:128]
            optimizer.zero_grad()
            F.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
        yield network.eval()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_bill_is_what_is_counted(kind):
    start, network = started_and_trained(kind)
    given = {"initial": start, "first_epoch": start}
    bill, table = cost(network, digits(400), WHOLE, **given), evaluate(network, digits(400), names=WHOLE, **given)
    assert bill.index.equals(table.index) and bill.columns.tolist() == ["passes", "at_most", "seconds", "bytes"]
    known = bill["passes"] == bill["at_most"]
    np.testing.assert_allclose(bill.loc[known, "passes"], table.loc[known, "passes"], atol=1e-9)
    of_searches = {"top_eigenvalue", "flatness", "flatness_magnitude", "pac_bayes_magnitude_start", "pac_bayes_scaled"}
    of_searches |= {"sharpness_flatness", "sharpness_flatness_magnitude", "sharpness_magnitude_start"}
    assert set(bill.index[~known]) == of_searches
    assert (table["passes"] <= bill["at_most"] + 1e-9).all()
    assert bill["passes"].sum() == pytest.approx(table["passes"].sum(), rel=0.2)
    second = bill["seconds"] / bill["passes"].where(bill["passes"] > 0)
    assert second.min() == pytest.approx(second.max()) and second.min() > 0


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_row_asks_for_the_parts_that_are_said(name, measured):
    network, initial, inputs, labels, _ = measured
    start = Network.of(initial)
    shared = Shared(Network.of(network), inputs, labels, initial=start, first_epoch=start, seed=0)
    if name not in OF_THE_RUN | WIDE:
        CATALOGUE[name].compute(shared)
    asked = {" ".join(str(word) for word in key) for key in shared._found}
    said = CATALOGUE[name].passes.parts if CATALOGUE[name].passes else ()
    assert asked & set(PARTS) == set(said)


def test_what_many_classes_and_samples_cost():
    torch.manual_seed(0)
    many, layers = nn.Sequential(nn.Linear(3, 1000)), (nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(4, 70))
    inputs = torch.randn(20, 3)
    names = ["jacobian_norm", "hessian_trace", "input_gradient"]
    assert cost(many, inputs, names)["passes"].tolist() == [1001, 0, 0]  # no labels
    labels = torch.zeros(20).long()
    assert cost(many, (inputs, labels), names)["passes"].tolist() == [1001, 17, 0]
    for network, x in (
        (many, inputs),
        (nn.Sequential(*layers), inputs[..., None]),
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh()), inputs),
    ):
        bill, table = cost(network, (x, labels), names), evaluate(network, (x, labels), names=names)
        assert bill["passes"].tolist() == table["passes"].tolist()
    long = torch.randn(5000, 3), torch.randint(2, (5000,))  # two chunks
    names = ["gradient_variance", "hessian_trace", "top_eigenvalue", "hessian_norm", "transitions"]
    for network in (nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Tanh())):
        bill, table = cost(network, long, names), evaluate(network, long, names=names)
        known = bill["passes"] == bill["at_most"]
        np.testing.assert_allclose(bill.loc[known, "passes"], table.loc[known, "passes"], rtol=1e-12)
        assert known.sum() == 4
        assert bill.loc["hessian_norm", "passes"] == 9 * 6
        assert bill.loc["top_eigenvalue", "passes"] == 9 * 8  # no more products than there are parameters


def test_what_is_lacking_costs_nothing(measured):
    network, initial, inputs, labels, _ = measured
    for bill, table in (
        (cost(network), evaluate(network, input_shape=(5,))),
        (cost(network, inputs), evaluate(network, inputs)),
        (cost(network, (inputs, labels)), evaluate(network, (inputs, labels))),
        (cost(network, (inputs, labels), initial=initial), evaluate(network, (inputs, labels), initial=initial)),
    ):
        bill, table = (rows.drop([name for name, row in CATALOGUE.items() if row.on_request]) for rows in (bill, table))
        lacking = table["reason"].str.contains("(?:data|labels|initial|first_epoch|run) (?:are|is) missing")
        assert (bill[lacking] == 0).to_numpy().all()
        assert ((bill["bytes"] > 0) == ~lacking).all() and (bill["passes"].gt(0) == table["passes"].gt(0)).all()


def test_whole_numbers_are_not_varied_and_what_looks_at_neighbours_has_no_data():
    torch.manual_seed(0)

    class Neighbours(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    words = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 2))
    tokens, labels = torch.randint(9, (20, 2)), torch.randint(2, (20,))
    names = ["cross_entropy", "jacobian_norm", "input_margin", "transitions", "l2"]
    for network, x, expected in ((words, tokens, [1, 0, 0, 0, 0]), (Neighbours(3, 2), torch.randn(20, 3), [0] * 5)):
        bill, table = cost(network, (x, labels), names), evaluate(network, (x, labels), names=names)
        assert bill["passes"].tolist() == table["passes"].tolist() == expected and bill.loc["l2", "bytes"] > 0


def test_a_measure_of_ones_own_costs_what_it_says(measured):
    network, _, inputs, labels, _ = measured
    own = Measure("own", "o", "o", "jiang2020", ("data",), 7, INVARIANCES, lambda s: s.cross_entropy)
    registry["own"] = own
    try:
        assert cost(network, (inputs, labels), ["own", "own"])["passes"].tolist() == [7, 7]
        assert cost(network, names="own")["passes"].tolist() == [0]
    finally:
        del registry["own"]


def test_the_numbers_of_the_catalogue_are_those_of_ten_classes():
    said = {"l2": 0, "inverse_margin": 1, "input_margin": 2, "jacobian_norm": 11, "hessian_trace": 11, "transitions": 4}
    said |= {"gradient_variance": 3, "fisher_rao": 5, "keskar_sharpness": 61, "sam_sharpness": 4, "hessian_norm": 168}
    said |= {"top_eigenvalue": 129, "flatness": 24, "pac_bayes_scaled": 23, "sharpness_flatness": 150}
    said |= {"soft_rank": 12 * 300 / 1024, "batch_sharpness": 12, "relative_flatness": 1, "loss_curvature": 11}
    assert {name: CATALOGUE[name].passes for name in said} == said
    copied = copy.deepcopy(CATALOGUE["flatness"].passes)
    assert copied == 24 and copied.parts == ("logits", "sigma isotropic")
    assert all(isinstance(measure.passes, Passes) == (measure.passes > 0) for measure in CATALOGUE.values())


def test_refusals_of_a_bill(measured):
    network, _, inputs, labels, _ = measured
    with pytest.raises(ValueError, match=r"names holds 'flatnes'.*did you mean flatness"):
        cost(network, (inputs, labels), "flatnes")
    with pytest.raises(ValueError, match="network is a stack; give one of its networks"):
        cost(Network.stack([network, network]), (inputs, labels))
    with pytest.raises(ValueError, match="labels"):
        cost(network, (inputs, labels + 3))


@pytest.mark.parametrize("options", [{"k": 0}, {"chunk_size": -1}, {"loss": "error"}, {"input_shape": (5,)}])
@pytest.mark.parametrize("function", [cost, evaluate])
def test_options_that_no_table_could_take(measured, function, options):
    network, _, inputs, labels, _ = measured
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        function(network, (inputs, labels), names="parameter_norm", **options)


def of_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(72, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))
    return network, torch.randn(4, 72)


def of_activations():
    torch.manual_seed(0)
    return convolutional(16).eval(), torch.randn(200, 1, 8, 8)


def of_steps():
    torch.manual_seed(0)
    return Recurrent(), torch.randn(100, 1, 8, 8)


def of_attention():
    torch.manual_seed(0)
    return Transformer().eval(), torch.randn(50, 1, 8, 8)


@pytest.mark.parametrize("case", [of_weights, of_activations, of_steps, of_attention])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_no_row_takes_more_memory_than_is_said(case):
    network, inputs = case()
    data, given = (inputs, own_labels(network, inputs)), {"initial": network, "first_epoch": network}
    of_parts = {  # one row for each kind of part
        measure.passes.parts[-1].split()[0]: name for name, measure in CATALOGUE.items() if measure.passes > 0
    }
    ratios = {}
    for row in of_parts.values():
        if bill := cost(network, data, row, **given)["bytes"].item():  # it isn't refused
            ratios[row] = bill / peak(lambda row=row: evaluate(network, data, names=row, **given))
    assert {row: ratio for row, ratio in ratios.items() if ratio < 1} == {}
    assert min(ratios.values()) < 3 and len(ratios) >= 15


def test_kept_eigenvectors_weigh_on_later_rows(measured):
    network, _, inputs, labels, _ = measured
    bytes_of = cost(network, (inputs, labels), ["keskar_sharpness", "top_eigenvalue", "worst_case_sharpness"])["bytes"]
    weights = sum(p.nbytes for p in network.parameters())
    assert bytes_of["worst_case_sharpness"] - bytes_of["keskar_sharpness"] == 10 * weights


def test_it_is_said_once_where_there_is_not_the_memory(measured, monkeypatch):
    network, initial, inputs, labels, _ = measured
    bytes_of = cost(network, (inputs, labels), names := ["l2", "top_eigenvalue"])["bytes"]
    monkeypatch.setattr(memory, "free_bytes", lambda device: bytes_of["top_eigenvalue"] - 1)
    stack = Network.stack([network, initial])
    for one in (network, stack):
        with pytest.warns(
            RuntimeWarning, match=r"top_eigenvalue may take .* GiB .* on cpu are .*; measure fewer"
        ) as met:
            table = evaluate(one, (inputs, labels), names=names)
        assert len(met) == 1 and table["value"].notna().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(network, (inputs, labels), names="l2")
        monkeypatch.setattr(memory, "free_bytes", lambda device: bytes_of["top_eigenvalue"])
        evaluate(network, (inputs, labels), names=names)


def test_no_memory_is_asked_for_what_will_be_refused_and_none_for_a_look_that_fails(measured, monkeypatch):
    network, initial, inputs, labels, _ = measured
    weights = sum(p.nbytes for p in network.parameters())
    monkeypatch.setattr(memory, "free_bytes", lambda device: 20 * weights)  # of a spectrum 30 times the weights

    def failing(objective):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(evaluate(network, names="top_eigenvalue")["value"].item())
        assert np.isnan(evaluate(network, inputs, names="top_eigenvalue")["value"].item())
        evaluate(Network.stack([network, initial]), inputs, names="top_eigenvalue")
        monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
        monkeypatch.setattr(memory, "_written", failing)
        assert np.isfinite(evaluate(network, (inputs, labels), names="cross_entropy")["value"].item())


def test_the_memory_that_is_free_is_a_number():
    assert memory.free_bytes(torch.device("cpu")) > 2**20
