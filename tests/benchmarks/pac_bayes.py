"""The search for sigma against the bisection of 2020; the inverse of kl against scipy's root finder in a loop."""

import copy
import math
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from networks import MLP, digits, trained_mlp
from scipy.optimize import brentq
from timing import Row, medians
from torch import nn

from genlib.curvature import trace
from genlib.pac_bayes import kl_inverse, largest_sigma

__all__ = ["rows"]

INCREASE, TOLERANCE, DRAWS = 0.1, 0.01, 10


def rows() -> list[Row]:
    """All rows of this file."""
    return [search_row("error"), search_row("loss"), kl_inverse_row()]


def search_row(of: str, networks: int = 5) -> Row:
    """The same tolerance on both sides; ours starts from the curvature, and its time is in ours."""
    inputs, labels = digits(1000).inputs, digits(1000).labels
    measured = {
        "error": lambda logits: (logits.argmax(1) != labels).float().mean().item(),
        "loss": lambda logits: F.cross_entropy(logits, labels).item(),
    }[of]

    passes, spent, times = [], [], []

    def ours(module: nn.Module) -> None:
        start = (2 * INCREASE / trace(module, inputs, labels).value).sqrt()
        tolerance = TOLERANCE / INCREASE
        found = largest_sigma(module, inputs, labels, of=of, draws=DRAWS, start=start, tolerance=tolerance)
        passes.append(found.passes)

    def theirs(module: nn.Module, generator: torch.Generator) -> None:
        spent.append(_bisection(module, inputs, measured, generator))

    for seed in range(networks):
        module, generator = trained_mlp(seed), torch.Generator(inputs.device).manual_seed(seed)
        both = (partial(theirs, module, generator), partial(ours, module))
        times.append(medians(*both, repeats=1, warm_up=0))
    slow, own = (sum(column) for column in zip(*times, strict=True))
    case = f"{of}, {MLP}, {len(inputs)} samples, {networks} networks; time with the trace, passes without"
    baseline = f"bisection, {DRAWS} draws a level ({statistics.mean(spent):.0f} passes)"
    # A rise beside it says how far σ is off, and one look with all draws says that it is no more.
    limit = 2.0 * DRAWS + 1
    return Row("largest_sigma", case, baseline, slow / own, None, statistics.mean(passes), limit, passes_at_most=30.0)


@torch.no_grad()
def _bisection(module: nn.Module, inputs: torch.Tensor, measured, generator: torch.Generator, levels: int = 15) -> int:
    """The search of Dziugaite et al. (2020), with σ for the deviation; the passes it took."""
    low, high, passes = 0.0, 2.0, 1
    at_rest = measured(module(inputs))
    for _ in range(levels):
        sigma, found = (low + high) / 2, []
        for _ in range(DRAWS):
            moved = copy.deepcopy(module)
            for p in moved.parameters():
                p += sigma * torch.randn(p.shape, generator=generator, device=p.device)
            found.append(measured(moved(inputs)))
        passes += DRAWS
        rise = statistics.mean(found) - at_rest
        if abs(rise - INCREASE) < TOLERANCE:
            break
        low, high = (low, sigma) if rise > INCREASE else (sigma, high)
    return passes


def kl_inverse_row(pairs: int = 10_000) -> Row:
    """A pass is here one look at kl(q|p) for every pair; four steps of Newton's method reach the last digit."""
    generator = torch.Generator().manual_seed(0)
    q = torch.rand(pairs, generator=generator, dtype=torch.float64)
    bound = 10 ** (4 * torch.rand(pairs, generator=generator, dtype=torch.float64) - 3)
    ends = list(zip(q.tolist(), bound.tolist(), strict=True))

    def divergence(q: float, p: float) -> float:
        return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))

    def loop() -> list[float]:
        top = math.nextafter(1.0, 0.0)
        inside = [divergence(a, top) > b for a, b in ends]
        return [
            brentq(lambda p, a=a, b=b: divergence(a, p) - b, a, top, xtol=1e-15) if found else 1.0
            for (a, b), found in zip(ends, inside, strict=True)
        ]

    p = q + (1 - q) / 2
    look = lambda: q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()  # noqa: E731
    theirs, own, once = medians(loop, lambda: kl_inverse(q, bound), look)
    error = (kl_inverse(q, bound) - torch.tensor(loop(), dtype=torch.float64)).abs().max().item()
    case = f"{pairs:,} pairs; a pass is one look at kl of every pair"
    return Row("kl_inverse", case, "brentq, one pair at a time", theirs / own, 50.0, own / once, 4.0, error, 1e-10)
