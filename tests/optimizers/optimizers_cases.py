"""The gradients of SAM and 1-SAM by their definition, a sample at a time."""

import copy
import dataclasses

import torch
from torch import nn


def double(dataset):
    return dataclasses.replace(dataset, inputs=dataset.inputs.double(), test_inputs=dataset.test_inputs.double())


def loss_of(name):
    """The mean loss, of one output with labels 0 and 1 as -1 and 1."""

    def mse(logits, labels):
        return (logits.squeeze(1) - (2 * labels - 1)).square().mean()

    def logistic(logits, labels):
        return nn.functional.softplus((1 - 2 * labels) * logits.squeeze(1)).mean()

    def of_classes(logits, labels):
        return (logits - nn.functional.one_hot(labels, logits.shape[1])).square().mean()

    def chosen(logits, labels):
        if name == "cross_entropy":
            return (nn.functional.cross_entropy if logits.shape[1] > 1 else logistic)(logits, labels)
        return (of_classes if logits.shape[1] > 1 else mse)(logits, labels)

    return chosen


def gradient(module, inputs, labels, loss):
    return torch.autograd.grad(loss(module(inputs), labels), list(module.parameters()))


def sam_gradient(module, inputs, labels, rho, loss, *, adaptive=False):
    """The definition, on a copy."""
    there = copy.deepcopy(module)
    g = gradient(module, inputs, labels, loss)
    t = [p.detach().abs() if adaptive else torch.ones_like(p) for p in module.parameters()]
    norm = torch.cat([(a * b).flatten() for a, b in zip(t, g, strict=True)]).norm()
    with torch.no_grad():
        for p, a, b in zip(there.parameters(), t, g, strict=True):
            p += rho * a**2 * b / norm if norm > 0 else 0
    return gradient(there, inputs, labels, loss)


def mean_one_sam_gradient(module, inputs, labels, rho, loss):
    found = [sam_gradient(module, x[None], y[None], rho, loss) for x, y in zip(inputs, labels, strict=True)]
    return [torch.stack(parts).mean(0) for parts in zip(*found, strict=True)]
