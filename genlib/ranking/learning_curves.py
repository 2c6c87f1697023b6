"""How measures change with the number of training samples, and how much that hangs on everything else."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from genlib.measures import CATALOGUE
from genlib.ranking.pairs import cells, require_numbers

__all__ = ["exponents", "fragility", "is_logarithm"]

_IN_OTHER_WORDS = ("spectral_start", "log_volume")  # logarithms whose formulas do not begin with one


def exponents(
    table: pd.DataFrame, measures: str | Sequence[str], *, axis: str = "n", within: str | Sequence[str] = ()
) -> pd.DataFrame:
    """The slopes b = d ln μ / d ln n of learning curves, so that μ ∝ n^b: one row a cell, one column a measure.

    A cell holds the networks that agree in the columns `within`, such as width and learning rate; without them all
    networks are one. The slope is that of least squares over its networks, on the logarithm of the column `axis`. Rows
    of the catalogue that are logarithms already (`is_logarithm`) are taken as they are. A bound √(μ/n)
    goes with n^((b−1)/2): it falls where b < 1 alone. Zhang and Louis (2025) ask what else turns such slopes round, and
    `fragility` counts it. Give the measures raw, as `evaluate` returns them. Cost: one pass over the table.
    ValueError: unknown columns, NaN, no positive n, one n alone, a cell that lacks one, a measure without a logarithm.
    """
    measures, groups = cells(table, measures, [axis], within)
    require_numbers(table, [axis, *measures])
    sizes = sorted(table[axis].unique().tolist())
    if len(sizes) < 2 or not sizes[0] > 0:
        raise ValueError(f"axis: {axis} holds {sizes}; a learning curve takes two positive values or more")
    for cell, held in groups[axis].unique().items():
        if lacking := [size for size in sizes if size not in held]:
            raise ValueError(f"within: the cell {cell} has no network of {axis} {lacking}; leave that cell out")
    with np.errstate(divide="ignore", invalid="ignore"):
        values = table[measures].astype(float)
        logs = pd.DataFrame({name: values[name] if is_logarithm(name) else np.log(values[name]) for name in measures})
    if without := [name for name in measures if not np.isfinite(logs[name]).all()]:
        raise ValueError(f"measures: {', '.join(without)} is not positive and finite everywhere; leave it out")
    cell = groups.ngroup()
    x = np.log(table[axis].astype(float))
    x -= x.groupby(cell).transform("mean")
    logs -= logs.groupby(cell).transform("first")  # what is constant has a slope of 0, without a sign from rounding
    slopes = logs.mul(x, axis=0).groupby(cell).sum().div((x**2).groupby(cell).sum(), axis=0)
    return slopes.set_axis(groups.size().index).rename_axis(columns="measure")


def fragility(exponents: pd.DataFrame) -> pd.DataFrame:
    """How much the slopes of learning curves hang on the cell, one row a measure: their median, range, and signs.

    `exponents`: as the function of that name returns them. `median`, `low` and `high` over the cells; `minority`: the
    share of cells whose sign is the rarer one, from 0, all alike, to ½; a slope of zero has neither sign. A table
    without cells, or with NaN: ValueError.
    """
    if exponents.empty or exponents.isna().any(axis=None):
        raise ValueError("exponents has no rows or holds NaN; give what ranking.exponents returns")
    return pd.DataFrame(
        {
            "median": exponents.median(),
            "low": exponents.min(),
            "high": exponents.max(),
            "minority": np.minimum((exponents > 0).mean(), (exponents < 0).mean()),
        }
    )


def is_logarithm(name: str) -> bool:
    """Whether the row of this name is stored as the logarithm of its measure, as products of norms are."""
    return name in CATALOGUE and (CATALOGUE[name].formula.startswith(r"\ln") or name in _IN_OTHER_WORDS)
