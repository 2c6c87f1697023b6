"""Jacobian norms against a loop over the samples, transitions along paths against the forward passes themselves."""

import torch
from memory import jacobian_memory
from networks import MLP, digits, trained_mlp
from timing import Row, medians
from torch import nn

from genlib import scale
from genlib.sensitivity import ellipse, jacobian_norms, transitions

__all__ = ["rows"]

CLASSES = 10
CNN = "conv16-pool-conv32-pool-dense, 3×16×16"


def rows() -> list[Row]:
    """All rows of this file."""
    mlp, inputs = trained_mlp(), digits(1000).inputs
    cnn, images = _cnn(), torch.randn(500, 3, 16, 16, device=scale.device())
    return [
        jacobian_row(mlp, inputs, MLP, 10.0, 1.15),
        jacobian_row(cnn, images, CNN, 5.0, 1.5),
        memory_row(10_000, 64),
        transitions_row(mlp, inputs, MLP, paths=100, points=1000),
        transitions_row(cnn, images, CNN, paths=10, points=1000),
    ]


def jacobian_row(network: nn.Module, inputs: torch.Tensor, case: str, at_least: float, slack: float) -> Row:
    """The norms of the probabilities' Jacobians; a backward pass to the input takes as long as a forward pass."""
    few = inputs[:: len(inputs) // 100]

    def loop() -> list[torch.Tensor]:
        found = []
        for x in few:
            jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None])[0].softmax(0), x)
            found.append(torch.linalg.vector_norm(jacobian))
        return found

    theirs, own, once = medians(loop, lambda: jacobian_norms(network, inputs), torch.no_grad()(lambda: network(inputs)))
    error = ((jacobian_norms(network, few) - torch.stack(loop())).abs().max() / torch.stack(loop()).max()).item()
    limit = 1.0 + CLASSES
    ratio = theirs / own * len(inputs) / len(few)
    case = f"{case}, {len(inputs)} samples"
    baseline = f"a loop over {len(few)} of the samples"
    return Row("jacobian_norms", case, baseline, ratio, at_least, own / once, limit, error, 1e-4, slack * limit)


def memory_row(classes: int, megabytes: int) -> Row:
    """The memory of the norms of both outputs' Jacobians, where a square matrix over the classes is 380 MB."""
    found = jacobian_memory(("probabilities", "logits"), "spectral", classes)
    case = f"memory: dense 16-4-{classes}, 4 samples, spectral, both outputs"
    baseline = f"{megabytes} MB; in place of passes, megabytes"
    return Row("jacobian_norms", case, baseline, megabytes / found, 1.0, found, float(megabytes))


def transitions_row(network: nn.Module, inputs: torch.Tensor, case: str, *, paths: int, points: int) -> Row:
    """Ellipses through three samples."""
    a, b, c = inputs[: 3 * paths].view(3, paths, *inputs.shape[1:])
    loops = ellipse(a, b, c, points=points, dim=1)

    @torch.no_grad()
    def forward() -> None:
        for path in loops:
            network(path)

    own, once = medians(lambda: transitions(network, loops, dim=1), forward, repeats=3)
    case = f"{case}, {paths} ellipses of {points} points"
    return Row("transitions", case, "their forward passes", once / own, 1 / 1.3, own / once, 1.0)


def _cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 16, CLASSES)),
    ).to(scale.device())
