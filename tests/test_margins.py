import copy

import numpy as np
import pytest
import torch
from cases import Residual, Untraceable, rescaled, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genlib import margins, models, norms
from genlib.network import Network


def case(name, seed=0):
    torch.manual_seed(seed)
    module = {
        "dense": lambda: models.mlp(5, 4, width=7, depth=2, seed=seed),
        "residual": lambda: Residual().eval(),
        "untraceable": lambda: Untraceable(nn.Linear(4, 3)),
    }[name]()
    shape = {"dense": (5,), "residual": (3, 4, 4), "untraceable": (4,)}[name]
    return module, torch.randn(9, *shape), torch.randint(3, (9,))


NAMES = ["dense", "residual", "untraceable"]


def by_hand(logits, label):
    return logits[label] - max(logits[k] for k in range(len(logits)) if k != label)


@pytest.mark.parametrize("name", NAMES)
def test_output_margins_are_the_label_against_its_strongest_rival(name):
    module, inputs, labels = case(name)
    logits = module(inputs).detach()
    expected = torch.stack([by_hand(row, label) for row, label in zip(logits, labels.tolist(), strict=True)])
    for chunk_size in (1024, 4):
        torch.testing.assert_close(margins.output_margins(module, inputs, labels, chunk_size=chunk_size), expected)
    right = logits.argmax(1) == labels
    assert torch.equal(margins.output_margins(module, inputs, labels) > 0, right)


def gradient_norm(rest, activation, label):
    """‖∂m/∂h‖ by central differences, coordinate by coordinate, in float64."""
    flat, step = activation.flatten(), 1e-6
    moved = flat + step * torch.cat([torch.eye(len(flat)), -torch.eye(len(flat))]).double()
    with torch.no_grad():
        m = torch.stack([by_hand(row, label) for row in rest(moved.view(-1, *activation.shape))])
    up, down = m.chunk(2)
    return ((up - down) / (2 * step)).norm()


def test_layer_margins_by_finite_differences():
    module, inputs, labels = case("residual")
    module, inputs = module.double(), inputs.double()
    with torch.no_grad():
        hidden = torch.relu(module.first(inputs))
        pooled = torch.relu(hidden + module.norm(module.second(hidden))).mean((2, 3))
    stages = [
        (inputs, module),
        (hidden, lambda h: module.head(torch.relu(h + module.norm(module.second(h))).mean((2, 3)))),
        (pooled, module.head),
    ]
    output = margins.output_margins(module, inputs, labels)
    measured = margins.layer_margins(module, inputs, labels)
    assert measured.shape == (3, 9)
    for row, (activations, rest) in zip(measured, stages, strict=True):
        norm = torch.stack([gradient_norm(rest, h, y) for h, y in zip(activations, labels.tolist(), strict=True)])
        torch.testing.assert_close(row, output / norm, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_layer_margins_in_chunks_and_one_backward_pass_for_all(name):
    module, inputs, labels = case(name)
    calls = []
    linear = next(part for part in module.modules() if isinstance(part, nn.Linear))
    linear.register_full_backward_hook(lambda *_: calls.append("backward"))
    whole = margins.layer_margins(module, inputs, labels)
    assert len(calls) == 1 + 4  # two along the inputs and two of single samples, over the few that are looked at
    torch.testing.assert_close(margins.layer_margins(module, inputs, labels, chunk_size=4), whole)


def test_of_a_linear_network_the_margin_is_the_distance_to_the_boundary():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    measured = margins.layer_margins(layer, torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0]))
    assert measured.tolist() == [[1.0]]


def test_no_gradient_gives_an_infinite_margin_and_never_nan():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        module[0].bias.fill_(-100)
        module[2].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    first, second = margins.layer_margins(module, torch.zeros(2, 2), torch.tensor([0, 1]))
    assert first.tolist() == [torch.inf, -torch.inf]
    assert second.isfinite().all()
    nn.init.zeros_(module[2].bias)
    assert margins.layer_margins(module, torch.zeros(1, 2), torch.tensor([0]))[0].tolist() == [0.0]


