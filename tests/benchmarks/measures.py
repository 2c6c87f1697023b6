"""The catalogue against what its arithmetic needs, and against the way of 2020 for the measures that both have."""

import copy
import statistics

import memory
import pandas as pd
import torch
import torchvision
from networks import BEYOND_FIRST, MLP, digits, trained_mlp
from timing import Row, medians
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from genlib import data, models, scale
from genlib.curvature.gauss_newton import unlike_samples
from genlib.measures import CATALOGUE, evaluate
from genlib.network import Network
from genlib.network.derivatives import require_derivatives
from genlib.network.objective import Objective
from genlib.train import Stop, fit_many

__all__ = ["rows"]

SAMPLES, STREAMED = 4000, 500
# Both have these; of the last noise that Jiang et al. use, |w − w⁰|, the code of 2020 has no search.
BOTH = (
    *("parameters", "l2", "l2_distance", "parameter_norm", "frobenius_distance", "spectral_distance"),
    *("product_frobenius", "product_spectral", "sum_frobenius", "sum_spectral", "stable_rank", "path"),
    *("inverse_margin", "product_frobenius_margin", "product_spectral_margin", "sum_frobenius_margin"),
    *("sum_spectral_margin", "spectral_from_origin", "spectral_from_start", "path_margin"),
    *("flatness", "flatness_magnitude", "pac_bayes_origin", "pac_bayes_start", "pac_bayes_magnitude_origin"),
)
DRAWS, LEVELS, DROP, TOLERANCE, FLOOR = 10, 15, 0.1, 0.01, 1e-3


def rows() -> list[Row]:
    """All rows of this file: few samples, among which the norms of the weights weigh most, and as many as MNIST has."""
    table = [one_pass_row(1, None), one_pass_row(60, 1 / 1.3), whole_row(), reference_row(), stack_row()]
    table += [stream_row(), stream_memory_row()]
    return [*table, door_row(trained_mlp(), repeated(SAMPLES), MLP, 0.03), door_row(*resnet(32), "ResNet-18", 0.05)]


def one_pass_row(repeats: int, at_least: float | None) -> Row:
    """The measures that need one look at the data, all together, against that look: a thousand digits, repeated."""
    inputs, labels = repeated(1000 * repeats)
    network, initial = trained_mlp(), start()
    names = [measure.name for measure in CATALOGUE.values() if measure.passes == 1]

    @torch.no_grad()
    def forward() -> None:
        for chunk in inputs.split(1000):
            network(chunk)

    own, once = medians(lambda: evaluate(network, (inputs, labels), initial=initial, names=names), forward)
    case = f"{len(names)} measures, {MLP}, {len(inputs)} samples"
    return Row("evaluate", case, "that forward pass", once / own, at_least, own / once, 1.0)


def whole_row() -> Row:
    """The whole catalogue against the sum of what its parts can't do without, what they share counted once."""
    (inputs, labels), network, initial, tables = repeated(SAMPLES), trained_mlp(), start(), []

    def ours() -> None:
        tables.append(evaluate(network, (inputs, labels), initial=initial, first_epoch=initial))

    (own,) = medians(ours, repeats=1, warm_up=0)
    (once,) = medians(torch.no_grad()(lambda: network(inputs)))
    limit = least(tables[0]["passes"])
    count = sum(not row.on_request for row in CATALOGUE.values())
    case = f"all {count} measures that need no name, {MLP}, {len(inputs)} samples"
    return Row("evaluate", case, "the passes that it needs", limit * once / own, 1 / 1.5, own / once, limit)


def stream_row() -> Row:
    """A loader of as many samples as MNIST has, read twice and written down, against the tensor."""
    inputs, labels = repeated(60_000)
    network, loader = trained_mlp(), DataLoader(TensorDataset(inputs, labels), STREAMED)
    names = ["cross_entropy", "jacobian_norm", "hessian_trace", "keskar_sharpness"]
    options = {"names": names, "chunk_size": STREAMED}
    whole, own = medians(
        lambda: evaluate(network, (inputs, labels), **options),
        lambda: evaluate(network, loader, **options),
        repeats=1,
        warm_up=0,
    )
    (once,) = medians(torch.no_grad()(lambda: network(inputs)), repeats=1)
    case = f"{len(names)} measures, {MLP}, a stream of 60000 samples in chunks of {STREAMED}"
    return Row("evaluate", case, "the tensor", whole / own, 1 / 1.1, own / once, whole / once)


