"""What a measure tells of the gap's order, given the axes."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import xlogy

from genlib.ranking.pairs import exceed, groups_of, sweep_of
from genlib.ranking.rankings import Ranking, ranking_of

__all__ = ["conditional_mutual_information"]

_NO_ENTROPY = 1e-6  # nats a pair: below it rounding is all there is


def conditional_mutual_information(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    axes: str | Sequence[str],
    *,
    bootstraps: int | str = 20,
    resample: str = "replicates",
    seed: int = 0,
    adjusted: bool = False,
) -> Ranking:
    """K = min over sets S of at most two axes of I(V_μ; V_g | U_S) / H(V_g | U_S), from 0 to 1 (Jiang et al. 2020).

    Over ordered pairs (a, b) of networks: V_μ = sgn(μ_a - μ_b), V_g = sgn(g_a - g_b), U_S the values of both on the
    axes S. `scores` hold K, `parts` the ratio a set. Pairs of equal gap are left out (`support`: `pairs`); a tie of
    the measure is a third value. A set that fixes the order of all gaps (H = 0) is not `used`. K is blind to the sign
    of a relation and biased upward where cells are small: read `smallest`, the networks of the smallest group.
    Arguments and draws as `pooled_kendall`. Cost: n² · groups of all sets · draws multiplications a measure; memory:
    6 n² bytes and 4 n · groups · draws. Errors as there.
    """
    sweep = sweep_of(table, measures, gap, axes, bootstraps, resample, seed, adjusted)
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
    return ranking_of(sweep, ratio[:, support["used"]], support, "min", (0.0, 1.0))


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
