"""Draws of networks: within configurations or of whole seeds, as wide as a standard error says."""

import numpy as np
import pandas as pd
import pytest
from ranking_cases import AXES, errors, grid, rows_and_counts

from genlib.ranking import conditional_mutual_information, granulated_kendall, pooled_kendall


def test_draws_are_within_configurations_or_whole_seeds():
    table = grid(seeds=5)
    rows, counts = rows_and_counts(table, "replicates", bootstraps=20)
    totals = pd.DataFrame(rows).assign(count=counts[1]).groupby(AXES)["count"].sum()
    np.testing.assert_allclose(totals, 5)
    rows, counts = rows_and_counts(table, "seed", bootstraps=20)
    assert (pd.DataFrame(rows).assign(count=counts[1]).groupby("seed")["count"].nunique() == 1).all()
    _, counts = rows_and_counts(table, "networks", bootstraps=20)
    np.testing.assert_allclose(counts.sum(1), len(table))


@pytest.mark.parametrize("seeds", [2, 5])
def test_draws_spread_a_mean_as_its_standard_error_says(seeds):
    # ordinary draws of r out of r would fall short by (r - 1) / r, half of the variance at two seeds
    rows, counts = rows_and_counts(grid(seeds=seeds), bootstraps=2000)
    of_one = [row["width"] == 64 and row["lr"] == 0.1 for row in rows]
    values = np.array([row["noise"] for row in rows])[of_one]
    means = counts[1:, of_one] @ values / counts[1:, of_one].sum(1)
    assert means.var() == pytest.approx(values.var(ddof=1) / seeds, rel=0.1)


@pytest.mark.parametrize(
    ("function", "networks"),
    [(pooled_kendall, 2), (granulated_kendall, 16), (conditional_mutual_information, 2), (errors, 16)],
)
def test_draws_without_a_pair_are_refused(function, networks):
    table = pd.DataFrame({"width": [1, 2] * 8, "seed": [0, 1] * 8, "gap": np.linspace(0.1, 0.9, 16)})
    table = table.assign(good=-table["gap"]).head(networks)
    with pytest.raises(ValueError, match="resample leaves draws"):
        function(table, "good", "gap", "width", resample="seed")
