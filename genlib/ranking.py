"""Which measures rank networks as their gaps do: over all pairs, along each axis, given axes, in every environment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import xlogy

from genlib._pairs import Sweep, exceed, groups_of, matched_pairs, require_numbers, sweep_of, tau

__all__ = [
    "Kendall",
    "Ranking",
    "conditional_mutual_information",
    "environments",
    "granulated_kendall",
    "kendall",
    "pooled_kendall",
    "resolvable_difference",
    "sign_errors",
]

EFFECTIVE = 12  # pairs that an environment needs, counted by their weights
_NO_ENTROPY = 1e-6  # nats a pair: below it rounding is all there is
_SUMMARIES = {"mean": np.nanmean, "min": np.nanmin, "max": np.nanmax}


@dataclass(frozen=True)
class Kendall:
    """Kendall's rank correlation: the papers' `tau`, and `tau_b`, which is corrected for ties."""

    tau: float
    tau_b: float


@dataclass(frozen=True, eq=False)
class Ranking:
    """A score of each measure, the parts that it sums up, and how they vary when networks are drawn anew.

    `draws` [1 + bootstraps, parts, measures]: the values, then those of each draw. `summary`, over parts: their mean,
    min or max. `support`: what each part rests on; only those `used` are among the draws. `unvaried`: configurations
    of one network, which no draw of replicates varies. Intervals, at 95 %, are value ± t₀.₉₇₅(B-1) s, s the standard
    deviation over B draws, cut to `bounds`. Percentiles would not do: drawing anew adds noise, which raises a maximum
    and a mutual information, so that their percentiles may lie beside the value.
    """

    measures: tuple[str, ...]
    draws: Float[np.ndarray, "draws parts measures"]
    support: pd.DataFrame
    summary: str
    bounds: tuple[float, float]
    unvaried: int

    @property
    def scores(self) -> pd.DataFrame:
        """One row a measure: `value`, and with bootstraps `low` and `high`."""
        return self._table(_SUMMARIES[self.summary](self.draws, axis=1), self._named)

    @property
    def parts(self) -> pd.DataFrame:
        """One row a part and measure: `value`, and with bootstraps `low` and `high`."""
        used = self.support.index[self.support["used"]]
        both = pd.MultiIndex.from_product([used, self._named])
        return self._table(self.draws.reshape(len(self.draws), -1), both)

    def quantile(self, share: float | int) -> pd.DataFrame:
        """As `scores`, with this quantile over the parts in place of the summary, linear between them."""
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; a quantile lies between 0 and 1")
        return self._table(np.nanquantile(self.draws, share, axis=1), self._named)

    @property
    def _named(self) -> pd.Index:
        return pd.Index(self.measures, name="measure")

    def _table(self, draws: Float[np.ndarray, "draws n"], index: pd.Index) -> pd.DataFrame:
        table = pd.DataFrame({"value": draws[0]}, index=index)
        if (bootstraps := len(draws) - 1) > 0:
            # A part that hardly any draw holds: nothing is known of its spread.
            spread = np.ma.masked_invalid(draws[1:]).std(axis=0, ddof=1).filled(np.inf)
            half = stats.t.ppf(0.975, bootstraps - 1) * spread
            table["low"] = np.clip(draws[0] - half, *self.bounds)
            table["high"] = np.clip(draws[0] + half, *self.bounds)
        return table


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
    require_numbers(pd.DataFrame(columns), list(columns))
    tau_b = float(stats.kendalltau(*columns.values()).statistic)
    untied = math.prod(_untied(column) for column in columns.values())
    return Kendall(tau_b * math.sqrt(untied), tau_b)


def pooled_kendall(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    *,
    bootstraps: int = 200,
    resample: str = "replicates",
    seed: int = 0,
) -> Ranking:
    """Kendall's τ of each measure with the gap over all pairs of networks, as `kendall`, with its interval.

    `table`: one row a network; `measures`, `gap`, `axes` name columns. The draws multiply network i by c_i, so that
    τ = Σ_{i≠j} c_i c_j s_ij / Σ_{i≠j} c_i c_j: no network is compared with itself. `resample`: "replicates", networks
    among those that agree on all axes; "networks", among all; or a column, such as a seed's, whose networks are drawn
    together (of fewer than 5 values it makes intervals too short). Of r units r - 1 are drawn and count r / (r - 1),
    else the spread of few replicates is too small (Rao and Wu 1988). Cost: n² · draws multiplications a measure;
    memory: 7 KB a network.
    NaN, unknown columns, an axis of one value, a measure all tied, nothing to draw from: ValueError.
    """
    sweep = sweep_of(table, measures, gap, axes, bootstraps, resample, seed)
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
    return _ranking(sweep, taus[:, None], support, "mean", (-1.0, 1.0))


def granulated_kendall(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    *,
    bootstraps: int = 200,
    resample: str = "replicates",
    seed: int = 0,
) -> Ranking:
    """ψ_i, the mean over all settings of the other axes of τ along axis i alone, and Ψ, their mean (Jiang et al. 2020).

    `scores` hold Ψ, `parts` ψ an axis. At a setting each two networks that differ in axis i are compared, whatever
    their seeds; two seeds of one configuration are not. Ties count as in `kendall`. A setting that has networks at
    one value of the axis only is left out, and counted in `support` (`left_out`). A setting weighs 1 however many
    networks it holds. Arguments and draws as `pooled_kendall`. Cost: pairs · draws multiplications a measure.
    Errors as there; an axis along which nothing can be compared: ValueError.
    """
    sweep = sweep_of(table, measures, gap, axes, bootstraps, resample, seed)
    rows, draws = [], []
    for axis in sweep.codes:
        pairs, settings = matched_pairs(sweep.codes, axis)
        taus = np.stack([tau(sweep, cell) for _, cell in pairs.groupby("setting")])
        draws.append(np.ma.masked_invalid(taus).mean(0).filled(np.nan))
        rows.append((axis, len(taus), settings - len(taus), len(pairs), True))
    support = pd.DataFrame(rows, columns=["part", "settings", "left_out", "pairs", "used"]).set_index("part")
    return _ranking(sweep, np.stack(draws, 1), support, "mean", (-1.0, 1.0))


def conditional_mutual_information(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    *,
    bootstraps: int = 20,
    resample: str = "replicates",
    seed: int = 0,
) -> Ranking:
    """K = min over sets S of at most two axes of I(V_μ; V_g | U_S) / H(V_g | U_S), from 0 to 1 (Jiang et al. 2020).

    Over ordered pairs (a, b) of networks: V_μ = sgn(μ_a - μ_b), V_g = sgn(g_a - g_b), U_S the values of both on the
    axes S. `scores` hold K, `parts` the ratio a set. Pairs of equal gap are left out (`support`: `pairs`); a tie of
    the measure is a third value. A set that fixes the order of all gaps (H = 0) is not `used`. K is blind to the sign
    of a relation and biased upward where cells are small: read `smallest`, the networks of the smallest group.
    Arguments and draws as `pooled_kendall`. Cost: n² · groups of all sets · draws multiplications a measure; memory:
    6 n² bytes and 4 n · groups · draws. Errors as there.
    """
    sweep = sweep_of(table, measures, gap, axes, bootstraps, resample, seed)
    sets = [given for size in range(3) for given in combinations(sweep.codes, size)]
    groups = [groups_of(sweep.codes, given) for given in sets]
    sizes = [int(group.max()) + 1 for group in groups]
    one_hot = np.concatenate([np.eye(size, dtype=np.float32)[g] for size, g in zip(sizes, groups, strict=True)], 1)
    cells = _cells(sizes)
    weighted = [one_hot * count[:, None] for count in sweep.counts.T.astype(np.float32)]

    higher = list(exceed(sweep.gap))
    totals = [_pair_counts(higher, each) for each in weighted]
    information = np.empty((len(weighted), len(sets), len(sweep.measures)))
    entropy = np.empty((len(weighted), len(sets), 1))
    for k, ranks in enumerate(sweep.ranks.T):
        agree = list(exceed(sweep.gap, ranks))
        oppose = list(exceed(sweep.gap, -ranks)) if len(np.unique(ranks)) < len(ranks) else None
        for d, (each, total) in enumerate(zip(weighted, totals, strict=True)):
            above = _pair_counts(agree, each)
            below = total - above if oppose is None else _pair_counts(oppose, each)
            information[d, :, k], entropy[d, :, 0] = _information(above, below, total, cells)

    support = pd.DataFrame(
        {
            "smallest": [int(np.bincount(group).min()) for group in groups],
            "pairs": int(sum(block.sum(dtype=float) for *_, block in higher)),
            "entropy": entropy[0, :, 0],
            "used": entropy[0, :, 0] > _NO_ENTROPY,
        },
        index=pd.Index([", ".join(given) or "nothing" for given in sets], name="part"),
    )
    ratio = np.divide(information, entropy, out=np.full_like(information, np.nan), where=entropy > _NO_ENTROPY)
    return _ranking(sweep, ratio[:, support["used"]], support, "min", (0.0, 1.0))


def sign_errors(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    *,
    test_samples: int,
    pooled: bool = True,
    bootstraps: int = 200,
    resample: str = "replicates",
    seed: int = 0,
) -> Ranking:
    """Weighted mean of ½ (1 - sgn Δμ · sgn Δg) over the pairs of an environment, the worst one (Dziugaite et al. 2020).

    Environments and weights as `environments`; `parts` hold the error of each that is used, `scores` their maximum,
    `.quantile(0.9)` that quantile. 0 is always right, 1 always wrong, ½ no better than chance; a tie of the measure
    counts ½. Noise alone raises a maximum, in the values as in the draws: hold it against a measure of pure noise.
    The draws keep the weights and the environments; one that a draw leaves empty is left out of that draw.
    Other arguments and draws as `pooled_kendall`. Cost: pairs · draws multiplications a measure.
    Errors as `environments` and `pooled_kendall`; no environment left: ValueError.
    """
    sweep = sweep_of(table, measures, gap, axes, bootstraps, resample, seed)
    support, pairs = _environments(sweep, test_samples, pooled)
    if not support["used"].any():
        raise ValueError(
            f"none of {len(support)} environments has {EFFECTIVE} effective pairs: with test_samples = {test_samples} "
            f"only gaps that differ by {resolvable_difference(test_samples):.3f} count; take more test samples"
            + (" or more seeds" if pooled else ", more seeds, or pooled=True")
        )
    errors = [(1 - tau(sweep, cell)) / 2 for _, cell in pairs.groupby("environment")]
    return _ranking(sweep, np.stack(errors, 1), support, "max", (0.0, 1.0))


def environments(
    table: pd.DataFrame, gap: str, axes: str | Sequence[str], *, test_samples: int, pooled: bool = True
) -> pd.DataFrame:
    """The environments of `sign_errors`, one row each, and which have enough pairs whose gaps can be told apart.

    An environment is one step of one axis, v₁ → v₂, and holds the pairs of networks that take it, all other axes being
    equal: over all settings of the others where `pooled`, else (Dziugaite et al. 2020) at one setting, so that its
    pairs are those of the seeds. Seeds are not matched. Of a pair w = (1 - 2 exp(-2n(Δ/2)²))₊², n the test samples of
    a network and Δ how far the gaps, as fractions, lie apart: Hoeffding's probability that their order is no accident
    of the test samples. It weighs (w - ½)₊. `effective` = (Σw)²/Σw²; `used` with 12 or more. Nothing here filters what
    the seed of a training adds. Unknown columns, NaN, an axis of one value, a gap in percent: ValueError.
    """
    return _environments(sweep_of(table, (), gap, axes, 0, "networks", 0), test_samples, pooled)[0]


def resolvable_difference(test_samples: int) -> float:
    """How far two gaps must lie apart to weigh anything in `sign_errors`: Δ = √(2/n · ln(2 / (1 - √½))) ≈ √(3.84/n)."""
    if test_samples < 1:
        raise ValueError(f"test_samples is {test_samples}; give the number of test samples that the gap rests on")
    return math.sqrt(2 / test_samples * math.log(2 / (1 - math.sqrt(0.5))))


def _environments(sweep: Sweep, test_samples: int, pooled: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The environments, and the pairs of those that are used, with their weights."""
    resolvable_difference(test_samples)
    if np.abs(sweep.gap).max() > 1:
        raise ValueError("gap exceeds 1; give it as a fraction of the samples, not in percent")
    tables, kept = [], []
    for axis in sweep.codes:
        pairs, _ = matched_pairs(sweep.codes, axis)
        difference = np.abs(sweep.gap[pairs["network_1"]] - sweep.gap[pairs["network_2"]])
        pairs["weight"] = np.maximum(_certainty(difference, test_samples) - 0.5, 0)
        cells = pairs.assign(square=pairs["weight"] ** 2).groupby(
            ["value_1", "value_2", *([] if pooled else ["setting"])]
        )
        found = cells.agg(
            low=("network_1", "first"),
            high=("network_2", "first"),
            pairs=("weight", "size"),
            total=("weight", "sum"),
            squares=("square", "sum"),
        )
        effective = (found["total"] ** 2 / found["squares"].where(found["squares"] > 0, 1)).to_numpy()
        used = effective > EFFECTIVE * (1 - 1e-9)
        pairs["environment"] = cells.ngroup()
        pairs = pairs[pairs["environment"].isin(np.flatnonzero(used)) & (pairs["weight"] > 0)]
        kept.append(pairs.assign(environment=pairs["environment"] + sum(map(len, tables))))
        first, second = (sweep.values.iloc[found[name]] for name in ("low", "high"))
        others = [name for name in sweep.codes if name != axis]
        at = [""] * len(found) if pooled else [_at(setting, others) for setting in first.to_dict("records")]
        steps = zip(first[axis], second[axis], at, strict=True)
        tables.append(
            pd.DataFrame(
                {
                    "part": [f"{axis}: {low} → {high}{where}" for low, high, where in steps],
                    "axis": axis,
                    "low": first[axis].to_numpy(object),
                    "high": second[axis].to_numpy(object),
                    "pairs": found["pairs"].to_numpy(),
                    "effective": effective,
                    "used": used,
                }
            )
        )
    return pd.concat(tables).set_index("part"), pd.concat(kept)


