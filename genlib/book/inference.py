"""What one effect a seed says of a claim: an interval, a verdict, the power to find the smallest effect of interest."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from genlib.estimates import interval

__all__ = [
    "SMALLEST_POWER",
    "VERDICTS",
    "bounded_interval",
    "differ",
    "holm",
    "p_value",
    "rates",
    "too_small",
    "verdict",
]

VERDICTS = ("reproduced", "contradicted", "no effect of interest", "open", "shown")
Bounds = tuple[float | int, float | int]
UNBOUNDED: Bounds = (-math.inf, math.inf)
SMALLEST_POWER = 0.8
ROUNDING = 1e-9  # equal numbers may differ by less than this, as a share of them


def bounded_interval(values: Sequence[float], bounds: Bounds = UNBOUNDED) -> tuple[float, float]:
    """The 95 % interval of the mean, mean ± t₀.₉₇₅(n-1) s/√n, cut at the bounds that the effect has by its nature."""
    low, high = interval(values)
    return max(low, float(bounds[0])), min(high, float(bounds[1]))


def verdict(values: Sequence[float], smallest: float, bounds: Bounds = UNBOUNDED) -> str:
    """`no effect of interest`: the interval lies within ±smallest. Else `reproduced` or `contradicted`: it lies beyond
    zero on the claim's side or on the other. Else `open`.
    """
    low, high = bounded_interval(values, bounds)
    least = smallest * (1 - ROUNDING)
    if -least < low and high < least:
        return "no effect of interest"
    return "reproduced" if low > 0 else "contradicted" if high < 0 else "open"


def too_small(verdict: str, power: float | None) -> str:
    """What is said after an open verdict on seeds too few to find the smallest effect of interest; else nothing."""
    return ", too small to see with these seeds" if verdict == "open" and power < SMALLEST_POWER else ""


def rates(effects: Float[np.ndarray, "draws seeds"], smallest: float) -> tuple[float, float]:
    """The shares of these draws with the verdicts `reproduced` and `contradicted`: of draws without an effect the false
    ones, of draws with the smallest effect of interest the power.
    """
    n = effects.shape[1]
    mean = effects.mean(1)
    half = stats.t.ppf(0.975, n - 1) * effects.std(1, ddof=1) / math.sqrt(n)
    of_interest = np.abs(mean) + half >= smallest * (1 - ROUNDING)
    return float((of_interest & (mean > half)).mean()), float((of_interest & (-mean > half)).mean())


def p_value(values: Sequence[float], smallest: float) -> float | None:
    """Of the test that the verdict rests on, so that p ≤ 0.05 where its interval decides (the bounds aside).

    Student's two-sided test of no effect; for an interval within ±smallest, that of an effect of at least `smallest`
    on either side: twice the larger one-sided p. None of values without spread, whose mean no t-test can judge.
    """
    n, mean, s = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    if s <= ROUNDING * abs(mean):
        return None
    of = stats.t(n - 1).sf
    if verdict(values, smallest) == "no effect of interest":
        return float(2 * of((smallest - abs(mean)) / (s / math.sqrt(n))))
    return float(2 * of(abs(mean) / (s / math.sqrt(n))))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values adjusted so that with 95 % confidence none of those up to 0.05 is a false one (Holm 1979)."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def differ(one: Sequence[float], other: Sequence[float], alpha: float) -> bool:
    """Whether two runs' means differ by Welch's test at this level."""
    moments = [(float(np.mean(each)), float(np.std(each, ddof=1)), len(each)) for each in (one, other)]
    if all(s <= ROUNDING * abs(mean) for mean, s, _ in moments):
        return not math.isclose(moments[0][0], moments[1][0], rel_tol=ROUNDING, abs_tol=1e-12)
    return bool(stats.ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue < alpha)
