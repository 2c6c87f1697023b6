"""What a forward pass does besides computing is seen before anything is measured, and refused by name or mended."""

import copy
import math
from contextlib import nullcontext

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from kernels import kernels
from torch import nn

from genlib import measures
from genlib.curvature import gradient_variance, top_eigenvalues, trace
from genlib.margins import output_margins
from genlib.measures import Measure, evaluate
from genlib.network import Network
from genlib.network.door import Entangled, admitted
from genlib.sharpness import sam_sharpness


class Forward(nn.Module):
    """Two dense layers, and between them, or before, what a test has in mind."""

    def __init__(self, between=torch.relu, before=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.between, self.before = nn.Linear(5, 6), nn.Linear(6, 4), between, before

    def forward(self, x):
        return self.second(self.between(self.first(self.before(x.flatten(1)))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 6, 2, batch_first=True, dropout=0.5), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1])


class Counting(nn.Module):
    """Counts its calls; where `cooling`, its outputs shrink with them."""

    def __init__(self, cooling):
        super().__init__()
        self.layer, self.cooling = nn.Linear(5, 4), cooling
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x) / (1 + self.cooling * self.calls)


def samples(n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=generator).double(), torch.randint(4, (n,), generator=generator)


RANDOM = {
    "dropout as a function": (lambda: Forward(lambda x: F.dropout(x, 0.5)).eval(), "before second"),
    "noise on the inputs": (lambda: Forward(before=lambda x: x + torch.randn_like(x)).eval(), "before first"),
    "dropout between recurrent layers": (lambda: Recurrent().train(), r"rnn \(LSTM\)"),
    "randomized slopes": (lambda: nn.Sequential(nn.Linear(5, 4), nn.RReLU()).train(), r"1 \(RReLU\)"),
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("measured", [output_margins, trace, lambda n, x, y: evaluate(n, (x, y))])
def test_chance_in_a_forward_pass_is_refused_where_it_enters(name, measured):
    network, where = RANDOM[name]
    with pytest.raises(ValueError, match=rf"^network: .*{where}.* draws random numbers.*call module.eval\(\)"):
        measured(network().double(), *samples())


@pytest.mark.parametrize("name", ["dropout between recurrent layers", "randomized slopes"])
def test_the_mend_mends(name):
    network, _ = RANDOM[name]
    output_margins(network().double().eval(), *samples())


WRITING = {"a step in place": lambda x: x.sub_(0.5).div_(0.25), "an activation in place": nn.ReLU(inplace=True)}
CLEAN = {"a step in place": lambda x: (x - 0.5) / 0.25, "an activation in place": nn.ReLU()}


def found_by(kernel, network, x, y):
    try:
        found = kernel(network, copy.deepcopy(network), x, y)
        return " ".join((found.to_string() if isinstance(found, pd.DataFrame) else repr(found)).split())
    except ValueError as refusal:
        return str(refusal)


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("kernel", kernels())
def test_a_forward_pass_that_writes_into_its_inputs_is_measured_as_one_that_does_not(kernel, name, monkeypatch):
    monkeypatch.setattr("kernels.SHAPE", (5,))
    x, y = samples()
    kept = x.clone()
    writing, clean = (Forward(before=before).double().eval() for before in (WRITING[name], CLEAN[name]))
    found, expected = (found_by(kernels()[kernel], network, x, y) for network in (writing, clean))
    assert torch.equal(x, kept)
    if "unknown" not in found:  # the table of operations has no step in place
        assert found.replace("sub_", "sub") == expected  # where a refusal names it


MIXING = {
    "a mean over the batch": lambda: Forward(lambda h: torch.relu(h - h.mean(0))),
    "BatchNorm of the batch at hand": lambda: nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 4)
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_of_samples_that_hang_on_each_other_only_the_weights_are_measured(name):
    network, (x, y) = MIXING[name]().double().eval(), samples()
    with pytest.raises(Entangled, match="hangs on the samples beside it"):
        gradient_variance(network, x, y)
    table = evaluate(network, (x, y), initial=MIXING[name]().double().eval())
    norm = nn.utils.parameters_to_vector(network.parameters()).norm().item()
    assert table.loc["l2", "value"] == pytest.approx(norm, rel=1e-12)
    assert table.loc[["cross_entropy", "hessian_trace", "flatness"], "reason"].str.contains("hangs on").all()


def test_a_batch_norm_of_the_batch_at_hand_is_named():
    with pytest.raises(ValueError, match=r"^network: 1 normalizes by the batch at hand"):
        output_margins(MIXING["BatchNorm of the batch at hand"]().double().eval(), *samples())


def test_a_state_that_changes_without_the_outputs_is_measured_on_a_copy():
    network, (x, y) = Counting(0.0).double().eval(), samples()
    with pytest.warns(UserWarning, match="changes calls; a copy is measured"):
        found = trace(network, x, y, method="hutch++", vectors=80).value
    assert network.calls == 0
    torch.testing.assert_close(found, trace(nn.Sequential(network.layer), x, y).value)


def test_a_state_that_changes_the_outputs_is_refused():
    network = Counting(0.1).double().eval()
    with pytest.raises(ValueError, match=r"changes calls, and its outputs with it; call module.eval\(\)"):
        sam_sharpness(network, *samples(), radius=0.05)
    assert network.calls == 0


class Listed(Forward):
    """Its first layer's weights run by a list."""

    def __init__(self):
        super().__init__()
        self.weights = list(self.first.parameters())

    def forward(self, x):
        return self.second(torch.relu(F.linear(x, *self.weights)))


class Unregistered(Forward):
    """Its first layer is in a list that nn.Module doesn't look into."""

    def __init__(self):
        super().__init__()
        self.steps = [nn.Linear(5, 5).double()]

    def forward(self, x):
        return super().forward(self.steps[0](x))


class ByTuple(Forward):
    """Its layers run by a tuple, and are attributes too."""

    def __init__(self):
        super().__init__()
        self.steps = (self.first, torch.relu, self.second)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("measured", [lambda n, x, y: sam_sharpness(n, x, y, radius=0.1), output_margins])
def test_weights_past_the_modules_attributes_are_refused_by_name(measured, frozen, context):
    network = Listed().double().eval().requires_grad_(not frozen)
    with (
        context(),
        pytest.raises(ValueError, match=r"first\.weight, first\.bias past the module's own attributes"),
    ):
        measured(network, *samples())
    assert all(p.requires_grad is not frozen for p in network.parameters())


def test_weights_that_are_no_parameters_are_refused():
    with pytest.raises(ValueError, match=r"takes weights that are no parameters of it.*nn\.ModuleList"):
        top_eigenvalues(Unregistered().double().eval(), *samples(), 1)


def test_layers_in_a_tuple_that_are_attributes_too_are_measured():
    network, plain = ByTuple().double().eval(), Forward().double().eval()
    for measured in (gradient_variance, lambda n, x, y: sam_sharpness(n, x, y, radius=0.1)):
        torch.testing.assert_close(measured(network, *samples()), measured(plain, *samples()))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda: nn.Linear(7, 4), r"fails on inputs of shape \(8, 5\) .*RuntimeError.*; give inputs that the network"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.LSTM(4, 4)), "its output is a tuple; wrap it"),
    ],
)
def test_a_forward_pass_that_gives_no_logits_is_refused(network, said):
    for measured in (output_margins, lambda n, x, y: evaluate(n, (x, y))):
        with pytest.raises(ValueError, match=rf"^network: .*{said}"):
            measured(network().double().eval(), *samples())