def stream_memory_row() -> Row:
    """The peak of memory of a stream against that of its first chunk alone, and one chunk of inputs."""
    inputs, labels = repeated(60_000)
    network, names = trained_mlp(), ["jacobian_norm", "gradient_variance", "fisher_rao", "sam_sharpness"]

    def taken(samples: int) -> int:
        loader = DataLoader(TensorDataset(inputs[:samples], labels[:samples]), STREAMED)
        return memory.peak(lambda: evaluate(network, loader, names=names, chunk_size=STREAMED))

    found, allowed = taken(60_000), taken(STREAMED) + inputs[:STREAMED].nbytes
    case = f"memory: {len(names)} measures, {MLP}, a stream of 60000 samples in chunks of {STREAMED}"
    baseline = "its first chunk and one of inputs; in place of passes, megabytes"
    return Row("evaluate", case, baseline, allowed / found, 1.0, found / 1e6, allowed / 1e6)


def door_row(network: nn.Module, pair: tuple[torch.Tensor, torch.Tensor], name: str, share: float) -> Row:
    """What is looked at before the whole catalogue is measured, as a share of the time that this takes."""
    inputs, labels = pair

    def looks() -> None:
        objective = Objective.of(network, inputs, labels)
        require_derivatives(objective, twice=True)
        unlike_samples(objective)

    (door,) = medians(looks)
    initial = Network.of(copy.deepcopy(network))
    (whole,) = medians(
        lambda: evaluate(network, (inputs, labels), initial=initial, first_epoch=initial), repeats=1, warm_up=0
    )
    (once,) = medians(torch.no_grad()(lambda: network(inputs[:8])))
    case = f"the look at a network, {name}, {len(inputs)} samples"
    return Row(
        "evaluate", case, f"{share:.0%} of the table", share * whole / door, 1.0, door / once, share * whole / once
    )


