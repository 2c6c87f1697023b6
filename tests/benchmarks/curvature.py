"""The exact trace of the Hessian against twenty Hutchinson vectors, which leave an error of a tenth."""

import copy

import torch
import torch.nn.functional as F
from networks import MLP, digits, trained_mlp
from timing import Row, medians
from torch import nn

from genlib import scale
from genlib.curvature import trace

__all__ = ["rows"]

CLASSES = 10


def rows() -> list[Row]:
    """All rows of this file."""
    return [mlp_row(), cnn_row()]


def mlp_row() -> Row:
    """The network and the size of most benchmarks here."""
    chosen = digits(1000)
    return _row(trained_mlp(), chosen.inputs, chosen.labels, f"{MLP}, {len(chosen.inputs)} samples", 8.0)


def cnn_row(samples: int = 500) -> Row:
    """Convolutions, whose weights need a product for every cotangent too."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 16, CLASSES)),
    ).to(scale.device())
    inputs = torch.randn(samples, 3, 16, 16, device=scale.device())
    labels = torch.randint(CLASSES, (samples,), device=scale.device())
    return _row(network, inputs, labels, f"conv16-pool-conv32-pool-dense, 3×16×16, {samples} samples", 1.0)


def _row(network: nn.Sequential, inputs, labels, case: str, at_least: float, vectors: int = 20) -> Row:
    weights = list(network.parameters())
    frozen = copy.deepcopy(network).requires_grad_(False)
    first = next(i for i, layer in enumerate(network) if list(layer.parameters())) + 1
    cotangent = torch.ones(len(inputs), CLASSES, device=inputs.device)

    def hutchinson() -> None:
        gradients = torch.autograd.grad(F.cross_entropy(network(inputs), labels), weights, create_graph=True)
        total = 0.0
        for _ in range(vectors):
            signs = [2 * torch.randint_like(w, 2) - 1 for w in weights]
            products = torch.autograd.grad(gradients, weights, signs, retain_graph=True)
            total = total + sum((s * p).sum() for s, p in zip(signs, products, strict=True))

    def ours() -> None:
        trace(network, inputs, labels, method="exact")

    def least() -> None:
        """A forward pass and, for every class, a backward pass down to the first layer's output."""
        hidden = frozen[:first](inputs).requires_grad_()
        logits = frozen[first:](hidden)
        for _ in range(CLASSES):
            torch.autograd.grad(logits, hidden, cotangent, retain_graph=True)

    theirs, own, limit, once = medians(hutchinson, ours, least, torch.no_grad()(lambda: network(inputs)))
    baseline = f"{vectors} cached Hessian-vector products"
    return Row("trace", case, baseline, theirs / own, at_least, own / once, limit / once)
