"""SAM against its base optimizer, and the mean of 1-SAM against the ways in which one would write it at first."""

import functools

import torch
from timing import Row, medians
from torch import nn
from torch.func import functional_call, grad, vmap

from genlib import data, models
from genlib.data import Dataset
from genlib.optimizers import SAM, OneSAM
from genlib.train import Stop, fit, fit_many

__all__ = ["rows"]

RHO, LR = 0.2, 0.01
WIDTH = 128
CASE = f"parity, d 30, n 100, width {WIDTH}, biases, full batch"
BEYOND_FIRST = 1 / 31  # of a forward pass
LIMIT = 2 + 3 * BEYOND_FIRST  # forward, back to the first layer, forward from there, back with the weights' gradients


def rows() -> list[Row]:
    """All rows of this file."""
    return [
        one_sam_row("torch.func", by_func, steps=20, at_least=10.0),
        one_sam_row("100 autograd SAM steps of one sample", by_autograd, steps=2, at_least=100.0),
        stack_row(),
        sam_row("sgd"),
        sam_row("adam"),
    ]


def squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.squeeze(-1) - (2 * labels - 1)).square()


def by_func(module: nn.Module, dataset: Dataset, steps: int) -> None:
    """Two gradients of each sample, vmapped."""

    def loss(params, x, y):
        return squared_error(functional_call(module, params, (x,)), y)

    def sam(params, x, y):
        g = grad(loss)(params, x, y)
        norm = torch.stack([part.square().sum() for part in g.values()]).sum().sqrt()
        return grad(loss)({name: params[name] + RHO * part / norm for name, part in g.items()}, x, y)

    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    for _ in range(steps):
        gradients = vmap(sam, (None, 0, 0))(params, dataset.inputs, dataset.labels)
        params = {name: p - LR * gradients[name].mean(0) for name, p in params.items()}


def by_autograd(module: nn.Module, dataset: Dataset, steps: int) -> None:
    """Sample after sample, up the gradient and back."""
    params = list(module.parameters())

    def gradient(x, y):
        return torch.autograd.grad(squared_error(module(x), y).mean(), params)

    for _ in range(steps):
        total = [torch.zeros_like(p) for p in params]
        for x, y in zip(dataset.inputs.split(1), dataset.labels.split(1), strict=True):
            g = gradient(x, y)
            norm = torch.stack([part.norm() for part in g]).norm()
            with torch.no_grad():
                for p, part in zip(params, g, strict=True):
                    p += RHO * part / norm
            found = gradient(x, y)
            with torch.no_grad():
                for p, part, there, mean in zip(params, g, found, total, strict=True):
                    p -= RHO * part / norm
                    mean += there / len(dataset)
        with torch.no_grad():
            for p, mean in zip(params, total, strict=True):
                p -= LR * mean


def one_sam_row(baseline: str, usual, *, steps: int, at_least: float, many: int = 300) -> Row:
    """Steps of `fit`, by the closed form."""
    parity = data.load("parity", device="cpu")
    network = models.two_layer(30, width=WIDTH)
    recipe = {"optimizer": OneSAM(RHO), "lr": LR, "momentum": 0.0, "loss": "mse"}

    def ours() -> None:
        fit(network, parity, stop=Stop(steps=many, every=many), **recipe)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(many):
            network(parity.inputs)

    theirs, own, once = medians(lambda: usual(models.two_layer(30, width=WIDTH), parity, steps), ours, forward)
    ratio = (theirs / steps) / (own / many)
    return Row("mean 1-SAM through fit", CASE, baseline, ratio, at_least, own / once, LIMIT)


def stack_row(count: int = 5, steps: int = 200) -> Row:
    """Seeds in a stack, as `fit_many` chooses, against one after the other."""
    sets = [data.load("parity", device="cpu", seed=seed) for seed in range(count)]
    networks = [models.two_layer(30, width=WIDTH, seed=seed) for seed in range(count)]
    recipe = {"optimizer": OneSAM(RHO), "lr": LR, "momentum": 0.0, "loss": "mse"}
    train = functools.partial(fit_many, networks, sets, stop=Stop(steps=steps, every=steps), **recipe)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(steps):
            for network, parity in zip(networks, sets, strict=True):
                network(parity.inputs)

    theirs, own, once = medians(functools.partial(train, stacked=False), train, forward)
    return Row(
        "mean 1-SAM through fit_many", f"{count} seeds, {CASE}", "calls of fit", theirs / own, 1.0, own / once, LIMIT
    )


def sam_row(base: str, steps: int = 300) -> Row:
    """2.1 steps of the base optimizer through `fit` against one of SAM."""
    digits = data.load("digits", device="cpu")
    network = models.mlp(64, 10, width=512)
    recipe = {"lr": 0.1 if base == "sgd" else 1e-3, "batch_size": 64, "stop": Stop(steps=steps, every=steps)}

    @torch.no_grad()
    def forward() -> None:
        for _ in range(steps):
            network(digits.inputs[:64])

    theirs, own, once = medians(
        lambda: fit(network, digits, optimizer=base, **recipe),
        lambda: fit(network, digits, optimizer=SAM(0.05, base=base), **recipe),
        forward,
        repeats=15,
    )
    r = 512 * 10 / (64 * 512 + 512 * 10)
    case = f"digits, MLP 64-512-10, batch 64, base {base}"
    return Row("SAM through fit", case, "2.1 steps of the base", 2.1 * theirs / own, 1.0, own / once, 2 * (2 + r))