@settings(max_examples=25)
@given(seed=st.integers(0, 99), c=st.floats(0.1, 10))
def test_margins_scale_and_rescaled_units_keep_them(seed, c):
    module, inputs, labels = case("dense", seed)
    output, layers = margins.output_margins(module, inputs, labels), margins.layer_margins(module, inputs, labels)
    other = rescaled(module, [torch.full((7,), c)])
    torch.testing.assert_close(margins.output_margins(other, inputs, labels), output, rtol=1e-3, atol=1e-5)
    moved = margins.layer_margins(other, inputs, labels)
    factors = torch.tensor([1.0, c, 1.0])[:, None]
    torch.testing.assert_close(moved, layers * factors, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        module[5].weight.mul_(c)
        module[5].bias.mul_(c)
    torch.testing.assert_close(margins.output_margins(module, inputs, labels), c * output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(margins.layer_margins(module, inputs, labels), layers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "residual"])
@pytest.mark.parametrize("measure", [margins.output_margins, margins.layer_margins, margins.input_margins])
def test_a_stack_gives_one_value_a_model(name, measure):
    modules = [case(name, seed)[0] for seed in range(3)]
    _, inputs, labels = case(name)
    each = torch.stack([measure(module, inputs, labels) for module in modules])
    torch.testing.assert_close(measure(Network.stack(modules), inputs, labels), each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("measure", [margins.output_margins, margins.layer_margins, margins.input_margins])
def test_everything_is_left_as_it_was(name, measure):
    module, inputs, labels = case(name)
    with unchanged(module, inputs), torch.no_grad():
        first = measure(module, inputs, labels)
        assert torch.equal(first, measure(Network.of(module), inputs, labels.to(torch.int32)))
    assert not first.requires_grad
    assert measure(copy.deepcopy(module).double(), inputs.double(), labels).dtype == torch.float64
    half = copy.deepcopy(module).to(torch.bfloat16)
    upcast = measure(copy.deepcopy(half).float(), inputs, labels)
    torch.testing.assert_close(measure(half, inputs, labels), upcast)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20), st.sampled_from([0, 5, 10, 37.5, 100]))
def test_percentiles_are_numpys(values, percent):
    measured = margins.margin_percentile(torch.tensor([values, values]), percent)
    expected = np.percentile(np.array(values), percent)
    np.testing.assert_allclose(measured.numpy(), [expected, expected], rtol=1e-5, atol=1e-6)


def test_percentiles_of_infinite_margins():
    some = torch.tensor([torch.inf, -torch.inf, 1.0, torch.inf, -torch.inf])
    assert [margins.margin_percentile(some, p).item() for p in (0, 10, 40, 50, 60, 100)] == [
        *(-torch.inf, -torch.inf, -torch.inf, 1.0, torch.inf, torch.inf)
    ]


def test_a_negative_percentile_is_shown_and_refused_as_a_divisor():
    module, inputs, _ = case("dense")
    wrong = (module(inputs).argmax(1) + 1) % 4
    lowest = margins.margin_percentile(margins.output_margins(module, inputs, wrong), 10)
    assert lowest < 0
    with pytest.raises(ValueError, match=r"margin is -.*misclassified.*train further, or take a higher percentile"):
        margins.require_positive(lowest)
    assert margins.require_positive(torch.tensor(0.5)) == 0.5
    with pytest.raises(ValueError, match="margin is nan"):
        margins.require_positive(torch.tensor(torch.nan))


def test_normalized_margins_are_bartletts_and_do_not_see_the_scale_of_a_layer():
    start, (module, inputs, labels) = case("dense", 1)[0], case("dense")
    measured = margins.normalized_margins(module, start, inputs, labels)
    complexity = norms.spectral_complexity(module, start, input_shape=(5,))
    expected = margins.output_margins(module, inputs, labels) / (complexity * inputs.norm() / 9)
    torch.testing.assert_close(measured, expected.float(), rtol=1e-4, atol=0)
    with torch.no_grad():
        for network in (module, start):
            network[5].weight.mul_(7)
            network[5].bias.mul_(7)
    torch.testing.assert_close(margins.normalized_margins(module, start, inputs, labels), measured, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="initial equals network"):
        margins.normalized_margins(module, module, inputs, labels)


