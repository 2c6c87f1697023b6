"""Networks as people bring them, data for them, and training written by hand."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from genlib import data
from genlib.train import Stop

torchs_own = pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*deprecated:FutureWarning",
    "ignore:There is a performance drop:UserWarning",
    "ignore:Full backward hook is firing:UserWarning",
)
FOUR_STEPS = {"lr": 0.1, "stop": Stop(steps=4, every=2)}
SAMPLES = 40
X = torch.rand(SAMPLES, 6, generator=torch.Generator().manual_seed(0)).double()
Y = torch.randint(3, (SAMPLES,), generator=torch.Generator().manual_seed(1))


def dataset(inputs=X, labels=Y):
    return data.Dataset(inputs, labels, inputs, labels, ("a", "b", "c"))


class Written(nn.Module):
    """Two layers, with what a forward of one's own does to the input before, and to the hidden units after."""

    def __init__(self, before=lambda self, x: x, after=lambda self, h: h):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.before, self.after = before, after

    def forward(self, x):
        return self.b(self.after(self, torch.tanh(self.a(self.before(self, x)))))


def in_training(self, x):
    return x.mul_(2) if self.training else x


def in_data(self, x):
    x.data.sub_(0.5)
    return x


class ByHand(nn.Module):
    """A normalization whose statistics are replaced, as a buffer or as a plain attribute."""

    def __init__(self, *, plain):
        super().__init__()
        if plain:
            self.mean = torch.zeros(8, dtype=torch.float64)
        else:
            self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x):
        if not self.training:
            return x - self.mean
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - x.mean(0)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c, self.h = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.c.weight = self.a.weight

    def forward(self, x):
        return self.h(torch.tanh(self.c(torch.tanh(self.a(x)))))


class Ordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.order = nn.Linear(6, 3), nn.Parameter(torch.arange(5, -1, -1), requires_grad=False)

    def forward(self, x):
        return self.a(x[:, self.order])


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 4, dtype=torch.complex128)), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(torch.fft.irfft(torch.fft.rfft(x) @ self.w, n=6))


class Listed(Written):
    """One of its layers stands in a list, where no optimizer of its parameters finds it."""

    def __init__(self):
        super().__init__(after=lambda self, h: torch.relu(self.hidden[0](h)))
        self.hidden = [nn.Linear(8, 8).double()]


class Threefold(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Called(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Bent(nn.ReLU):
    def forward(self, x):
        return torch.tanh(x)


def mlp(first=lambda layer: layer, *, layer=nn.Linear, activation=nn.Tanh):
    return nn.Sequential(first(layer(6, 8)), activation(), nn.Linear(8, 3))


def changed(change):
    """An MLP that `change` has registered something at."""
    module = mlp()
    change(module)
    return module


def deep(tie):
    module = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    tie(module)
    return module


def twice():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, 3))


def doubled(gradients):
    return tuple(None if g is None else 2 * g for g in gradients)


