"""What it costs to choose a network by a measure."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from genlib.ranking.pairs import cells, require_finite, require_ranks

__all__ = ["picked_among_best", "regret"]


def regret(
    table: pd.DataFrame, measures: str | Sequence[str], gap: str, *, within: str | Sequence[str] = ()
) -> pd.DataFrame:
    """(g_pick − g_min) / (ḡ − g_min): how far the network of the smallest measure is from the best there was.

    One row a choice, one column a measure. A choice is among the networks that agree in the columns `within`, such as
    seed and number of samples; without them it is one among all. 0 is the best of these networks, 1 as good as a pick
    by chance (ḡ is their mean gap), above 1 worse than that. Of several smallest the mean of their gaps counts. A group
    whose gaps are all equal offers no choice and is left out. A measure may agree with the gap on most pairs (τ) and
    still pick badly, for the pick hangs on one end of its order. Cost: one pass over the table.
    ValueError: unknown columns, NaN, infinite gaps, no numbers, one value for all, nothing to choose between.
    """

    def lost(gaps: Float[np.ndarray, " networks"]) -> Float[np.ndarray, " networks"]:
        return (gaps - gaps.min()) / (gaps.mean() - gaps.min())

    return _of_picks(table, measures, gap, within, lost)


def picked_among_best(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    *,
    within: str | Sequence[str] = (),
    share: float | int = 0.2,
) -> pd.DataFrame:
    """1 where the network of the smallest measure is among the best `share` of its group by gap, else 0.

    Rows, columns, groups and errors as `regret`; a column's mean is the rate of good picks (Nakai et al. 2026), which
    one disastrous pick moves no further than a bad one. Of N networks those are among the best of which fewer than
    share · N have a smaller gap, the best always: chance has a rate of ⌈share · N⌉ / N where no gaps are tied. Of
    several smallest the share of them counts that are. A share that is not between 0 and 1: ValueError.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it lies between 0 and 1, such as 0.2 for the best fifth")

    def among_best(gaps: Float[np.ndarray, " networks"]) -> Float[np.ndarray, " networks"]:
        smaller = np.searchsorted(np.sort(gaps), gaps)
        return (smaller / len(gaps) < share).astype(float)

    return _of_picks(table, measures, gap, within, among_best)


def _of_picks(
    table: pd.DataFrame,
    measures: str | Sequence[str],
    gap: str,
    within: str | Sequence[str],
    worth: Callable[[Float[np.ndarray, " networks"]], Float[np.ndarray, " networks"]],
) -> pd.DataFrame:
    """What the networks are worth that the measures pick, their worth being read off the gaps of their group."""
    measures, groups = cells(table, measures, [gap], within)
    columns = list(dict.fromkeys([*measures, gap]))
    require_ranks(table, columns)
    require_finite(table, gap)

    def of_one_choice(group: pd.DataFrame) -> pd.Series:
        gaps, values = group[gap].to_numpy(float), group[measures].to_numpy(float)
        if gaps.min() == gaps.max():
            return pd.Series(np.nan, measures)
        smallest = values == values.min(0)
        return pd.Series((worth(gaps)[:, None] * smallest).sum(0) / smallest.sum(0), measures)

    found = groups[columns].apply(of_one_choice).dropna()
    if found.empty:
        raise ValueError(f"within is {within}, and leaves no two networks of unlike gaps to choose between; name fewer")
    return found.rename_axis(columns="measure")
