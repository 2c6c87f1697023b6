"""Networks with every kind of layer, and their Hessian and Gauss-Newton matrix over all parameters by autograd."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

from genlib import models
from genlib.curvature.products import Operator


def cross_entropy(logits, labels):
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits))


def mse(logits, labels):
    targets = F.one_hot(labels, logits.shape[1]) if logits.shape[1] > 1 else torch.where(labels == 1, 1, -1)[:, None]
    return (logits - targets).square().mean()


MEANS = {"cross_entropy": cross_entropy, "mse": mse}


class Residual(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.inner = nn.BatchNorm2d(4)
        self.pool = pool
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        y = self.conv(x)
        x = self.relu(self.inner(y) + x)
        return self.head(self.pool(x).mean((2, 3)))


class Positions(nn.Module):
    """A dense layer that every position shares, then one over the sum of the positions."""

    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.relu(self.each(x)).sum(1))


class Odd(nn.Module):
    """Circular padding, dilation and one dimension, a transposed convolution, a learned slope."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=2, dilation=2, padding_mode="circular")
        self.slope = nn.PReLU(4)
        self.up = nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.one_slope = nn.PReLU()
        self.head = nn.Linear(2 * 12, 3)

    def forward(self, x):
        return self.head(self.one_slope(self.up(self.slope(self.first(x)))).flatten(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.twice(torch.relu(self.twice(x)))))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.head(torch.relu(self.other(torch.relu(self.one(x)))))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.shift = nn.Linear(4, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.head(x) + self.shift


class Merged(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(x.view(-1, 2)).view(-1, 2, 3).sum(1)


def made(build, shape, seed=0, samples=7, classes=3):
    torch.manual_seed(seed)
    module = build().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for _ in range(3):
            module(torch.randn(20, *shape).double())
    inputs = torch.randn(samples, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return module.eval(), inputs, torch.arange(samples) % classes


PIECEWISE_LINEAR = {
    "dense": lambda seed=0: made(lambda: models.mlp(5, 4, width=6, depth=2, seed=seed), (5,), seed, classes=4),
    "one output": lambda seed=0: made(lambda: models.mlp(5, 1, width=6, depth=2, seed=seed), (5,), seed, classes=2),
    "average pool": lambda seed=0: made(lambda: Residual(nn.AvgPool2d(2)), (2, 8, 8), seed),
    "max pool": lambda seed=0: made(lambda: Residual(nn.MaxPool2d(2)), (2, 8, 8), seed),
    "positions": lambda seed=0: made(Positions, (6, 3), seed, classes=4),
    "odd": lambda seed=0: made(Odd, (2, 6), seed),
    "three dimensions": lambda seed=0: made(
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2, stride=2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(16, 3)),
        (1, 4, 4, 4),
        seed,
    ),
}
SMOOTH = {
    "tanh": lambda seed=0: made(lambda: models.mlp(4, 3, width=5, activation="tanh"), (4,), seed),
    "layer norm": lambda seed=0: made(lambda: models.mlp(4, 3, width=5, normalization="layer"), (4,), seed),
    "runs twice": lambda seed=0: made(Tied, (4,), seed),
    "shared weight": lambda seed=0: made(Shared, (4,), seed),
    "outside of a layer": lambda seed=0: made(Bare, (4,), seed),
}


def blocks(module, inputs, labels, loss):
    """The trace of the full Hessian's diagonal block of each parameter."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    mean = MEANS.get(loss, loss)
    full = jacrev(jacrev(lambda p: mean(functional_call(module, p, (inputs,)), labels)))(params)
    return {name: full[name][name].reshape(p.numel(), -1).trace() for name, p in params.items()}


def by_layer(blocks):
    layers = {name.rpartition(".")[0] for name in blocks}
    return {layer: sum(v for name, v in blocks.items() if name.rpartition(".")[0] == layer) for layer in layers}


TWINS = {
    name: {**PIECEWISE_LINEAR, **SMOOTH}[name] for name in ("dense", "one output", "max pool", "tanh", "shared weight")
}


def full(module, inputs, labels, loss="cross_entropy"):
    """The Hessian over all parameters, one after the other."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    mean = MEANS.get(loss, loss)
    found = jacrev(jacrev(lambda p: mean(functional_call(module, p, (inputs,)), labels)))(params)
    rows = [[found[a][b].reshape(params[a].numel(), -1) for b in params] for a in params]
    return torch.cat([torch.cat(row, 1) for row in rows])


def gauss_newton(module, inputs, labels, loss="cross_entropy"):
    """JᵀSJ by all Jacobians."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    jacobians = jacrev(lambda p: functional_call(module, p, (inputs,)))(params)
    j = torch.cat([part.flatten(2) for part in jacobians.values()], 2)
    logits = module(inputs).detach()
    p = logits.softmax(1)
    if logits.shape[1] == 1 and loss == "cross_entropy":
        inner = (logits.sigmoid() * (1 - logits.sigmoid())).unsqueeze(2)
    elif loss == "mse":
        inner = torch.eye(p.shape[1], dtype=p.dtype).expand(len(p), -1, -1) * 2 / p.shape[1]
    else:
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nap,nab,nbq->pq", j, inner, j) / len(p)


def random_like(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in module.named_parameters()}


def flat(params):
    return torch.cat([part.flatten() for part in params.values()])


def operator(matrix, products=None):
    """A dense matrix that counts its products."""

    def product(v):
        if products is not None:
            products.append(1)
        return matrix @ v

    return Operator(product, {"w": torch.zeros(len(matrix), dtype=matrix.dtype)}, 0.0, 1.0)


def with_spectrum(values, seed=0):
    values = torch.as_tensor(values, dtype=torch.float64)
    noise = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(noise).Q
    return q @ torch.diag(values) @ q.T
