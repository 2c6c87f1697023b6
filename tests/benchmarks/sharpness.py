"""Sharpness against the loop over perturbed copies, and against the gradients that an ascent needs."""

import copy

import torch
import torch.nn.functional as F
from networks import BEYOND_FIRST, MLP, digits, trained_mlp
from timing import Row, medians

from genlib.pac_bayes import largest_sigma
from genlib.sharpness import expected_sharpness, worst_case_sharpness

__all__ = ["rows"]

RISE = 0.1


def rows() -> list[Row]:
    """All rows of this file."""
    every = digits(1000).inputs, digits(1000).labels
    few = tuple(tensor[:200] for tensor in every)
    sigma = largest_sigma(trained_mlp(), *few, of="loss", increase=RISE).value.item()
    grid = [expected_row(*few, factor * sigma, factor) for factor in (1 / 4, 1 / 2, 1, 2)]
    return [*grid, worst_case_row(*few, None), worst_case_row(*every, 1 / 1.25)]


def expected_row(inputs, labels, sigma: float, factor: float, *, draws: int = 20, many: int = 400) -> Row:
    """Time to one standard error: the time of a draw times the variance of the mean of so many."""
    network = trained_mlp()

    @torch.no_grad()
    def loop(draws: int = draws) -> torch.Tensor:
        at_rest, rises = F.cross_entropy(network(inputs), labels), []
        for _ in range(draws):
            moved = copy.deepcopy(network)
            for parameter in moved.parameters():
                parameter += sigma * torch.randn_like(parameter)
            rises.append(F.cross_entropy(moved(inputs), labels) - at_rest)
        return torch.stack(rises)

    def ours(draws: int = draws):
        return expected_sharpness(network, inputs, labels, scale=sigma, draws=draws)

    theirs, own, once = medians(loop, ours, torch.no_grad()(lambda: network(inputs)))
    torch.manual_seed(0)
    naive = loop(many)
    found = ours(many)
    spread = naive.var().item() / many / found.standard_error.item() ** 2
    rise = found.value.item()
    case = f"{MLP}, {len(inputs)} samples, σ = {sigma:.2g}, a rise of {rise:.2g}, {draws} draws, equal standard error"
    ratio, at_least = theirs / own * spread, 2.0 if factor == 1 else None
    limit = 1 + (1 - BEYOND_FIRST) + draws * BEYOND_FIRST  # what reaches the first layer is the same at every draw
    return Row("expected_sharpness", case, "loop over perturbed copies", ratio, at_least, own / once, limit)


def worst_case_row(inputs, labels, at_least: float | None, steps: int = 10) -> Row:
    """T gradients and a forward pass are the least that an ascent of T steps takes."""
    network = trained_mlp()
    parameters = list(network.parameters())

    def least() -> None:
        for _ in range(steps):
            torch.autograd.grad(F.cross_entropy(network(inputs), labels), parameters)
        with torch.no_grad():
            F.cross_entropy(network(inputs), labels)

    def ours() -> None:
        worst_case_sharpness(network, inputs, labels, radius=1e-3, steps=steps)

    limit, own, once = medians(least, ours, torch.no_grad()(lambda: network(inputs)))
    case = f"{MLP}, {len(inputs)} samples, {steps} steps"
    passes = steps * (2 + BEYOND_FIRST) + 1
    baseline = f"{steps} gradients and a forward pass"
    return Row("worst_case_sharpness", case, baseline, limit / own, at_least, own / once, passes)
