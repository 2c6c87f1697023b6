"""The variance of the samples' gradients, against every sample's own gradient."""

import pytest
import torch
from cases import CASES, Untraceable, dense, permuted, unchanged
from curvature_cases import PIECEWISE_LINEAR, SMOOTH, Merged, cross_entropy, made
from torch import nn
from torch.nn.utils import parametrizations, prune

from genlib.curvature import gradient_variance, top_eigenvalues, trace
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


class Named(nn.Module):
    """Two dense layers, and what a forward pass makes of them."""

    def __init__(self, forward, layer=nn.Linear):
        super().__init__()
        self.a, self.b, self.unused, self.passes = layer(6, 5), nn.Linear(5, 3), nn.Linear(2, 2), forward

    def forward(self, x):
        return self.passes(self, x)


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


def hooked(hook):
    network = Named(lambda m, x: m.b(torch.relu(m.a(x))))
    hook(network)
    return network


IDIOMS = {
    "a hook": lambda: hooked(lambda n: n.a.register_forward_hook(lambda m, x, y: 3 * y)),
    "a hook before": lambda: hooked(lambda n: n.b.register_forward_pre_hook(lambda m, x: (2 * x[0],))),
    "another forward": lambda: hooked(lambda n: setattr(n.a, "forward", lambda x, a=n.a: x @ a.weight.T)),
    "a subclass": lambda: Named(lambda m, x: m.b(torch.relu(m.a(x))), Halved),
    "parametrized": lambda: hooked(lambda n: parametrizations.weight_norm(n.a)),
    "orthogonal": lambda: hooked(lambda n: parametrizations.orthogonal(n.a)),
    "pruned": lambda: hooked(lambda n: prune.random_unstructured(n.a, "weight", amount=0.4)),
    "by keyword": lambda: Named(lambda m, x: m.b(input=torch.relu(m.a(input=x)))),
    "unused output": lambda: Named(lambda m, x: [m.a(x), m.b(x[:, :5])][1]),
    "time first": lambda: Named(lambda m, x: m.b(torch.relu(m.a(x.unflatten(0, (1, -1)))).squeeze(0))),
    "batch as an image": lambda: Named(lambda m, x: m.b(torch.relu(m.a(x.T.reshape(6, -1).T)))),
    "by its weight": lambda: Named(lambda m, x: m.b(torch.relu(nn.functional.linear(x, m.a.weight)))),
    "weight again": lambda: Named(lambda m, x: m.b(torch.relu(m.a(x)) + x @ m.a.weight.T)),
    "scripted": lambda: nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.ReLU())), nn.Linear(5, 3)),
    "encoder": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)),
        nn.TransformerEncoderLayer(2, 1, 4, batch_first=True).eval(),
        nn.Flatten(),
        nn.Linear(6, 3),
    ),
    "looks at values": lambda: Named(lambda m, x: m.b(torch.relu(m.a(x)) if x.sum() > -1e9 else m.a(x))),
    "counts": lambda: Named(lambda m, x: (setattr(m, "calls", getattr(m, "calls", 0) + 1), m.b(m.a(x).tanh()))[1]),
    "written over": lambda: Named(lambda m, x: (lambda y: m.b(y.relu_()) + y[:, :3])(m.a(x))),
}


@pytest.mark.parametrize("name", IDIOMS)
@pytest.mark.filterwarnings("ignore:.*jit.script.* is deprecated")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_idioms_of_other_people_have_their_gradients_and_their_trace(name):
    torch.manual_seed(0)
    module = IDIOMS[name]().double()
    for p in module.parameters():  # some start where they have no derivative
        p.data += 0.1 * torch.randn_like(p)
    inputs, labels = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))
    params = [p for p in module.parameters() if p.requires_grad]
    rows = []
    for i in range(7):
        loss = nn.functional.cross_entropy(module(inputs[i : i + 1]), labels[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, materialize_grads=True)]))
    rows = torch.stack(rows)
    variance = (rows - rows.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(gradient_variance(module, inputs, labels), variance, rtol=1e-9, atol=1e-12)
    top = top_eigenvalues(module, inputs, labels, 1, tolerance=1e-9)
    whole = trace(module, inputs, labels, vectors=3 * sum(p.numel() for p in params))
    spectrum = torch.linalg.eigvalsh(differences(module, inputs, labels))
    torch.testing.assert_close(top.values[0], spectrum[-1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(whole.value, spectrum.sum(), rtol=1e-5, atol=1e-7)


def differences(module, inputs, labels, step=1e-5):
    """The Hessian by central differences of the gradient, the weights moved where they lie."""
    params = list(module.parameters())

    def gradient():
        loss = nn.functional.cross_entropy(module(inputs), labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, materialize_grads=True)])

    rows = []
    for p in params:
        for i in range(p.numel()):
            sides = []
            for move in (step, -2 * step):
                p.data.view(-1)[i] += move
                sides.append(gradient())
            p.data.view(-1)[i] += step
            rows.append((sides[0] - sides[1]) / (2 * step))
    return torch.stack(rows)