def resnet(samples: int) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """ResNet-18 with what BatchNorm has seen, on random images, and the labels that it gives them."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10).to(scale.device())
    images = torch.randn(samples, 3, 32, 32, device=scale.device())
    with torch.no_grad():
        for _ in range(20):
            network(images)
        return network.eval(), (images, network(images).argmax(1))


def least(passes: pd.Series, r: float = BEYOND_FIRST, inputs: int = 784, width: int = 512) -> float:
    """The arithmetic of the catalogue in forward passes, of which a share r is beyond the first layer."""
    classes = 10
    gradient, product = 2 + r, 2 + 4 * r
    products = (passes["top_eigenvalue"] - 3) / 6 + (passes["hessian_norm"] - 3) / 6
    ascents = sum((passes[name] - 1) / 3 for name in ("keskar_sharpness", "worst_case_sharpness"))
    searches = ("sharpness_flatness", "sharpness_flatness_magnitude", "sharpness_magnitude_start")
    radii = sum((passes[name] - 4) / 13 for name in searches)
    parts = {
        "outputs": 1,
        "margins at the input": 2,
        "Jacobian, in the first layer's row space": 1 + classes * (r + (1 - r) * min(1, width / inputs)),
        "transitions": passes["transitions"],
        "trace": 1 + classes * r,
        "Gram matrix": passes["soft_rank"] * (2 + classes * r) / (2 + classes),
        "batches": passes["batch_sharpness"] * (2 * gradient + product) / 12,
        "last layer": 1,
        "products of the Hessian": 2 * gradient + products * product,
        "variance of gradients, twice": 2 * gradient,
        "one step": gradient + 1,
        "ascents": ascents * gradient + 2,
        "searches for a radius": len(searches) * (gradient + 1) + radii * (4 * gradient + 1),
        "searches for a deviation": 4 * (2 * DRAWS + 1),
    }
    return float(sum(parts.values()))


def reference_row() -> Row:
    """The searches of 2020: bisection in [0, 2], at each level ten perturbed copies, and the full spectra of layers."""
    (inputs, labels), network, initial = repeated(SAMPLES), trained_mlp(), start()

    def ours() -> None:
        evaluate(network, (inputs, labels), initial=initial, names=BOTH)

    theirs, own = medians(lambda: reference(network, initial, inputs, labels), ours, repeats=1, warm_up=0)
    (once,) = medians(torch.no_grad()(lambda: network(inputs)))
    case = f"{len(BOTH)} measures, {MLP}, {len(inputs)} samples"
    limit = 1.0 + 2 * (2 * DRAWS + 1)
    return Row("evaluate", case, "the way of 2020", theirs / own, 4.0, own / once, limit)


@torch.no_grad()
def reference(network: nn.Module, initial: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """What the measures of 2020 are made of: full spectra, a pass for the margins, one for paths, two searches."""
    weights, start = ([p for p in module.parameters() if p.ndim == 2] for module in (network, initial))
    differences = [w - w0 for w, w0 in zip(weights, start, strict=True)]
    found = [torch.linalg.svdvals(w).max().item() for w in (*weights, *differences)]
    found += [w.norm().item() for w in (*weights, *differences)]
    logits = network(inputs)
    right = logits[torch.arange(len(labels)), labels].clone()
    logits[torch.arange(len(labels)), labels] = -torch.inf
    margins = right - logits.max(1).values
    found.append(margins.quantile(0.1).item())
    squares = copy.deepcopy(network)
    for p in squares.parameters():
        p.square_()
    found.append(squares(torch.ones_like(inputs[:1])).sum().item())
    accuracy = (margins > 0).float().mean().item()
    return found + [bisection(network, inputs, labels, accuracy, magnitude) for magnitude in (False, True)]


def bisection(module: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, accuracy: float, magnitude: bool) -> float:
    """The deviation that costs a tenth of the accuracy; as published, what is drawn has its square for a deviation."""
    low, high = 0.0, 2.0
    generator = torch.Generator(inputs.device).manual_seed(0)
    for _ in range(LEVELS):
        sigma, found = (low + high) / 2, []
        for _ in range(DRAWS):
            moved = copy.deepcopy(module)
            for p in moved.parameters():
                deviation = sigma**2 * p.square() + FLOOR**2 if magnitude else torch.full_like(p, sigma**2)
                p += torch.normal(0.0, deviation, generator=generator)
            found.append((moved(inputs).argmax(1) == labels).float().mean().item())
        drop = abs(statistics.mean(found) - accuracy)
        if abs(drop - DROP) < TOLERANCE:
            break
        low, high = (low, sigma) if drop > DROP else (sigma, high)
    return sigma


def stack_row(count: int = 12, samples: int = 500) -> Row:
    """A stack of small networks, where the ascents go together, against one network after the other."""
    dataset = data.load("mnist1d", train=samples, test=10, device=scale.device())
    modules = [models.mlp(40, 10, width=64, depth=2, seed=seed) for seed in range(count)]
    runs = fit_many(modules, dataset, lr=0.05, batch_size=64, stop=Stop(accuracy=1.0, loss=0.01, epochs=200))
    network = Network.stack(runs.modules)

    def one_by_one() -> None:
        for run in runs:
            evaluate(run.module, dataset, run=run)

    @torch.no_grad()
    def forward() -> None:
        for run in runs:
            run.module(dataset.inputs)

    alone, own, once = medians(one_by_one, lambda: evaluate(network, dataset, run=runs), forward, repeats=2)
    case = f"all measures, a stack of {count} MLPs 40-64-64-10, {samples} samples"
    passes = evaluate(runs[0].module, dataset, run=runs[0], first_epoch=modules[0])["passes"]
    limit = least(passes, r=(64 + 10) / (40 + 64 + 10), inputs=40, width=64)
    return Row("evaluate", case, "one network after the other", alone / own, None, own / once, limit)


def repeated(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A thousand digits, as often as it takes."""
    times = samples // 1000
    return digits(1000).inputs.repeat(times, 1), digits(1000).labels.repeat(times)


def start() -> nn.Module:
    """Another network, for a start."""
    return models.mlp(784, 10, width=512, depth=3).to(scale.device())
