"""Small networks, data and checks that the tests of several modules share."""

import copy
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from genlib import models
from genlib.measures import CATALOGUE

WHOLE = {name: row for name, row in CATALOGUE.items() if name != "learning_coefficient"}  # which takes seconds


class Residual(nn.Module):
    """A convolution, a second one with BatchNorm around which the image skips, pooling and a dense layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Linear(3, 4)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = torch.relu(x + self.norm(self.second(x)))
        return self.head(x.mean((2, 3)))


class Untraceable(nn.Module):
    """Layers one after the other, behind a condition that torch.fx can't follow."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x) if float(x.detach().sum()) > -1e30 else x


def drawn(module, seed=0):
    """The module in evaluation mode, BatchNorm with statistics and weights that are no defaults."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.3, 2, generator=generator)
            if part.affine:
                nn.init.normal_(part.weight, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
        elif isinstance(part, nn.Linear | nn.modules.conv._ConvNd):
            nn.init.normal_(part.weight, 0, 0.4, generator=generator)
            if part.bias is not None:
                nn.init.normal_(part.bias, 0, 0.4, generator=generator)
    return module.eval()


def dense(seed=0, **options):
    return models.mlp(5, 4, **{"width": 6, "depth": 2, "initialization": "he", **options}, seed=seed).double()


def residual(seed=0):
    return drawn(Residual().double(), seed)


def wide(seed=0, **options):
    return dense(seed, **{"width": 16, **options})


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4)).double()


def data(seed=0, samples=12, shape=(5,)):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(4, (samples,), generator=generator)


def labelled(seed=0, samples=200):
    """Inputs, and the labels that a first network gives them."""
    inputs, _ = data(seed, samples)
    return inputs, wide(seed)(inputs).argmax(-1)


def first_logit(logits, labels):
    """A loss that is linear in the weights of a linear network."""
    return logits[:, 0] - logits[:, 1] + 0 * labels


def flat(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach()


LOOKS = 4  # forward passes before a measurement: three at the door, over a few samples, and one to see the classes

CASES = {
    "dense": lambda seed=0: (dense(seed), *data(seed)),
    "residual": lambda seed=0: (residual(seed), *data(seed, shape=(3, 4, 4))),
}


def dense_layers(network):
    return [layer for layer in network if isinstance(layer, nn.Linear)]


def rescaled(network, factors):
    """The same function, unit j of each hidden layer times factors[layer][j] on the way in, and over it on the way out.

    Fewer factors than hidden layers leave the last ones alone.
    """
    network = copy.deepcopy(network)
    layers = dense_layers(network)
    with torch.no_grad():
        for layer, following, c in zip(layers, layers[1:], factors, strict=False):
            layer.weight.mul_(c[:, None])
            layer.bias.mul_(c)
            following.weight.div_(c)
    return network


def permuted(network, order):
    """The same function, the units of the first hidden layer in another order."""
    network, order = copy.deepcopy(network), torch.as_tensor(order)
    first, second = dense_layers(network)[:2]
    first.weight.data, first.bias.data = first.weight.data[order], first.bias.data[order]
    second.weight.data = second.weight.data[:, order]
    return network


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: a scalar read, or a result whose shape hangs on the values."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        boolean = name in ("index", "index_put_") and any(
            t is not None and t.dtype == torch.bool for t in args[1] if isinstance(t, torch.Tensor)
        )
        self.count += boolean or name in self.READS
        return func(*args, **(kwargs or {}))


@contextmanager
def unchanged(module, *tensors):
    """What runs inside leaves the module, its gradients, mode and hooks, the random state and the tensors alone."""
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    before, kept, state = copy.deepcopy(module.state_dict()), [t.clone() for t in tensors], torch.get_rng_state()
    modes = [part.training for part in module.modules()]
    yield
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(tensors, kept, strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in module.parameters())
    assert modes == [part.training for part in module.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
