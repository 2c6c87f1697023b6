"""The catalogue's measures that need one look at the data, all together, against that look."""

import torch
from networks import MLP, digits, trained_mlp
from timing import Row, medians

from genlib import models, scale
from genlib.measures import CATALOGUE, evaluate

__all__ = ["rows"]


def rows() -> list[Row]:
    """All rows of this file: few samples, among which the norms of the weights weigh most, and as many as MNIST has."""
    return [one_pass_row(1, None), one_pass_row(60, 1 / 1.3)]


def one_pass_row(repeats: int, at_least: float | None) -> Row:
    """A thousand digits, repeated."""
    inputs, labels = digits(1000).inputs.repeat(repeats, 1), digits(1000).labels.repeat(repeats)
    network, initial = trained_mlp(), models.mlp(784, 10, width=512, depth=3).to(scale.device())
    names = [measure.name for measure in CATALOGUE.values() if measure.passes == 1]

    @torch.no_grad()
    def forward() -> None:
        for chunk in inputs.split(1000):
            network(chunk)

    own, once = medians(lambda: evaluate(network, (inputs, labels), initial=initial, names=names), forward)
    case = f"{len(names)} measures, {MLP}, {len(inputs)} samples"
    return Row("evaluate", case, "that forward pass", once / own, at_least, own / once, 1.0)