def _certainty(difference: Float[np.ndarray, " pairs"], test_samples: int) -> Float[np.ndarray, " pairs"]:
    """(1 - 2 exp(-2n(Δ/2)²))₊²: both gaps lie within Δ/2 of their expectations at least this probably."""
    return np.maximum(1 - 2 * np.exp(-2 * test_samples * (difference / 2) ** 2), 0) ** 2


def _at(setting: dict, others: list[str]) -> str:
    return " at " + ", ".join(f"{name} = {setting[name]}" for name in others) if others else ""


def _ranking(
    sweep: Sweep,
    draws: Float[np.ndarray, "draws parts measures"],
    support: pd.DataFrame,
    summary: str,
    bounds: tuple[float, float],
) -> Ranking:
    if not np.isfinite(draws).any(1).all():
        raise ValueError(
            "resample leaves draws without any pair to compare: too few units are drawn; bootstraps=0 skips it"
        )
    return Ranking(sweep.measures, draws, support, summary, bounds, sweep.unvaried)


def _untied(column: np.ndarray) -> float:
    """The share of pairs that are not tied."""
    n, sizes = len(column), np.unique(column, return_counts=True)[1]
    return 1 - float((sizes * (sizes - 1)).sum()) / (n * (n - 1))


def _cells(sizes: list[int]) -> tuple[Int[np.ndarray, " cells"], Int[np.ndarray, " cells"], Int[np.ndarray, " sets"]]:
    """Rows and columns of the diagonal blocks of these sizes, cell by cell, and where each block begins."""
    ends = np.cumsum(sizes)
    grids = [np.indices((size, size)).reshape(2, -1) + end - size for size, end in zip(sizes, ends, strict=True)]
    rows, columns = np.concatenate(grids, 1)
    return rows, columns, np.cumsum([0, *np.square(sizes)[:-1]])


