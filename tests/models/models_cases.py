"""The cube, and the number of parameters."""

import torch
from torch.func import functional_call, jacrev


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def cube(samples=9, dimension=5, seed=1):
    return 2.0 * torch.randint(2, (samples, dimension), generator=torch.Generator().manual_seed(seed)).double() - 1


def full_trace(network, inputs, targets):
    """tr ∇² of the mean squared error, by all second derivatives."""
    params = {name: p.detach() for name, p in network.named_parameters()}
    second = jacrev(jacrev(lambda p: (functional_call(network, p, (inputs,))[:, 0] - targets).square().mean()))(params)
    return sum(second[name][name].reshape(p.numel(), -1).trace() for name, p in params.items())
