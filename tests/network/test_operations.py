"""What is read off the operations of a network."""

import pytest
import torch
from cases import Residual, Untraceable
from torch import nn

from genlib import models
from genlib.network import Network, operations


def test_piecewise_linear_is_read_off_the_operations():
    assert Network.of(models.mlp(12, 5, activation="relu", seed=0)).piecewise_linear
    assert Network.of(models.mlp(12, 5, activation="hardsigmoid", seed=0)).piecewise_linear
    assert not Network.of(models.mlp(12, 5, activation="tanh", seed=0)).piecewise_linear
    residual = Residual()
    assert Network.of(residual.eval()).piecewise_linear
    assert not Network.of(residual.train()).piecewise_linear
    assert not Network.of(Untraceable(nn.Linear(4, 3))).piecewise_linear


def test_an_unknown_operation_is_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.erf(x)

    with pytest.raises(ValueError, match="operations erf are unknown"):
        Network.of(nn.Sequential(nn.Linear(3, 3), Odd())).require_known()
    with pytest.raises(ValueError, match=r"torch\.fx can't trace"):
        Network.of(Untraceable(nn.Linear(4, 3))).require_known()
    Network.of(Residual().eval()).require_known()


@pytest.mark.parametrize("letters", ["", "l", "lrfd", "lil", "bm", "tl", "s", "ls", "p", "llr"])
def test_layers_in_a_row_have_the_graph_that_tracing_finds(letters, monkeypatch):
    made = {
        **{"l": lambda: nn.Linear(4, 4), "r": nn.ReLU, "i": lambda: nn.ReLU(inplace=True), "f": nn.Flatten},
        **{"d": nn.Dropout, "b": lambda: nn.BatchNorm1d(4), "m": lambda: nn.MaxPool1d(2, return_indices=True)},
        **{"t": lambda: nn.TransformerEncoderLayer(4, 2), "s": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh())},
        "p": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    }
    layers = [made[letter]() for letter in letters]
    for module in (nn.Sequential(*layers), nn.Sequential(*layers, *layers[:1])):
        found = operations.traced(module)
        with monkeypatch.context() as patched:
            patched.setattr(operations, "row", lambda *_: None)
            expected = operations.traced(module)
        for one, other in zip(found.nodes, expected.nodes, strict=True):
            assert one.format_node() == other.format_node()
            assert (one.op, one.name, one.target) == (other.op, other.name, other.target)
