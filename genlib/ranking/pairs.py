"""A table of networks, its bootstrap draws, and the pairs of networks to compare."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pandas.api.typing import DataFrameGroupBy
from scipy import stats

from genlib.ranking import adjustments

__all__ = [
    "JACKKNIFE",
    "Sweep",
    "cells",
    "exceed",
    "groups_of",
    "matched_pairs",
    "require_finite",
    "require_numbers",
    "require_ranks",
    "sweep_of",
    "tau",
]

JACKKNIFE = "jackknife"
_ROWS, _PAIRS = 256, 2**14  # networks, pairs that are compared at a time


@dataclass(frozen=True, eq=False)
class Sweep:
    """The columns in question, networks in rising order of their gaps, and how often each network counts in a draw."""

    measures: tuple[str, ...]
    ranks: Float[np.ndarray, "networks measures"]
    gap: Float[np.ndarray, " networks"]
    values: pd.DataFrame
    codes: pd.DataFrame
    counts: Float[np.ndarray, "networks draws"]
    unvaried: int
    jackknife: bool = False


def sweep_of(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    bootstraps: int | str,
    resample: str,
    seed: int,
    adjusted: bool = False,
) -> Sweep:
    """Read the columns, refuse what cannot be ranked, and draw the bootstraps.

    `adjusted`: of these measures, what `adjustments.adjusted` makes of them with the column `n`.
    """
    measures, axes = ([names] if isinstance(names, str) else list(names) for names in (measures, axes))
    drawn = [] if resample in ("replicates", "networks") else [resample]
    if unknown := [name for name in [*measures, gap, *axes, *drawn] if name not in table.columns]:
        raise ValueError(f"table has no column {', '.join(map(repr, unknown))}; it has {', '.join(map(str, table))}")
    if not axes or len(set(axes)) < len(axes) or len(set(measures)) < len(measures):
        raise ValueError(f"axes are {axes}, measures {measures}; name at least one axis, and each column once")
    if adjusted:
        table = adjustments.adjusted(table, measures)
    jackknife = bootstraps == JACKKNIFE
    if not jackknife and (isinstance(bootstraps, str) or bootstraps < 0 or bootstraps == 1):
        raise ValueError(
            f"bootstraps is {bootstraps!r}; it takes at least 2 draws, 0 for no intervals, or {JACKKNIFE!r}"
        )
    require_ranks(table, list(dict.fromkeys([*measures, gap])))
    _require_whole(table, [*axes, *drawn])
    require_finite(table, gap)
    if constant := [axis for axis in axes if table[axis].nunique() < 2]:
        raise ValueError(f"axes holds {', '.join(constant)}, of one value alone; leave out what does not vary")

    table = table.sort_values([gap, *axes], kind="stable", ignore_index=True)
    codes = table[axes].apply(lambda column: pd.factorize(column, sort=True)[0])
    ranks = np.empty((len(table), len(measures)), np.float32)
    for k, name in enumerate(measures):
        ranks[:, k] = stats.rankdata(table[name].to_numpy(float), method="dense")
    if jackknife:
        counts, unvaried = _without_each(table, resample), 0
    else:
        counts, unvaried = _multiplicities(table, codes, bootstraps, resample, seed)
    return Sweep(tuple(measures), ranks, table[gap].to_numpy(float), table[axes], codes, counts, unvaried, jackknife)


def cells(
    table: pd.DataFrame, measures: str | Sequence[str], others: list[str], within: str | Sequence[str]
) -> tuple[list[str], DataFrameGroupBy]:
    """The names of the measures, and the networks that agree in the columns `within`; `others` must be columns too."""
    measures, within = ([names] if isinstance(names, str) else list(names) for names in (measures, within))
    if unknown := [name for name in [*measures, *others, *within] if name not in table.columns]:
        raise ValueError(f"table has no column {', '.join(map(repr, unknown))}; it has {', '.join(map(str, table))}")
    if not measures:
        raise ValueError("measures is empty; name at least one column")
    if missing := [name for name in within if table[name].isna().any()]:
        raise ValueError(f"within holds {', '.join(missing)} with NaN; networks are compared that agree in it")
    return measures, table.groupby(within or np.zeros(len(table), int))


def require_ranks(table: pd.DataFrame, names: list[str]) -> None:
    if len(table) < 2:
        raise ValueError(f"{', '.join(names)}: {len(table)} network; a ranking takes at least two")
    require_numbers(table, names)
    if tied := [name for name in names if table[name].nunique() < 2]:
        raise ValueError(f"{', '.join(tied)}: the same value for all networks, which ranks nothing; leave it out")


def require_numbers(table: pd.DataFrame, names: list[str]) -> None:
    if wordy := [name for name in names if not pd.api.types.is_numeric_dtype(table[name])]:
        raise ValueError(f"{', '.join(wordy)}: no column of numbers; a measure and the gap are numbers")
    _require_whole(table, names)


def require_finite(table: pd.DataFrame, gap: str) -> None:
    if not np.isfinite(table[gap].to_numpy(float)).all():
        raise ValueError(f"gap: {gap} holds infinite values; leave those networks out, and say how many")


def _require_whole(table: pd.DataFrame, names: list[str]) -> None:
    missing = table[names].isna().sum()
    if missing.any():
        listed = ", ".join(f"{name} ({count} of {len(table)})" for name, count in missing[missing > 0].items())
        raise ValueError(f"NaN in {listed}; leave out these columns or these networks, and say how many")


def _multiplicities(
    table: pd.DataFrame, codes: pd.DataFrame, bootstraps: int, resample: str, seed: int
) -> tuple[Float[np.ndarray, "networks draws"], int]:
    """Ones, then of each draw how often each network counts; and the number of strata of one unit."""
    n = len(table)
    strata = groups_of(codes, list(codes)) if resample == "replicates" else np.zeros(n, int)
    units = np.arange(n) if resample in ("replicates", "networks") else pd.factorize(table[resample], sort=True)[0]
    rng = np.random.default_rng(seed)
    counts, unvaried = np.ones((n, 1 + bootstraps)), 0
    for members in pd.Series(range(n)).groupby(strata).indices.values():
        distinct, unit = np.unique(units[members], return_inverse=True)
        if (r := len(distinct)) > 1:
            drawn = rng.multinomial(r - 1, np.full(r, 1 / r), size=bootstraps).T * (r / (r - 1))
            counts[members, 1:] = drawn[unit]
        else:
            unvaried += 1
    if bootstraps and unvaried == strata.max() + 1:
        raise ValueError(
            f"resample is {resample!r}, but no two networks agree on all axes: take 'networks', or bootstraps=0"
            if resample == "replicates"
            else f"resample is {resample!r}, a column of one value: there is nothing to draw from"
        )
    return counts, unvaried


def _without_each(table: pd.DataFrame, resample: str) -> Float[np.ndarray, "networks draws"]:
    """Ones, then zeros for the networks of one value of the column `resample`, and ones for all others."""
    if resample == "replicates":
        raise ValueError(f"resample is {resample!r}; a jackknife takes a column, such as the seed's, or 'networks'")
    units = np.arange(len(table)) if resample == "networks" else pd.factorize(table[resample], sort=True)[0]
    if (distinct := units.max() + 1) < 3:
        raise ValueError(f"resample is {resample!r}, a column of {distinct} values; a jackknife takes at least three")
    return np.column_stack([np.ones(len(table)), units[:, None] != np.arange(distinct)])


def groups_of(codes: pd.DataFrame, given: Sequence[str]) -> Int[np.ndarray, " networks"]:
    """The number of each network's group, of those that agree on these axes."""
    return codes.groupby(list(given)).ngroup().to_numpy() if given else np.zeros(len(codes), int)


