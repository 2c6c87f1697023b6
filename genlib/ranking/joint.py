"""Several measures together: where all agree on a pair, and the order that they make."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from genlib.ranking.pairs import cells, exceed, require_ranks

__all__ = ["pareto_fronts", "together"]


def together(
    table: pd.DataFrame, measures: str | Sequence[str], gap: str, *, within: str | Sequence[str] = ()
) -> pd.DataFrame:
    """How many pairs of networks measures agree on, and how often the gap contradicts what they agree on.

    One row a group of networks that agree in the columns `within`; without them one row. `pairs`: how many have unlike
    gaps; `comparable`: the share of them in which one network is strictly below in all `measures` (a tie in one of them
    compares nothing); `contradicted`: the share of these in which that one has the *larger* gap, ½ for coins. Read
    both: measures that say the same compare many pairs, and err as each alone. Of one measure: its errors on pairs that
    it does not tie. Our reading of the Pareto analysis of Cheng et al. (2026), whose definition was not to be had.
    Cost: pairs · measures comparisons, in blocks.
    ValueError: unknown columns, NaN, a column of no numbers, one value for all, a group without a comparable pair.
    """
    measures, groups = cells(table, measures, [gap], within)
    columns = list(dict.fromkeys([*measures, gap]))
    require_ranks(table, columns)

    def of_one_group(group: pd.DataFrame) -> pd.Series:
        ordered = group.sort_values(gap)[columns]
        gaps, values = ordered[gap].to_numpy(float), ordered[measures].to_numpy(float).T
        pairs, confirmed, contradicted = (
            sum(np.count_nonzero(block) for *_, block in exceed(gaps, *keys)) for keys in ((), values, -values)
        )
        compared = confirmed + contradicted
        shares = (compared / pairs, contradicted / compared) if compared else (np.nan, np.nan)
        return pd.Series([pairs, *shares], ["pairs", "comparable", "contradicted"])

    found = groups[columns].apply(of_one_group).astype({"pairs": int})
    if (none := found["contradicted"].isna()).any():
        raise ValueError(
            f"measures: {', '.join(measures)} compare no pair of unlike gaps in {none.sum()} of {len(found)} groups, "
            f"such as {found.index[none].tolist()[0]}; name fewer columns within, or other measures"
        )
    return found


def pareto_fronts(table: pd.DataFrame, measures: str | Sequence[str], *, within: str | Sequence[str] = ()) -> pd.Series:
    """The order that several measures make together: the index of each network's Pareto front, a measure of its own.

    A network dominates another when it is nowhere above and somewhere below it in the `measures`; one of index k is at
    the end of a chain of k that dominate each the next, and of no longer one (non-dominated sorting, Deb et al. 2002):
    0 is dominated by none, and two of one index are tied, those of equal values among them. Of one measure it is the
    order itself. `within`: columns in which networks must agree to be compared; without them all are. The index of the
    table stays, so that a column may be made of it. Cost: networks² · measures comparisons, memory that of a column.
    Whether the joint order is any better than the measures' own, `kendall` and `regret` tell.
    ValueError: unknown columns, NaN, a column of no numbers, one value for all.
    """
    measures, groups = cells(table, measures, [], within)
    require_ranks(table, measures)
    found = pd.Series(0, table.index, name="front")
    for places in groups.indices.values():
        values, inverse = np.unique(table[measures].to_numpy(float)[places], axis=0, return_inverse=True)
        fronts = np.zeros(len(values), int)
        for i, value in enumerate(values):  # in lexicographic order: who dominates it came before
            dominating = (values[:i] <= value).all(1)
            fronts[i] = fronts[:i][dominating].max(initial=-1) + 1
        found.iloc[places] = fronts[inverse.ravel()]
    return found
