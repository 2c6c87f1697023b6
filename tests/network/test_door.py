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

from genlib import measures, sharpness
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
        found = trace(network, x, y, method="xtrace", vectors=80).value
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
        (lambda: nn.Sequential(nn.Linear(5, 4), Applied(lambda y: (y, y[:, :3]))), "its output is a tuple of .*"),
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
            seen.append(int(x.shape[0]))  # which torch.fx can't follow
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


class TimeOverBatch(nn.Module):
    """A recurrent layer that takes the samples for steps of time: the first sees none of the others."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x.unsqueeze(1))[0].squeeze(1))


class Hanging(nn.Module):
    def __init__(self, on):
        super().__init__()
        self.head, self.on = nn.Linear(5, 3), on

    def forward(self, x):
        return self.head(self.on(x))


HANGING = {
    "time over batch": TimeOverBatch,
    "a sum over those before": lambda: Hanging(lambda x: x.cumsum(0)),
    "the first": lambda: Hanging(lambda x: x - x[:1]),
    "the last": lambda: Hanging(lambda x: x * x[-1:]),
    "those behind": lambda: Hanging(lambda x: x.flip(0).cumsum(0).flip(0)),
}


@pytest.mark.parametrize("name", HANGING)
def test_a_sample_that_hangs_on_others_is_seen_wherever_they_stand(name):
    torch.manual_seed(0)
    x = torch.randn(9, 5)
    with pytest.raises(Entangled, match="mixes samples"):
        admitted(Network.of(HANGING[name]()), x, 0)


def test_samples_are_looked_at_all_over_the_data():
    """Those of the second half alone are mixed."""
    network = Hanging(lambda x: torch.where(x[:, :1] > 5, x - x.mean(0), x))
    x = torch.cat([torch.zeros(40, 5), torch.full((40, 5), 9.0)])
    with pytest.raises(Entangled, match="mixes samples"):
        admitted(Network.of(network), x, 0)


class Clamped(nn.Linear):
    def forward(self, x):
        self.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


@pytest.mark.parametrize("kind", [Clamped, lambda *sizes: Renormed()])
def test_a_forward_pass_that_writes_into_its_weights_is_refused_and_writes_nothing(kind):
    network = kind(5, 3)
    x = torch.randint(7, (9, 2)) if isinstance(network, Renormed) else torch.randn(9, 5)
    kept = {name: p.clone() for name, p in network.named_parameters()}
    with pytest.raises(ValueError, match=r"^network: its forward pass writes into its own weights"):
        admitted(Network.of(network), x, 0)
    assert all(torch.equal(p, kept[name]) for name, p in network.named_parameters())


class Renormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4, max_norm=0.5), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.words(x).flatten(1))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: y.argmax(1), "its output is of torch.int64; let it return logits"),
        (lambda y: y > 0, "its output is of torch.bool"),
        (lambda y: y.sum(), r"its output on 8 samples has the shape \(\)"),
        (lambda y: y.sum(0), r"its output on 8 samples has the shape \(3,\)"),
        (lambda y: y[:4], r"its output on 8 samples has the shape \(4, 3\)"),
        (lambda y: y.unsqueeze(1), r"its output on 8 samples has the shape \(8, 1, 3\); .*take one position"),
        (lambda y: torch.complex(y, y), "its output is of torch.complex"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(output, message):
    network = Hanging(lambda x: x)
    network.head = nn.Sequential(nn.Linear(5, 3), Applied(output))
    with pytest.raises(ValueError, match=f"^network: {message}"):
        admitted(Network.of(network), torch.randn(9, 5), 0)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("odd", [None, torch.relu, {"weight": torch.ones(3)}, [nn.Linear(5, 3)], "network", nn.Linear])
def test_what_is_no_network_is_refused_by_its_argument(odd, unchecked):
    data = torch.randn(9, 5), torch.randint(3, (9,))
    with pytest.raises(ValueError, match=r"^network is a \w+; give the torch.nn.Module itself"):
        evaluate(odd, data, names=["l2"])
    if odd is not None:
        with pytest.raises(ValueError, match=r"^initial is a \w+; give"):
            evaluate(nn.Linear(5, 3), data, initial=odd, names=["l2"])


def test_a_stack_of_networks_that_differ_in_an_attribute_is_refused():
    def cooled(by):
        network = Hanging(lambda x: x / by)
        return network

    with pytest.raises(ValueError, match=r"^modules\[1\] differs from modules\[0\] in on, an attribute"):
        Network.stack([cooled(1.0), cooled(2.0)])
    assert Network.stack([cooled(2.0), cooled(2.0)]).size == 2


def test_an_error_beyond_the_first_samples_is_one_of_the_network():
    words = torch.zeros(50, 2, dtype=torch.long)
    words[1] = 99  # none of those that are looked at
    network = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3))
    table = evaluate(network, (words, torch.randint(3, (50,))), names=["l2", "cross_entropy", "sam_sharpness"])
    assert (
        table["reason"].iloc[0] == ""
        and table["reason"].iloc[1:].str.startswith("network: its forward pass fails").all()
    )


def test_attention_is_one_function_with_and_without_gradients():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 3)

        def forward(self, x):
            x = x.view(len(x), 3, 4)
            return self.head(self.encoder(x, src_key_padding_mask=x[..., 0] > 0.5).mean(1))

    torch.manual_seed(0)
    network, x, y = Masked().double().eval(), torch.randn(9, 12).double(), torch.randint(3, (9,))
    loss = nn.functional.cross_entropy(network(x), y)  # with a graph
    table = evaluate(network, (x, y), names=["cross_entropy"])
    torch.testing.assert_close(table.loc["cross_entropy", "value"], loss.item())


def test_draws_of_recurrent_networks_pass_one_by_one():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.cell(x.unsqueeze(1))[0][:, 0])

    torch.manual_seed(0)
    case = Recurrent(), torch.randn(9, 5), torch.randint(3, (9,))
    found = [sharpness.expected_sharpness(*case, scale=0.1, draws=4, chunk_size=n).value for n in (3, 1000)]
    torch.testing.assert_close(*found)


def test_an_attribute_that_holds_a_networks_own_weights_is_no_difference():
    class Listing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.weights = [self.layer.weight]

        def forward(self, x):
            return self.layer(x)

    torch.manual_seed(0)
    for kind in (Listing, lambda: nn.GRU(5, 4)):
        assert Network.stack([kind(), kind()]).size == 2


class InAnotherOrder(nn.Module):
    """Sums in another order where a sample is alone, and divides by the size of what it sums."""

    def __init__(self, mixing=False):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 1e8, -1e8]))
        self.mixing = mixing

    def forward(self, x):
        a, b, c = (self.weight * x).unbind(1)
        total = b + c + a if len(x) == 1 else a + b + c
        total = total + a.mean() if self.mixing else total
        return torch.stack([total, torch.ones_like(total)], 1)


def test_what_is_due_to_rounding_alone_is_no_mixing_of_samples():
    x = torch.cat([torch.linspace(1, 2, 8).unsqueeze(1), torch.ones(8, 2)], 1)
    module = InAnotherOrder()
    assert (module(x)[4] - module(x[4:5])).abs().max() > 0.1
    assert "door" in admitted(Network.of(module), x, 0).passed
    with pytest.raises(Entangled):
        admitted(Network.of(InAnotherOrder(mixing=True)), x, 0)