def exceed(*keys: Float[np.ndarray, " n"]) -> Iterator[tuple[slice, slice, Float[np.ndarray, "rows columns"]]]:
    """The matrix 1[key_i > key_j for all keys] in blocks of rows; the first key is in rising order, so j < i."""
    for start in range(0, len(keys[0]), _ROWS):
        rows, columns = slice(start, start + _ROWS), slice(0, start + _ROWS)
        both = np.logical_and.reduce([key[rows, None] > key[columns] for key in keys])
        yield rows, columns, both.astype(np.float32)


def matched_pairs(codes: pd.DataFrame, axis: str) -> tuple[pd.DataFrame, int]:
    """The pairs of networks that differ in this axis alone, and the number of settings of the other axes."""
    setting = groups_of(codes, [name for name in codes if name != axis])
    one = pd.DataFrame({"setting": setting, "value": codes[axis], "network": range(len(codes))})
    pairs = one.merge(one, on="setting", suffixes=("_1", "_2"))
    pairs = pairs[pairs["value_1"] < pairs["value_2"]].assign(weight=1.0)
    if not len(pairs):
        raise ValueError(f"axes holds {axis}, in which no two networks differ that agree on all others; leave it out")
    return pairs, int(setting.max()) + 1


def tau(sweep: Sweep, pairs: pd.DataFrame) -> Float[np.ndarray, "draws measures"]:
    """Σ c_a c_b w sgn Δμ sgn Δg / Σ c_a c_b w over these pairs; NaN in a draw that holds none of them."""
    a, b, w = (pairs[name].to_numpy() for name in ("network_1", "network_2", "weight"))
    numerator, total = np.zeros((len(sweep.measures), sweep.counts.shape[1])), np.zeros(sweep.counts.shape[1])
    for start in range(0, len(pairs), _PAIRS):
        i, j = a[start : start + _PAIRS], b[start : start + _PAIRS]
        shared = sweep.counts[i] * sweep.counts[j] * w[start : start + _PAIRS, None]
        signs = np.sign(sweep.ranks[i] - sweep.ranks[j]) * np.sign(sweep.gap[i] - sweep.gap[j])[:, None]
        numerator += signs.T @ shared
        total += shared.sum(0)
    return np.divide(numerator, total, out=np.full_like(numerator, np.nan), where=total > 0).T
