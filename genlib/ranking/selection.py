"""What it costs to choose a network by a measure."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from genlib.ranking.pairs import require_numbers

__all__ = ["regret"]


def regret(
    table: pd.DataFrame, measures: str | Sequence[str], gap: str, *, within: str | Sequence[str] = ()
) -> pd.DataFrame:
    """(g_pick − g_min) / (ḡ − g_min): how far the network of the smallest measure is from the best there was.

    One row a choice, one column a measure. A choice is among the networks that agree in the columns `within`, such as
    seed and number of samples; without them it is one among all. 0 is the best of these networks, 1 as good as a pick
    by chance (ḡ is their mean gap), above 1 worse than that. Of several smallest the mean of their gaps counts. A group
    whose gaps are all equal offers no choice and is left out. A measure may agree with the gap on most pairs (τ) and
    still pick badly, for the pick hangs on one end of its order. Cost: one pass over the table.
    ValueError: unknown columns, NaN, a column of no numbers, one value for all, nothing to choose between.
    """
    measures, within = ([names] if isinstance(names, str) else list(names) for names in (measures, within))
    if unknown := [name for name in [*measures, gap, *within] if name not in table.columns]:
        raise ValueError(f"table has no column {', '.join(map(repr, unknown))}; it has {', '.join(map(str, table))}")
    if not measures:
        raise ValueError("measures is empty; name at least one column to choose by")
    columns = list(dict.fromkeys([*measures, gap]))
    require_numbers(table, columns)
    if missing := [name for name in within if table[name].isna().any()]:
        raise ValueError(f"within holds {', '.join(missing)} with NaN; a choice is among networks that agree in it")
    groups = table.groupby(within or np.zeros(len(table), int))
    found = groups[columns].apply(_of_one_choice, measures, gap).dropna()
    if found.empty:
        raise ValueError(f"within is {within}, and leaves no two networks of unlike gaps to choose between; name fewer")
    return found.rename_axis(columns="measure")


def _of_one_choice(group: pd.DataFrame, measures: list[str], gap: str) -> pd.Series:
    gaps, values = group[gap].to_numpy(float), group[measures].to_numpy(float)
    smallest = values == values.min(0)
    picked = (gaps[:, None] * smallest).sum(0) / smallest.sum(0)
    room = gaps.mean() - gaps.min()
    return pd.Series((picked - gaps.min()) / (room if room > 0 else np.nan), measures)
