"""Rankings of 45 measures over 2,000 networks, against scipy and a histogram for each draw.

There is no network to pass forward here: a pass is the bare matrix products. All of it is to take a minute at most.
"""

import itertools
import time

import numpy as np
import pandas as pd
from scipy import stats
from threadpoolctl import threadpool_limits
from timing import Row

from genlib.ranking import conditional_mutual_information, granulated_kendall, pooled_kendall, sign_errors

__all__ = ["rows"]

AXES = {"width": [32, 64, 128], "depth": [1, 2, 3], "lr": [0.01, 0.05], "batch": [16, 64], "n": [250, 500, 1000]}
NETWORKS, MEASURES = 2000, [f"measure {k}" for k in range(45)]


def rows() -> list[Row]:
    """All rows of this file."""
    table = sweep()
    with threadpool_limits(1):  # numpy's own threads, which the clock of the process counts while they wait
        return [kendall_row(table, draws=200), information_row(table, draws=20)]


def sweep() -> pd.DataFrame:
    """A made-up sweep: gaps that fall with every axis, measures that follow them more or less, a tenth of them tied."""
    rng = np.random.default_rng(0)
    cells = list(itertools.product(*AXES.values()))
    table = pd.DataFrame([cells[k % len(cells)] for k in range(NETWORKS)], columns=list(AXES))
    logs = np.log2(table / table.min())
    gap = 0.6 - 0.02 * logs.sum(axis=1) + rng.normal(0, 0.014, NETWORKS)
    noise = np.linspace(0.001, 0.2, len(MEASURES)) * rng.normal(size=(NETWORKS, len(MEASURES)))
    values = gap.to_numpy()[:, None] + noise
    values[:, ::10] = values[:, ::10].round(2)
    return table.assign(gap=gap.round(4)).join(pd.DataFrame(values, columns=MEASURES))


def kendall_row(table: pd.DataFrame, *, draws: int) -> Row:
    """Pooled and granulated tau and sign-errors with their intervals, against scipy's tau of every draw alone."""
    arguments = (table, MEASURES, "gap", list(AXES))

    def ours() -> None:
        pooled_kendall(*arguments, bootstraps=draws)
        granulated_kendall(*arguments, bootstraps=draws)
        sign_errors(*arguments, test_samples=10_000, bootstraps=draws)

    def theirs() -> None:
        for measure in MEASURES:
            stats.kendalltau(table[measure], table["gap"])

    signs, counts = (np.ones(shape, np.float32) for shape in ((NETWORKS, NETWORKS), (NETWORKS, draws)))
    product = seconds(lambda: signs @ counts) / 2 * len(MEASURES)
    own = seconds(ours)
    case = f"{len(MEASURES)} measures, {NETWORKS} networks, {draws} draws"
    name, baseline = "pooled_kendall, granulated_kendall, sign_errors", "scipy.stats.kendalltau of each draw, pooled"
    ratio = draws * seconds(theirs) / own
    return Row(name, case, baseline, ratio, None, own / product, 1.0, passes_at_most=30.0 / product)


def information_row(table: pd.DataFrame, *, draws: int) -> Row:
    """Conditional mutual information with its intervals, against a histogram over all pairs for each set and draw."""
    sets = [given for size in range(3) for given in itertools.combinations(AXES, size)]
    signs = [np.sign(column[:, None] - column).astype(int) for column in table[["gap", MEASURES[0]]].to_numpy().T]
    groups = [table.groupby(list(given)).ngroup().to_numpy() for given in sets if given]
    joint = 3 * signs[0] + signs[1] + 4

    def theirs() -> None:
        for group in groups:
            np.bincount((9 * (group[:, None] * (group.max() + 1) + group) + joint).ravel())

    higher = np.ones((NETWORKS, NETWORKS), np.float32)
    one_hot = np.ones((NETWORKS, 1 + sum(group.max() + 1 for group in groups)), np.float32)
    products = seconds(lambda: higher @ one_hot) / 2 * len(MEASURES) * (1 + draws)
    own = seconds(lambda: conditional_mutual_information(table, MEASURES, "gap", list(AXES), bootstraps=draws))
    case = f"{len(MEASURES)} measures, {NETWORKS} networks, {draws} draws"
    ratio = (1 + draws) * len(MEASURES) * seconds(theirs) / own
    baseline = "a histogram of all pairs for each set and draw"
    return Row(
        "conditional_mutual_information",
        case,
        baseline,
        ratio,
        None,
        own / products,
        1.0,
        passes_at_most=60.0 / products,
    )


def seconds(function) -> float:
    """CPU seconds of the faster of two calls."""
    times = []
    for _ in range(2):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)
