"""Kendall's rank correlation of measure and gap, over all pairs and along each axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from genlib.ranking.pairs import exceed, matched_pairs, require_ranks, sweep_of, tau
from genlib.ranking.rankings import Ranking, ranking_of

__all__ = ["Kendall", "granulated_kendall", "kendall", "pooled_kendall"]


@dataclass(frozen=True)
class Kendall:
    """Kendall's rank correlation: the papers' `tau`, and `tau_b`, which is corrected for ties."""

    tau: float
    tau_b: float


def kendall(measure: ArrayLike, gap: ArrayLike) -> Kendall:
    """τ = Σ_{a≠b} sgn(μ_a - μ_b) sgn(g_a - g_b) / n(n-1) over all pairs of n networks (Jiang et al. 2020), and τ-b.

    A tied pair counts 0 in the sum and 1 in the number of pairs: a measure with ties cannot reach 1. scipy's τ-b
    divides by √((P - T_μ)(P - T_g)) instead, P pairs of which T are tied, so that a coarse measure such as the number
    of parameters is not held back by its ties: |τ| ≤ |τ-b|, equal without ties. Cost: n ln n.
    Fewer than two networks, unequal numbers, NaN, all values tied: ValueError.
    """
    columns = {"measure": np.asarray(measure), "gap": np.asarray(gap)}
    if columns["measure"].shape != columns["gap"].shape or columns["gap"].ndim != 1:
        shapes = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
        raise ValueError(f"the shapes are {shapes}; give one number each a network")
    require_ranks(pd.DataFrame(columns), list(columns))
    tau_b = float(stats.kendalltau(*columns.values()).statistic)
    untied = math.prod(_untied(column) for column in columns.values())
    return Kendall(tau_b * math.sqrt(untied), tau_b)


def pooled_kendall(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    *,
    bootstraps: int | str = 200,
    resample: str = "replicates",
    seed: int = 0,
    adjusted: bool = False,
) -> Ranking:
    """Kendall's τ of each measure with the gap over all pairs of networks, as `kendall`, with its interval.

    `table`: one row a network; `measures`, `gap`, `axes` name columns. The draws multiply network i by c_i, so that
    τ = Σ_{i≠j} c_i c_j s_ij / Σ_{i≠j} c_i c_j: no network is compared with itself. `resample`: "replicates", networks
    among those that agree on all axes; "networks", among all; or a column, such as a seed's, whose networks are drawn
    together (of fewer than 5 values it makes intervals too short). Of r units r - 1 are drawn and count r / (r - 1),
    else the spread of few replicates is too small (Rao and Wu 1988). `bootstraps` may be "jackknife" in place of their
    number: then one value of the column is left out at a time, in their order, for `pseudo_values`. With
    `adjusted` the measures are ranked in the form that `ranking.adjusted` gives them, m of the column `n`. Cost:
    n² · draws multiplications a measure; memory: 7 KB a network.
    NaN, unknown columns, an axis of one value, a measure all tied, nothing to draw from: ValueError.
    """
    sweep = sweep_of(table, measures, gap, axes, bootstraps, resample, seed, adjusted)
    counts = sweep.counts.astype(np.float32)
    numerator = np.zeros((counts.shape[1], len(sweep.measures)))
    for rows, columns, higher in exceed(sweep.gap):
        for k, ranks in enumerate(sweep.ranks.T):
            signs = np.clip(ranks[rows, None] - ranks[columns], -1, 1) * higher
            numerator[:, k] += (counts[rows] * (signs @ counts[columns])).sum(0)
    pairs = (sweep.counts.sum(0) ** 2 - (sweep.counts**2).sum(0)) / 2
    n = len(table)
    support = pd.DataFrame(
        {"networks": n, "pairs": n * (n - 1) // 2, "used": True}, index=pd.Index(["all"], name="part")
    )
    taus = np.divide(numerator, pairs[:, None], out=np.full_like(numerator, np.nan), where=pairs[:, None] > 0)
    return ranking_of(sweep, taus[:, None], support, "mean", (-1.0, 1.0))


def granulated_kendall(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    *,
    bootstraps: int | str = 200,
    resample: str = "replicates",
    seed: int = 0,
    adjusted: bool = False,
) -> Ranking:
    """ψ_i, the mean over all settings of the other axes of τ along axis i alone, and Ψ, their mean (Jiang et al. 2020).

    `scores` hold Ψ, `parts` ψ an axis. At a setting each two networks that differ in axis i are compared, whatever
    their seeds; two seeds of one configuration are not. Ties count as in `kendall`. A setting that has networks at
    one value of the axis only is left out, and counted in `support` (`left_out`). A setting weighs 1 however many
    networks it holds. Arguments and draws as `pooled_kendall`. Cost: pairs · draws multiplications a measure.
    Errors as there; an axis along which nothing can be compared: ValueError.
    """
    sweep = sweep_of(table, measures, gap, axes, bootstraps, resample, seed, adjusted)
    rows, draws = [], []
    for axis in sweep.codes:
        pairs, settings = matched_pairs(sweep.codes, axis)
        taus = np.stack([tau(sweep, cell) for _, cell in pairs.groupby("setting")])
        draws.append(np.ma.masked_invalid(taus).mean(0).filled(np.nan))
        rows.append((axis, len(taus), settings - len(taus), len(pairs), True))
    support = pd.DataFrame(rows, columns=["part", "settings", "left_out", "pairs", "used"]).set_index("part")
    return ranking_of(sweep, np.stack(draws, 1), support, "mean", (-1.0, 1.0))


def _untied(column: np.ndarray) -> float:
    """The share of pairs that are not tied."""
    n, sizes = len(column), np.unique(column, return_counts=True)[1]
    return 1 - float((sizes * (sizes - 1)).sum()) / (n * (n - 1))