KINDS = {
    "plain": mlp,
    "ReLU in place first": lambda: nn.Sequential(nn.ReLU(inplace=True), *mlp()),
    "input in place": lambda: Written(lambda self, x: x.sub_(0.5).div_(0.25)),
    "input in place in training": lambda: Written(in_training),
    "input's data in place": lambda: Written(in_data),
    "BatchNorm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    "buffer replaced": lambda: nn.Sequential(nn.Linear(6, 8), ByHand(plain=False), nn.Tanh(), nn.Linear(8, 3)),
    "attribute replaced": lambda: nn.Sequential(nn.Linear(6, 8), ByHand(plain=True), nn.Tanh(), nn.Linear(8, 3)),
    "tied": Tied,
    "tied weights": lambda: deep(lambda net: setattr(net[2], "weight", net[0].weight)),
    "tied biases": lambda: deep(lambda net: setattr(net[2], "bias", net[0].bias)),
    "a layer twice": twice,
    "frozen": lambda: changed(lambda net: net[0].requires_grad_(False)),
    "whole numbers": Ordered,
    "complex": Fourier,
    "empty": lambda: changed(lambda net: net.register_parameter("empty", nn.Parameter(torch.zeros(0)))),
    "unused": lambda: changed(lambda net: net.register_parameter("unused", nn.Parameter(torch.ones(3)))),
    "listed": Listed,
    "subclass": lambda: mlp(layer=Threefold),
    "call of its own": lambda: mlp(layer=Called),
    "activation's subclass": lambda: mlp(activation=Bent),
    "forward hook": lambda: changed(lambda net: net[0].register_forward_hook(lambda m, a, o: 3 * o)),
    "forward hook at the root": lambda: changed(lambda net: net.register_forward_hook(lambda m, a, o: 3 * o)),
    "forward pre-hook": lambda: changed(lambda net: net[0].register_forward_pre_hook(lambda m, a: (2 * a[0],))),
    "backward hook": lambda: changed(lambda net: net[0].register_full_backward_hook(lambda m, i, o: doubled(i))),
    "backward pre-hook": lambda: changed(lambda net: net[0].register_full_backward_pre_hook(lambda m, o: doubled(o))),
    "weight's hook": lambda: changed(lambda net: net[0].weight.register_hook(lambda g: 2 * g)),
    "forward of the instance": lambda: changed(
        lambda net: setattr(net, "forward", types.MethodType(lambda self, x: 2 * self[2](torch.tanh(self[0](x))), net))
    ),
    "pruned": lambda: mlp(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "old weight_norm": lambda: mlp(nn.utils.weight_norm),
    "old spectral_norm": lambda: mlp(nn.utils.spectral_norm),
    "weight_norm": lambda: mlp(parametrizations.weight_norm),
    "spectral_norm": lambda: mlp(parametrizations.spectral_norm),
    "orthogonal": lambda: mlp(parametrizations.orthogonal),
    "DataParallel": lambda: nn.DataParallel(mlp()),
    "a part in DataParallel": lambda: mlp(nn.DataParallel),
}


def build(kind, seed):
    torch.manual_seed(seed)
    return KINDS[kind]().double()


def orders(batch_size, seed):
    """What `fit` promises: a new permutation from its seed each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.arange(SAMPLES) if batch_size is None else torch.randperm(SAMPLES, generator=generator)
        yield from order.split(batch_size or SAMPLES)


def by_hand(module, *, steps, batch_size, seed, rho=None):
    """Plain SGD, or SAM by its definition, on the module itself; every batch is a copy."""
    params = [p for p in module.train().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    for _, index in zip(range(steps), orders(batch_size, seed), strict=False):
        gradients = backward(module, X[index].clone(), Y[index], params)
        if rho is not None:
            state = [(part, dict(part._buffers), dict(vars(part))) for part in module.modules()]
            counted = [buffer.clone() for buffer in module.buffers()]
            buffers, old = list(module.buffers()), [p.detach().clone() for p in params]
            norm = torch.stack([g.abs().square().sum() for g in gradients if g is not None]).sum().sqrt()
            with torch.no_grad():
                for p, g in zip(params, gradients, strict=True):
                    p.add_(0 if g is None else rho * g / norm)
            backward(module, X[index].clone(), Y[index], params)
            with torch.no_grad():
                for tensor, value in [*zip(params, old, strict=True), *zip(buffers, counted, strict=True)]:
                    tensor.copy_(value)
            for part, held, attributes in state:
                part._buffers.update(held)
                vars(part).update(attributes)
        optimizer.step()
    return module.eval()


def backward(module, x, y, params):
    for p in params:
        p.grad = None
    F.cross_entropy(module(x), y).backward()
    return [None if p.grad is None else p.grad.clone() for p in params]


@torch.no_grad()
def apart(one, other):
    """The largest difference of two networks' parameters, buffers and outputs."""
    pairs = zip([*one.parameters(), *one.buffers()], [*other.parameters(), *other.buffers()], strict=True)
    pairs = [*pairs, (one(X.clone()), other(X.clone()))]
    return max((a.detach() - b.detach()).abs().max().item() for a, b in pairs if a.numel())
