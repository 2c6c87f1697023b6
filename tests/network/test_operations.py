"""What is read off the operations of a network."""

import pytest
import torch
from cases import Residual, Untraceable
from torch import nn

from genlib import models
from genlib.network import Network


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
