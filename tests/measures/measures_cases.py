"""Small networks with data, the measures by what they need, and quantities of a network by brute force."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from genlib.measures import CATALOGUE

ALONG = {"transitions", "local_complexity", "mixup_response"}  # counted at places drawn for the data
DRAWN = {name for name in CATALOGUE if name.startswith(("flatness", "pac_bayes", "rescaled"))} | ALONG
SEARCHED = {name for name in CATALOGUE if name.startswith("sharpness")}  # by an ascent from the weights themselves
CLIMBED = {"keskar_sharpness", "worst_case_sharpness"}  # by an ascent from a place drawn nearby
SPECTRAL = {"top_eigenvalue", "log_volume", "hessian_norm"}  # to the tolerance of Lanczos' method
OF_THE_RUN = {name for name, measure in CATALOGUE.items() if "run" in measure.needs}
WIDE = {"spectral_alpha"}  # of layers of 50 units or more
FREE = [name for name, m in CATALOGUE.items() if m.passes <= 1 and "run" not in m.needs and name not in WIDE | ALONG]
SAMPLED = {"learning_coefficient"}  # from a posterior, and refused where the weights are near no minimum
BY_CHANCE = DRAWN | SAMPLED | SEARCHED | CLIMBED | SPECTRAL | OF_THE_RUN
LOOKED_UP = [  # exact, too, for more than one pass
    name
    for name, measure in CATALOGUE.items()
    if measure.passes > 1 and name not in BY_CHANCE and "first_epoch" not in measure.needs
]


def dense(widths, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(widths):
        layer = nn.Linear(a, b, dtype=dtype)
        for parameter in layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype) * (
                0.9 if parameter.ndim == 2 else 0.2
            )
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def inputs_of(network, samples=40, seed=1):
    first = next(network.parameters())
    return torch.randn(samples, first.shape[1], generator=torch.Generator().manual_seed(seed), dtype=first.dtype)


def own_labels(network, inputs):
    """The labels that the network itself gives: every margin is positive."""
    with torch.no_grad():
        return network(inputs).argmax(-1)


def outputs_at(network, vector, inputs):
    shapes, split = {}, vector.split([p.numel() for p in network.parameters()])
    for (name, p), part in zip(network.named_parameters(), split, strict=True):
        shapes[name] = part.view_as(p)
    return torch.func.functional_call(network, shapes, (inputs,))


def loss_at(network, vector, inputs, labels):
    return F.cross_entropy(outputs_at(network, vector, inputs), labels)


def hessian(network, inputs, labels):
    w = nn.utils.parameters_to_vector(network.parameters()).detach()
    return torch.autograd.functional.hessian(lambda v: loss_at(network, v, inputs, labels), w).numpy()
