"""A residual block with BatchNorm, and the matrix of an affine layer."""

import copy
import math

import torch
from torch import nn


def dense(layer, shape):
    """The matrix of an affine layer, from all unit images, in float64."""
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
        return (layer(units) - layer(torch.zeros_like(units[:1]))).flatten(1).T


class Block(nn.Module):
    """conv - norm - relu - conv - norm, plus the input; then a norm of its own, pooling and a dense layer."""

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.second, self.second_norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.last_norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        y = torch.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        y += x
        return self.head(torch.relu(self.last_norm(y)).mean((2, 3)))
