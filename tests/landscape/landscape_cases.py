"""The loss of copies of a network that are blended or moved by hand."""

import copy

import torch
import torch.nn.functional as F


def cross_entropy(module, inputs, labels):
    with torch.no_grad():
        return F.cross_entropy(module(inputs), labels)


def blended(modules, shares):
    """A copy whose every tensor of floats, BatchNorm's statistics too, is Σ share × that of the module."""
    blend = copy.deepcopy(modules[0])
    states = [module.state_dict() for module in modules]
    with torch.no_grad():
        for name, tensor in blend.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(sum(share * state[name] for share, state in zip(shares, states, strict=True)))
    return blend


def moved(module, direction, by=1.0):
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, w in module.named_parameters():
            w += by * direction[name]
    return module