def _pair_counts(
    blocks: list[tuple], weighted: Float[np.ndarray, "networks groups"]
) -> Float[np.ndarray, "groups groups"]:
    """How many pairs of a matrix in blocks run from each group to each: Wᵀ P W."""
    counts = np.zeros((weighted.shape[1],) * 2)
    for rows, columns, pairs in blocks:
        counts += weighted[rows].T @ (pairs @ weighted[columns])
    return counts


def _information(
    above: Float[np.ndarray, "groups groups"],
    below: Float[np.ndarray, "groups groups"],
    total: Float[np.ndarray, "groups groups"],
    cells: tuple,
) -> tuple[Float[np.ndarray, " sets"], Float[np.ndarray, " sets"]]:
    """I(V_μ; V_g | U_S) and H(V_g | U_S) of each set, in nats, from the pairs a, b with g_a > g_b.

    Of these μ_a > μ_b in `above`, μ_a < μ_b in `below`. The pairs b, a are the same with both signs turned.
    """
    rows, columns, starts = cells
    forth = np.stack([above, total - above - below, below])
    joint = np.stack([forth[:, rows, columns], forth[::-1, columns, rows]])  # signs of g, of μ, cells
    joint = np.maximum(joint, 0)  # float32 sums of unequal weights may differ in their last digit

    def entropy(counts: Float[np.ndarray, "*signs cells"]) -> Float[np.ndarray, " cells"]:
        return -xlogy(counts, counts).reshape(-1, len(rows)).sum(0)

    of_gap, of_measure, of_none = entropy(joint.sum(1)), entropy(joint.sum(0)), entropy(joint.sum((0, 1)))
    information, remaining, pairs = np.add.reduceat(
        [of_gap + of_measure - entropy(joint) - of_none, of_gap - of_none, joint.sum((0, 1))], starts, axis=1
    )
    pairs = np.maximum(pairs, 1e-9)  # a draw may hold none
    return np.maximum(information, 0) / pairs, remaining / pairs
