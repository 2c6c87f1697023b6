"""Conditional mutual information, against a loop over pairs."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from ranking_cases import AXES, MEASURES, grid, ragged, rows_and_counts, sign

from genlib.ranking import conditional_mutual_information


def loop_information(rows, count, measure, given):
    """I(V_μ; V_g | U) / H(V_g | U) from a table of counts."""
    seen = Counter()
    for (a, ca), (b, cb) in itertools.permutations(list(zip(rows, count, strict=True)), 2):
        if a["gap"] != b["gap"]:
            cell = tuple((a[name], b[name]) for name in given)
            seen[cell, sign(a[measure] - b[measure]), sign(a["gap"] - b["gap"])] += ca * cb
    total = sum(seen.values())
    cells, of_measure, of_gap = Counter(), Counter(), Counter()
    for (cell, m, g), weight in seen.items():
        cells[cell] += weight
        of_measure[cell, m] += weight
        of_gap[cell, g] += weight
    information = sum(
        weight / total * math.log(weight * cells[cell] / (of_measure[cell, m] * of_gap[cell, g]))
        for (cell, m, g), weight in seen.items()
        if weight
    )
    entropy = -sum(w / total * math.log(w / cells[cell]) for (cell, _), w in of_gap.items() if w)
    return information / entropy if entropy > 1e-9 else None


@pytest.mark.parametrize("resample", ["replicates", "networks", "seed"])
def test_information_against_a_loop(resample):
    table = ragged(seeds=4)
    rows, counts = rows_and_counts(table, resample)
    found = conditional_mutual_information(table, MEASURES, "gap", AXES, bootstraps=3, resample=resample)
    assert list(found.support.index) == ["nothing", "width", "lr", "width, lr"]
    assert found.support["used"].all()
    for part, given_axes in enumerate([(), ("width",), ("lr",), ("width", "lr")]):
        for draw, count in enumerate(counts):
            expected = [loop_information(rows, count, measure, given_axes) for measure in MEASURES]
            np.testing.assert_allclose(found.draws[draw, part], expected, atol=1e-5)
    np.testing.assert_allclose(found.scores["value"], found.draws[0].min(0))
    assert (found.support["pairs"] == sum(a["gap"] != b["gap"] for a, b in itertools.combinations(rows, 2))).all()
    assert found.support["smallest"].to_dict() == {"nothing": 14, "width": 2, "lr": 5, "width, lr": 1}


def test_sets_of_axes_that_fix_the_order_are_left_out():
    table = grid(seeds=1)
    found = conditional_mutual_information(table, "noise", "gap", AXES, resample="networks")
    assert found.support["used"].to_dict() == {"nothing": True, "width": True, "lr": True, "width, lr": False}
    assert len(found.parts) == 3


def test_information_of_at_most_two_axes():
    table = grid(width=[32, 64], lr=[0.01, 0.1], batch=[16, 64], depth=[1, 2])
    support = conditional_mutual_information(table, "good", "gap", ["width", "lr", "batch", "depth"]).support
    assert len(support) == 1 + 4 + 6
