"""Ratios of CPU time that a noisy machine leaves alone: both sides in one run, in turn, on one thread."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

__all__ = ["Row", "medians"]


@dataclass(frozen=True)
class Row:
    """One measurement: `ratio` is the baseline's time over ours, `passes` our time in forward passes.

    `limit_passes` is what the arithmetic alone would need. What is None was not asked for, or has no meaning there.
    """

    kernel: str
    case: str
    baseline: str
    ratio: float
    at_least: float | None
    passes: float
    limit_passes: float | None
    error: float | None = None
    error_at_most: float | None = None
    passes_at_most: float | None = None

    @property
    def margin(self) -> float:
        """How far the row is from failing, as a factor: below 1 it misses what was asked for."""
        factors = [math.inf]
        if self.at_least is not None:
            factors.append(self.ratio / self.at_least)
        if self.error_at_most is not None:
            factors.append(self.error_at_most / max(self.error, 1e-300))
        if self.passes_at_most is not None:
            factors.append(self.passes_at_most / self.passes)
        return min(factors)

    @property
    def met(self) -> bool:
        """Whether the row is what was asked for."""
        return self.margin >= 1

    def entry(self) -> dict:
        """The row for the record, to three digits."""
        return {key: float(f"{v:.3g}") if isinstance(v, float) else v for key, v in asdict(self).items()}


def medians(*functions: Callable[[], object], repeats: int = 5, warm_up: int = 1) -> list[float]:
    """Median CPU seconds of each function, after a round to warm up."""
    clock = time.process_time if not torch.cuda.is_available() else _synchronized
    times = [[] for _ in functions]
    for _ in range(repeats + warm_up):
        for function, seconds in zip(functions, times, strict=True):
            start = clock()
            function()
            seconds.append(clock() - start)
    return [statistics.median(seconds[warm_up:]) for seconds in times]


def _synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
