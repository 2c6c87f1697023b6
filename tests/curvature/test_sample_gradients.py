"""The variance of the samples' gradients, against every sample's own gradient."""

import pytest
import torch
from cases import CASES, Untraceable, dense, permuted, unchanged
from curvature_cases import PIECEWISE_LINEAR, SMOOTH, Merged, cross_entropy, made
from torch import nn

from genlib.curvature import gradient_variance
from genlib.network import Network

MERGED = {"merged rows": lambda: made(Merged, (4,))}
UNTRACEABLE = {"untraceable": lambda: made(lambda: Untraceable(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,))}
BUILT = PIECEWISE_LINEAR | SMOOTH | MERGED | UNTRACEABLE


def one_by_one(module, inputs, labels, loss):
    """The gradient of each sample's loss, [samples, parameters]."""
    rows = []
    for x, y in zip(inputs.split(1), labels.split(1), strict=True):
        gradients = torch.autograd.grad(loss(module(x), y), list(module.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


@pytest.mark.parametrize("name", BUILT)
def test_it_is_that_of_every_samples_own_gradient(name):
    module, inputs, labels = BUILT[name]()
    expected = one_by_one(module, inputs, labels, cross_entropy).var(0, correction=0).sum()
    for chunk_size in (None, 3):
        torch.testing.assert_close(gradient_variance(module, inputs, labels, chunk_size=chunk_size), expected)


def test_a_loss_of_ones_own():
    def linear(logits, labels):
        return logits[:, 0] * (labels + 1)

    module, inputs, labels = CASES["residual"]()
    expected = one_by_one(module, inputs, labels, lambda f, y: linear(f, y).sum()).var(0, correction=0).sum()
    torch.testing.assert_close(gradient_variance(module, inputs, labels, loss=linear), expected)


def test_it_is_the_same_for_the_samples_repeated_and_zero_for_one():
    module, inputs, labels = CASES["dense"]()
    once = gradient_variance(module, inputs, labels)
    torch.testing.assert_close(gradient_variance(module, inputs.repeat(3, 1), labels.repeat(3)), once)
    assert gradient_variance(module, inputs[:1], labels[:1]) < 1e-12 * once


def test_the_order_of_hidden_units_does_not_matter():
    module, inputs, labels = CASES["dense"]()
    once = gradient_variance(module, inputs, labels)
    torch.testing.assert_close(gradient_variance(permuted(module, [5, 0, 3, 1, 2, 4]), inputs, labels), once)


@pytest.mark.parametrize("name", CASES)
def test_a_stack_gives_each_networks_own(name):
    modules, inputs, labels = zip(*(CASES[name](seed) for seed in range(3)), strict=True)
    found = gradient_variance(Network.stack(modules), torch.stack(inputs), torch.stack(labels))
    alone = [gradient_variance(*case) for case in zip(modules, inputs, labels, strict=True)]
    torch.testing.assert_close(found, torch.stack(alone))


@pytest.mark.parametrize("name", ["dense", "untraceable"])
def test_nothing_is_touched(name):
    module, inputs, labels = BUILT[name]()
    with unchanged(module, inputs):
        assert not gradient_variance(module, inputs, labels).requires_grad


def test_refusals():
    module, inputs, labels = dense(), *CASES["dense"]()[1:]
    with pytest.raises(ValueError, match=r"^loss is 'error'"):
        gradient_variance(module, inputs, labels, loss="error")
    with pytest.raises(ValueError, match="variance of gradients on these data is not finite"):
        gradient_variance(module, inputs * torch.inf, labels)
