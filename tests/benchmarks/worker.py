"""Runs what it is told on the genlib of PYTHONPATH, and answers with CPU seconds: of a task, and of forward passes."""

import sys
import time
from collections.abc import Callable

import torch

from genlib import data, measures, models, sensitivity
from genlib.network import Network
from genlib.optimizers import SAM, OneSAM
from genlib.train import Stop, fit, fit_many

Task = tuple[Callable[[], object], Callable[[], object], int]  # what is timed, a forward pass, and how many there are


def training(network, dataset, steps: int, **recipe) -> Task:
    batch = dataset.inputs[: recipe.get("batch_size")]
    stop = Stop(steps=steps, every=steps)
    return lambda: fit(network, dataset, stop=stop, **recipe), lambda: network(batch), steps


def digits(optimizer) -> Task:
    recipe = {"lr": 0.1, "batch_size": 64, "optimizer": optimizer}
    return training(models.mlp(64, 10, width=512), data.load("digits", device="cpu"), 300, **recipe)


def one_sam() -> Task:
    recipe = {"optimizer": OneSAM(0.2), "lr": 0.01, "momentum": 0.0, "loss": "mse"}
    return training(models.two_layer(30, width=128), data.load("parity", device="cpu"), 300, **recipe)


def small(count: int) -> list[torch.nn.Module]:
    return [models.mlp(40, 10, width=64, depth=2, seed=seed) for seed in range(count)]


def stack(batch_size: int, steps: int = 100) -> Task:
    signals = data.load("mnist1d", train=1000, test=100, device="cpu")
    networks, together = small(32), Network.stack(small(32))
    recipe = {"lr": 0.05, "batch_size": batch_size, "stop": Stop(steps=steps, every=steps)}
    batch = signals.inputs[:batch_size]
    return lambda: fit_many(networks, signals, **recipe), lambda: together.apply(together.params, batch), steps


def jacobians(network, count: int, inputs: int) -> Task:
    x = torch.randn(count, inputs)
    return lambda: sensitivity.jacobian_norms(network, x), lambda: network(x), 1


def table() -> Task:
    """The rows that both builds compute alike."""
    dataset = data.load("mnist1d", train=500, test=100, device="cpu")
    networks = small(12)
    stop = Stop(accuracy=1.0, loss=0.01, epochs=200)
    runs = fit_many(networks, dataset, lr=0.05, batch_size=32, stop=stop)
    names = [name for name in measures.CATALOGUE if name in ROWS]
    stacked = Network.stack([run.module for run in runs])
    return (
        lambda: measures.evaluate(stacked, dataset, run=list(runs), names=names),
        lambda: [run.module(dataset.inputs) for run in runs],
        1,
    )


ROWS = sys.argv[1].split(",")
TASKS = {
    "fit": lambda: digits("sgd"),
    "SAM": lambda: digits(SAM(0.05)),
    "mean 1-SAM": one_sam,
    "fit_many, batch 32": lambda: stack(32),
    "fit_many, batch 64": lambda: stack(64),
    "jacobian_norms, small": lambda: jacobians(small(1)[0], 500, 40),
    "jacobian_norms, large": lambda: jacobians(models.mlp(784, 10, width=512, depth=3), 1000, 784),
    "evaluate": table,
}


def seconds(function: Callable[[], object], times: int = 1) -> float:
    start = time.process_time()
    for _ in range(times):
        function()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ready: dict[str, Task] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready[name] = TASKS[name]()
        run, forward, times = ready[name]
        with torch.no_grad():
            once = seconds(forward, times)
        print(seconds(run), once, flush=True)


if __name__ == "__main__":
    main()