@pytest.mark.parametrize("size", [None, 3])
def test_a_network_is_looked_at_once_for_three_passes_and_a_bit(size):
    seen = []

    class Seen(nn.Conv1d):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    modules = [nn.Sequential(Seen(1, 2, 2), nn.Flatten()).double() for _ in range(size or 1)]
    network, x = Network.of(modules[0]) if size is None else Network.stack(modules), samples()[0].unsqueeze(1)
    passed = admitted(network, x, 0)
    assert seen == [8, 8, 1, 8]  # twice, alone, and once more for its graph, or, as here, for what runs
    assert admitted(passed, x, 0) is passed and len(seen) == 4
    assert all(one.passed == {"door"} for one in passed.each)


def test_nothing_runs_on_meta():
    module = nn.Sequential(nn.Linear(5, 4)).to("meta")
    network = Network(module, dict(module.named_parameters()), {}, None, ())
    assert admitted(network, torch.empty(3, 5, device="meta"), 0) is network


def test_a_stack_that_draws_is_refused_and_one_that_writes_is_measured():
    x, y = samples()
    with pytest.raises(ValueError, match="draws random numbers"):
        output_margins(Network.stack([RANDOM["dropout as a function"][0]().double() for _ in range(2)]), x, y)
    images = x.unsqueeze(1)
    layers = [(nn.ReLU(inplace=True), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(8, 4)) for _ in range(2)]
    modules, kept = [nn.Sequential(*parts).double().eval() for parts in layers], images.clone()
    found = sam_sharpness(Network.stack(modules), images, y, radius=0.1)
    torch.testing.assert_close(found, torch.stack([sam_sharpness(m, images, y, radius=0.1) for m in modules]))
    assert torch.equal(images, kept)


def test_a_measure_that_fails_costs_its_row_alone(monkeypatch):
    def fails(shared):
        raise KeyError("weight")

    monkeypatch.undo()  # what is unexpected raises in tests
    catalogue = {"broken": Measure("broken", "", "", "mine", (), 0, (), fails), "l2": measures.CATALOGUE["l2"]}
    monkeypatch.setattr("genlib.measures.evaluation.CATALOGUE", catalogue)
    table = evaluate(Forward().double().eval(), samples())
    assert table.loc["broken", "reason"] == "unexpected KeyError: 'weight'; please report it"
    assert math.isnan(table.loc["broken", "value"]) and table.loc["l2", "value"] > 0


@pytest.mark.parametrize(("value", "reason"), [(-math.inf, "the value is ln 0"), (math.inf, "the value is infinite")])
def test_an_infinite_value_is_none_and_has_a_reason(monkeypatch, value, reason):
    endless = Measure("endless", "", "", "mine", (), 0, (), lambda shared: shared.number(value))
    monkeypatch.setattr("genlib.measures.evaluation.CATALOGUE", {"endless": endless})
    row = evaluate(Forward().double().eval(), samples()).loc["endless"]
    assert math.isnan(row.value) and row.reason.startswith(reason)
