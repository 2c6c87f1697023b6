"""`fit` against the loop that everybody writes, `fit_many` against one call of `fit` after the other."""

import torch
import torch.nn.functional as F
from timing import Row, medians
from torch.utils.data import DataLoader, TensorDataset

from genlib import data, models
from genlib.network import Network
from genlib.train import Stop, fit, fit_many

__all__ = ["rows"]


def rows() -> list[Row]:
    """All rows of this file."""
    return [
        fit_row(),
        fit_many_row(width=64, depth=2, batch_size=32, steps=300, at_least=4.0),
        fit_many_row(width=64, depth=2, batch_size=64, steps=300, at_least=2.5),
        fit_many_row(width=512, depth=1, batch_size=64, steps=30, at_least=1 / 1.1),
        starts_row(),
    ]


def fit_row(steps: int = 1000) -> Row:
    """Steps a second on digits, MLP 64-512-10, batches of 64."""
    digits = data.load("digits", device="cpu")
    network = models.mlp(64, 10, width=512)
    stop = Stop(steps=steps, every=steps)

    def usual() -> None:
        module = models.mlp(64, 10, width=512)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        loader = DataLoader(TensorDataset(digits.inputs, digits.labels), batch_size=64, shuffle=True)
        left = steps
        while left:
            for inputs, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(module(inputs), labels).backward()
                optimizer.step()
                left -= 1
                if not left:
                    break

    def ours() -> None:
        fit(network, digits, lr=0.1, batch_size=64, stop=stop)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(steps):
            network(digits.inputs[:64])

    theirs, own, once = medians(usual, ours, forward)
    limit = 2 + 512 * 10 / (64 * 512 + 512 * 10)
    return Row("fit", "digits, MLP 64-512-10, batch 64", "DataLoader loop", theirs / own, 1.8, own / once, limit)


def fit_many_row(*, width: int, depth: int, batch_size: int, steps: int, at_least: float, count: int = 32) -> Row:
    """A stack of MLPs on MNIST-1D against as many calls of `fit`."""
    signals = data.load("mnist1d", train=1000, test=100, device="cpu")
    networks = [models.mlp(40, 10, width=width, depth=depth, seed=seed) for seed in range(count)]
    recipe = {"lr": 0.05, "batch_size": batch_size, "stop": Stop(steps=steps, every=steps)}
    stack = Network.stack(networks)
    batch = signals.inputs[:batch_size]

    def singly() -> None:
        for seed, network in enumerate(networks):
            fit(network, signals, seed=seed, **recipe)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(steps):
            stack.apply(stack.params, batch)

    theirs, own, once = medians(singly, lambda: fit_many(networks, signals, **recipe), forward)
    hidden = (depth - 1) * width**2 + width * 10
    shape = "-".join(["40", *[str(width)] * depth, "10"])
    case = f"{count} MLPs {shape}, batch {batch_size}"
    return Row("fit_many", case, "calls of fit", theirs / own, at_least, own / once, 2 + hidden / (hidden + 40 * width))


def starts_row(count: int = 40, steps: int = 100) -> Row:
    """Random starts on the full batch, as a chapter on basins trains them."""
    digits = data.load("digits", train=300, device="cpu")
    networks = [models.mlp(64, 10, width=100, seed=seed) for seed in range(count)]
    recipe = {"optimizer": "adam", "lr": 0.01, "stop": Stop(steps=steps, every=steps)}

    def singly() -> None:
        for seed, network in enumerate(networks):
            fit(network, digits, seed=seed, **recipe)

    @torch.no_grad()
    def forward() -> None:
        for _ in range(steps):
            for network in networks:
                network(digits.inputs)

    theirs, own, once = medians(singly, lambda: fit_many(networks, digits, **recipe), forward)
    case = f"{count} starts of an MLP 64-100-10, Adam, all {len(digits)} samples a step"
    return Row("fit_many", case, "calls of fit", theirs / own, 1.0, own / once, 2 + 10 / 74)