REFUSED = {
    "training mode": (Residual(), torch.ones(2, 3, 4, 4), torch.tensor([0, 1]), "BatchNorm in training mode"),
    "empty": (nn.Linear(3, 2), torch.ones(0, 3), torch.tensor([], dtype=torch.int64), "inputs is empty"),
    "labels of another length": (nn.Linear(3, 2), torch.ones(4, 3), torch.tensor([0, 1]), "labels has the shape"),
    "one-hot labels": (nn.Linear(3, 2), torch.ones(4, 3), torch.ones(4, 2), "whole numbers"),
    "a label too large": (nn.Linear(3, 2), torch.ones(2, 3), torch.tensor([0, 2]), "labels has values outside 0 … 1"),
    "a negative label": (nn.Linear(3, 2), torch.ones(2, 3), torch.tensor([0, -1]), "labels has values outside 0 … 1"),
    "one output, three classes": (nn.Linear(3, 1), torch.ones(2, 3), torch.tensor([0, 2]), "other than 0 and 1"),
    "not a number": (nn.Linear(3, 2), torch.full((2, 3), torch.nan), torch.tensor([0, 1]), "not finite"),
}


@pytest.mark.parametrize("measure", [margins.output_margins, margins.layer_margins, margins.input_margins])
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name, measure):
    module, inputs, labels, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        measure(module, inputs, labels)


def test_a_network_without_layers_and_other_bad_options_are_refused():
    module, inputs, labels = case("dense")
    with pytest.raises(ValueError, match="no dense or convolution layer"):
        margins.layer_margins(nn.ReLU(), inputs, labels)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        margins.output_margins(module, inputs, labels, chunk_size=0)
    with pytest.raises(ValueError, match="margins is empty"):
        margins.margin_percentile(torch.ones(0))
    with pytest.raises(ValueError, match="percent is 101"):
        margins.margin_percentile(torch.ones(3), 101)


class Before(nn.Module):
    """Something between the input and the first layer."""

    def __init__(self, before):
        super().__init__()
        self.before, self.layers = before, nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(self.before(x).flatten(1))


BEFORE = {
    "nothing": nn.Identity(),
    "a multiple": lambda x: 3 * x,
    "a norm": lambda x: nn.functional.normalize(x, dim=1),
    "BatchNorm": nn.BatchNorm1d(6),
    "padding": nn.ConstantPad1d((1, 0), 0.5),
    "a part": lambda x: x[:, :6],
    "in place": lambda x: x.mul_(0.3),
    "attention": lambda x: x.unflatten(1, (3, 2)).softmax(1),
}


@pytest.mark.parametrize("name", BEFORE)
def test_input_margins_are_in_the_space_of_the_input(name):
    torch.manual_seed(0)
    module = Before(BEFORE[name]).double().eval()
    if name == "BatchNorm":
        module.before.running_var.fill_(0.04)
    inputs = torch.randn(9, 5 if name == "padding" else 6, dtype=torch.float64)
    labels = torch.randint(3, (9,))
    output = margins.output_margins(module, inputs, labels)
    norm = torch.stack([gradient_norm(module, x, y) for x, y in zip(inputs, labels.tolist(), strict=True)])
    torch.testing.assert_close(margins.input_margins(module, inputs, labels), output / norm, rtol=1e-5, atol=0)
    stack = Network.stack([module, module])
    torch.testing.assert_close(margins.input_margins(stack, inputs, labels)[1], output / norm, rtol=1e-5, atol=0)


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.each(x.transpose(0, 1))).mean(0))


class Merged(TimeFirst):
    def forward(self, x):
        return self.head(torch.tanh(self.each(x.reshape(-1, 4))).view(len(x), -1, 5).mean(1))


@pytest.mark.parametrize("kind", [TimeFirst, Merged])
@pytest.mark.parametrize("samples", [3, 5, 2])
def test_layers_with_other_rows_than_samples_have_no_margins(kind, samples):
    module, inputs, labels = kind(), torch.randn(samples, 3, 4), torch.randint(3, (samples,))
    with pytest.raises(ValueError, match=r"^network: each sees other rows than one for each sample"):
        margins.layer_margins(module, inputs, labels)
    assert margins.input_margins(module, inputs, labels).shape == (samples,)


def test_whole_numbers_have_margins_at_layers_and_none_at_the_input():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    inputs, labels = torch.randint(5, (7, 3)), torch.randint(3, (7,))
    hidden = module[0](inputs).flatten(1).detach()
    expected = margins.input_margins(module[2], hidden, labels)
    torch.testing.assert_close(margins.layer_margins(module, inputs, labels)[0], expected)
    with pytest.raises(ValueError, match=r"^inputs is of torch.int64; .*make them float"):
        margins.input_margins(module, inputs, labels)
