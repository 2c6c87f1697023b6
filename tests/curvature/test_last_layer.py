"""Relative flatness in closed form, against its definition by the full Hessian."""

import copy

import pytest
import torch
from cases import Untraceable
from curvature_cases import PIECEWISE_LINEAR, SMOOTH, Shared, Tied, full, made
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genlib import models
from genlib.curvature import relative_flatness
from genlib.network import Network


def by_definition(module, inputs, labels):
    """Σ_ss' ⟨w_s, w_s'⟩ tr H_ss', of the last weight."""
    names = dict(module.named_parameters())
    last = [name for name, p in names.items() if p.dim() == 2][-1]
    before = 0
    for name, p in names.items():
        if name == last:
            break
        before += p.numel()
    w = names[last].detach()
    block = full(module, inputs, labels)[before : before + w.numel(), before : before + w.numel()]
    traces = block.view(*w.shape, *w.shape).diagonal(dim1=1, dim2=3).sum(-1)
    return (w @ w.T * traces).sum()


@pytest.mark.parametrize("name", [*PIECEWISE_LINEAR, "tanh", "layer norm"])
def test_it_is_what_is_defined(name):
    module, inputs, labels = {**PIECEWISE_LINEAR, **SMOOTH}[name]()
    found = relative_flatness(module, inputs)
    torch.testing.assert_close(found, by_definition(module, inputs, labels))
    torch.testing.assert_close(relative_flatness(module, inputs, chunk_size=3), found)
    single = relative_flatness(copy.deepcopy(module).float(), inputs.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=0)


@given(
    seed=st.integers(0, 2**16),
    widths=st.lists(st.integers(1, 6), max_size=3),
    classes=st.integers(1, 4),
    bias=st.booleans(),
    factor=st.floats(0.1, 10),
)
@settings(max_examples=25)
def test_random_networks_and_a_layer_times_a_constant(seed, widths, classes, bias, factor):
    def build():
        sizes = [4, *widths]
        hidden = [part for a, b in zip(sizes, widths, strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], classes, bias=bias))

    module, inputs, labels = made(build, (4,), seed=seed, classes=max(2, classes))
    found = relative_flatness(module, inputs)
    torch.testing.assert_close(found, by_definition(module, inputs, labels))
    if widths:
        with torch.no_grad():
            module[-1].weight.div_(factor)
            for p in module[-3].parameters():
                p.mul_(factor)
        torch.testing.assert_close(relative_flatness(module, inputs), found)


def test_nothing_cancels_where_a_class_is_nearly_certain():
    module, inputs, labels = PIECEWISE_LINEAR["dense"]()
    with torch.no_grad():
        module[-1].weight.mul_(100)
    single = relative_flatness(copy.deepcopy(module).float(), inputs.float())
    found = relative_flatness(module, inputs)
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=0)
    torch.testing.assert_close(found, by_definition(module, inputs, labels), rtol=1e-6, atol=0)


def test_a_stack_has_each_models_own():
    built = [PIECEWISE_LINEAR["one output"](seed) for seed in range(3)]
    modules, inputs = [module for module, _, _ in built], built[0][1]
    found = relative_flatness(Network.stack(modules), inputs)
    torch.testing.assert_close(found, torch.stack([relative_flatness(module, inputs) for module in modules]))


def test_a_network_that_cannot_be_traced_is_measured():
    module, inputs, labels = made(lambda: Untraceable(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), (4,))
    torch.testing.assert_close(relative_flatness(module, inputs), by_definition(module, inputs, labels))


class Cooled(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


class Hot(nn.Module):
    """Its logits are not those of its head."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x) / 2


class Recalled(nn.Module):
    """Its head's weight takes part twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(torch.relu(nn.functional.linear(x, self.head.weight)))


@pytest.mark.parametrize(
    "build",
    [
        Hot,
        Recalled,
        lambda: nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)),
        lambda: nn.Sequential(Cooled(4, 3)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 3, 1), nn.Flatten()),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:network")
def test_another_end_than_a_dense_layer_is_refused(build):
    module, inputs, _ = made(build, (4,))
    with pytest.raises(ValueError, match=r"^network: its outputs aren't those of a dense layer"):
        relative_flatness(module, inputs)


@pytest.mark.parametrize("build", [Tied, Shared])
def test_tied_layers_before_the_last_do_not_matter(build):
    module, inputs, labels = made(build, (4,))
    torch.testing.assert_close(relative_flatness(module, inputs), by_definition(module, inputs, labels))


def test_a_network_of_one_layer_alone():
    module, inputs, labels = made(lambda: models.mlp(4, 3, width=5, depth=0), (4,))
    torch.testing.assert_close(relative_flatness(module, inputs), by_definition(module, inputs, labels))
