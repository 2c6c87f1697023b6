"""Networks whose units bend within the range of their inputs."""

import torch
import torch.nn.functional as F
from cases import drawn
from torch import nn

from genlib import models

PIECEWISE = ("relu", "relu6", "hardtanh", "hardsigmoid")
OUTPUTS = {
    "logits": lambda f: f,
    "probabilities": lambda f: f.softmax(-1),
    "cross_entropy": lambda f: f.softmax(-1).detach().sqrt() * (f - (f.softmax(-1).detach() * f).sum(-1, keepdim=True)),
}


class Functional(nn.Module):
    """Activations as functions and methods, at odd places, some of them in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv1d(2, 3, 3, padding=1),
            nn.Conv1d(3, 3, 3, padding=1),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        x = F.hardtanh(self.first(x), -0.3, max_val=0.4)
        x = x + self.second(x).clamp(min=-0.2).relu_()
        x = F.max_pool1d(F.leaky_relu(input=x, negative_slope=0.2), 2, stride=2)
        return self.head(abs_(x).flatten(1))


def abs_(x):
    return x.abs().clamp(0.05, 0.9)


def convolutional(seed=0):
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3)]
    return drawn(nn.Sequential(*layers, nn.Hardtanh(-0.5, 0.7), nn.AdaptiveMaxPool2d(1), nn.Flatten()).double(), seed)


def dense(seed=0, width=7, depth=3, activation="relu"):
    """A network whose units bend within the range of standard normal inputs."""
    module = models.mlp(3, 4, width=width, depth=depth, activation=activation, initialization="he", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in module:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.bias, generator=generator)
            layer.weight.data *= 2
    return module.double()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
