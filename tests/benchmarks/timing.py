"""Ratios of CPU time that a noisy machine leaves alone: both sides in one run, in turn, on one thread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

__all__ = ["Row", "medians"]


@dataclass(frozen=True)
class Row:
    """One measurement: `ratio` is the baseline's time over ours, `passes` our time in forward passes."""

    kernel: str
    case: str
    baseline: str
    ratio: float
    at_least: float
    passes: float
    limit_passes: float

    @property
    def met(self) -> bool:
        """Whether the ratio is what was asked for."""
        return self.ratio >= self.at_least

    def entry(self) -> dict:
        """The row for the record, to three digits."""
        return {key: float(f"{v:.3g}") if isinstance(v, float) else v for key, v in asdict(self).items()}


def medians(*functions: Callable[[], object], repeats: int = 5) -> list[float]:
    """Median CPU seconds of each function, after one round to warm up."""
    clock = time.process_time if not torch.cuda.is_available() else _synchronized
    times = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = clock()
            function()
            seconds.append(clock() - start)
    return [statistics.median(seconds[1:]) for seconds in times]


def _synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
