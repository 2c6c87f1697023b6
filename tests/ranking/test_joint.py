"""Pairs that several measures agree on, and the fronts that they make, by hand and against loops."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_cases import MEASURES, grid, ragged, sign

from genlib.ranking import kendall, pareto_fronts, regret, together

POINTS = st.lists(st.tuples(*3 * [st.integers(0, 4)]), min_size=2, max_size=14)


def loop_together(table, measures):
    pairs = compared = contradicted = 0
    for a, b in itertools.combinations(table.to_dict("records"), 2):
        if a["gap"] != b["gap"]:
            pairs += 1
            signs = {sign(a[name] - b[name]) for name in measures}
            if len(signs) == 1 and 0 not in signs:
                compared += 1
                contradicted += signs != {sign(a["gap"] - b["gap"])}
    return pairs, compared, contradicted


def loop_fronts(points):
    """Peeled one by one: who is dominated by nobody that is left."""
    fronts, left, front = {}, set(range(len(points))), 0
    while left:
        peeled = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        fronts |= dict.fromkeys(peeled, front)
        left, front = left - peeled, front + 1
    return [fronts[i] for i in range(len(points))]


def dominates(p, q):
    return p != q and all(x <= y for x, y in zip(p, q, strict=True))


def test_pairs_together_by_hand():
    table = pd.DataFrame({"gap": [0.1, 0.2, 0.3, 0.3], "a": [1, 3, 2, 4], "b": [2, 3, 1, 3]})
    # Five pairs of unlike gaps: 12 agreed and right, 13 not agreed, 14 right, 23 agreed and wrong, 24 tied in b.
    found = together(table, ["a", "b"], "gap").iloc[0]
    np.testing.assert_allclose(found, [5, 3 / 5, 1 / 3])
    np.testing.assert_allclose(together(table, "a", "gap").iloc[0], [5, 1, 1 / 5])


def test_pairs_together_against_a_loop():
    table = ragged(seeds=6)
    for measures in (["good", "coarse"], ["coarse", "noise"], MEASURES):
        found = together(table, measures, "gap", within=["lr"])
        for lr, row in found.iterrows():
            pairs, compared, contradicted = loop_together(table[table["lr"] == lr], measures)
            np.testing.assert_allclose(row, [pairs, compared / pairs, contradicted / compared])


def test_blocks_of_pairs_add_up():
    table = grid(seeds=100)  # more networks than one block of rows holds
    pairs, compared, contradicted = loop_together(table, ["good", "noise"])
    np.testing.assert_allclose(
        together(table, ["good", "noise"], "gap").iloc[0], [pairs, compared / pairs, contradicted / compared]
    )


def test_oracles_are_never_contradicted_and_noise_every_second_time():
    table = grid(seeds=60).assign(oracle=lambda t: 3 * t["gap"], other=np.random.default_rng(1).normal(size=360))
    assert together(table, ["oracle", "noise"], "gap")["contradicted"].item() == 0
    assert together(table, ["other", "noise"], "gap")["contradicted"].item() == pytest.approx(0.5, abs=0.05)
    # Two oracles of independent errors: where both agree they err less than either alone.
    table = table.assign(a=table["gap"] + 0.03 * table["noise"], b=table["gap"] + 0.03 * table["other"])
    alone = [together(table, name, "gap")["contradicted"].item() for name in ("a", "b")]
    found = together(table, ["a", "b"], "gap").iloc[0]
    assert found["contradicted"] < 0.7 * min(alone) and found["comparable"] < 0.8
    front = pareto_fronts(table, ["a", "b"])
    taus = [kendall(table[name], table["gap"]).tau_b for name in ("a", "b")]
    assert kendall(front, table["gap"]).tau_b > max(taus) + 0.03


def test_a_measure_with_itself_is_that_measure_alone():
    table = grid(seeds=8).assign(again=lambda t: t["good"] ** 3)
    pd.testing.assert_frame_equal(together(table, ["good", "again"], "gap"), together(table, "good", "gap"))
    assert kendall(pareto_fronts(table, ["good", "again"]), table["good"]).tau == 1


def test_fronts_by_hand():
    table = pd.DataFrame({"a": [1, 2, 3, 3, 2, 4], "b": [3, 1, 3, 3, 2, 1]}, index=[7, 3, 3, 0, 1, 5])
    # (1,3) and (2,1) first; (2,2) and (4,1) lie above (2,1) alone, and the two (3,3) above (2,2).
    found = pareto_fronts(table, ["a", "b"])
    assert found.tolist() == [0, 0, 2, 2, 1, 1] and found.index.tolist() == [7, 3, 3, 0, 1, 5]


def test_fronts_within_groups_are_those_of_each_group():
    table = ragged(seeds=6)
    found = pareto_fronts(table, MEASURES, within=["width", "lr"])
    for _, part in table.groupby(["width", "lr"]):
        points = list(part[MEASURES].itertuples(index=False, name=None))
        assert found[part.index].tolist() == loop_fronts(points)


def test_the_front_is_a_measure_of_its_own():
    table = grid(seeds=6).assign(wrong=lambda t: -t["good"])
    table["front"] = pareto_fronts(table, ["good", "coarse"], within="seed")
    found = regret(table, ["front", "good", "noise"], "gap", within="seed").mean()
    assert found["front"] < 0.5 < found["noise"]
    # Opposites have one front: no order, and a pick by chance.
    table["front"] = pareto_fronts(table, ["good", "wrong"])
    assert set(table["front"]) == {0}


@settings(max_examples=60)
@given(POINTS.filter(lambda points: all(len(set(column)) > 1 for column in zip(*points, strict=True))))
def test_fronts_of_random_points_against_peeling(points):
    table = pd.DataFrame(points, columns=["a", "b", "c"])
    for names in (["a", "b"], ["a", "b", "c"]):
        expected = loop_fronts([tuple(point[: len(names)]) for point in points])
        assert pareto_fronts(table, names).tolist() == expected
        warped = np.exp(table) * 2 - 5
        assert pareto_fronts(warped, names).tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["good", "other"]}, "table has no column 'other'"),
        ({"within": "place"}, "table has no column 'place'"),
        ({"measures": []}, "measures is empty"),
        ({"measures": ["good", "flat"]}, "flat: the same value for all networks"),
        ({"measures": ["good", "word"]}, "word: no column of numbers"),
        ({"measures": ["good", "holed"]}, r"NaN in holed \(1 of 18\)"),
        ({"within": "holed"}, "within holds holed with NaN"),
        ({"table": grid().head(1)}, "1 network; a ranking takes at least two"),
    ],
)
def test_what_makes_no_order_is_refused(options, message):
    table = grid().assign(flat=1.0, word="a", holed=lambda t: t["noise"].where(t.index > 0))
    options = {"table": table, "measures": ["good", "noise"]} | options
    with pytest.raises(ValueError, match=message):
        together(gap="gap", **options)
    with pytest.raises(ValueError, match=message):
        pareto_fronts(**options)


def test_groups_without_a_comparable_pair_are_refused():
    table = grid().assign(wrong=lambda t: -t["good"])
    with pytest.raises(ValueError, match="good, wrong compare no pair of unlike gaps in 1 of 1 groups, such as 0"):
        together(table, ["good", "wrong"], "gap")
    with pytest.raises(ValueError, match=r"in 18 of 18 groups, such as \(32, 0.01, 0\); name fewer columns within"):
        together(table, "good", "gap", within=["width", "lr", "seed"])
