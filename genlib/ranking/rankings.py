"""A score of each measure, the parts that it sums up, and its interval."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from genlib.ranking.pairs import Sweep

__all__ = ["Ranking", "ranking_of"]

_SUMMARIES = {"mean": np.nanmean, "min": np.nanmin, "max": np.nanmax}


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


def ranking_of(
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
