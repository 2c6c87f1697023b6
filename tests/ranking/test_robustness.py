"""Sign errors and their environments, against a loop over pairs."""

import itertools
import math

import numpy as np
import pytest
from ranking_cases import AXES, MEASURES, errors, grid, loop_tau, ragged, rows_and_counts, step

from genlib.ranking import environments, resolvable_difference


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("resample", ["replicates", "networks", "seed"])
def test_sign_errors_against_a_loop(pooled, resample):
    table = ragged(seeds=8).assign(gap=lambda t: t["gap"] + 0.07 * np.log2(t["width"]) - 0.5)
    table = table.astype({"width": float})
    rows, counts = rows_and_counts(table, resample)
    found = errors(table, MEASURES, "gap", AXES, pooled=pooled, bootstraps=3, resample=resample)

    def weight(a, b):
        certain = max(0, 1 - 2 * math.exp(-2 * 10_000 * ((a["gap"] - b["gap"]) / 2) ** 2)) ** 2
        return max(0, certain - 0.5)

    used = []
    for axis, other in (("width", "lr"), ("lr", "width")):
        for low, high in itertools.combinations(sorted(set(table[axis])), 2):
            for at in [None] if pooled else sorted(set(table[other])):
                compared = step(axis, other, at=at, ends=(low, high), weight=weight)
                weights = np.array([compared(a, b) for a, b in itertools.combinations(rows, 2)])
                if weights.any() and weights.sum() ** 2 / (weights**2).sum() >= 12:
                    used.append(f"{axis}: {low} → {high}" + ("" if pooled else f" at {other} = {at}"))
                    for draw, count in enumerate(counts):
                        taus = [loop_tau(rows, count, measure, compared) for measure in MEASURES]
                        expected = [np.nan if tau is None else (1 - tau) / 2 for tau in taus]
                        np.testing.assert_allclose(found.draws[draw, len(used) - 1], expected, atol=1e-9)
    assert used == list(found.support.index[found.support["used"]])
    assert 0 < len(used) < len(found.support)
    np.testing.assert_allclose(found.scores["value"], found.draws[0].max(0))
    np.testing.assert_allclose(found.quantile(0.5)["value"], np.median(found.draws[0], 0))


def test_environments_of_few_test_samples_fall_away():
    table = grid(seeds=6)
    used = {n: environments(table, "gap", AXES, test_samples=n)["used"].sum() for n in (200, 1000, 100_000)}
    assert used[200] < used[1000] < used[100_000] == 4
    with pytest.raises(ValueError, match=r"none of 4 environments .* differ by 0\.277"):
        errors(table, "good", "gap", AXES, test_samples=50)


def test_an_environment_at_one_setting_needs_four_seeds_a_side():
    for seeds, used in ((3, 0), (4, 12)):
        axes = {"width": [32, 64, 128, 256], "lr": [0.01, 0.1]}
        table = grid(seeds=seeds, noise=1e-4, **axes)
        found = environments(table, "gap", ["width", "lr"], test_samples=10_000_000, pooled=False)
        of_width = found[found["axis"] == "width"]
        assert len(of_width) == 12 and of_width["used"].sum() == used
        np.testing.assert_allclose(of_width["effective"], seeds**2, rtol=1e-6)


def test_the_resolvable_difference_is_where_the_weight_begins():
    for n in (500, 10_000):
        difference = resolvable_difference(n)
        assert (1 - 2 * math.exp(-2 * n * (difference / 2) ** 2)) ** 2 == pytest.approx(0.5)
        assert difference == pytest.approx(math.sqrt(3.84 / n), rel=1e-3)


def test_gaps_in_percent_are_refused():
    with pytest.raises(ValueError, match="not in percent"):
        environments(grid().assign(gap=lambda t: 100 * t["gap"]), "gap", AXES, test_samples=1000)
    with pytest.raises(ValueError, match="test_samples is 0"):
        environments(grid(), "gap", AXES, test_samples=0)
