"""The regret of a choice, by hand and against a loop."""

import numpy as np
import pandas as pd
import pytest
from ranking_cases import grid

from genlib.ranking import kendall, regret


def test_the_regret_of_a_choice_by_hand():
    table = pd.DataFrame({"gap": [0.1, 0.2, 0.6], "right": [1, 2, 3], "wrong": [3, 2, 1], "tied": [1, 1, 2]})
    found = regret(table, ["right", "wrong", "tied", "gap"], "gap")
    # The mean gap is 0.3: the worst pick is 0.5 above the best, chance 0.2, and a tie is the mean of its networks.
    np.testing.assert_allclose(found.iloc[0], [0, 2.5, 0.25, 0])


def test_choices_within_groups_against_a_loop():
    table = grid(seeds=4)
    found = regret(table, ["good", "noise"], "gap", within=["seed", "lr"])
    assert found.index.names == ["seed", "lr"] and len(found) == 8
    for (seed, lr), row in found.iterrows():
        part = table[(table["seed"] == seed) & (table["lr"] == lr)]
        for name in ("good", "noise"):
            pick = part["gap"][part[name].idxmin()]
            expected = (pick - part["gap"].min()) / (part["gap"].mean() - part["gap"].min())
            assert row[name] == pytest.approx(expected)
    assert regret(table, "good", "gap", within="seed").index.tolist() == [0, 1, 2, 3]


def test_chance_has_a_regret_of_one():
    table = grid(seeds=8)
    rng = np.random.default_rng(0)
    coins = pd.DataFrame(rng.normal(size=(len(table), 400)), columns=[f"coin {k}" for k in range(400)])
    found = regret(table[["gap", "seed"]].join(coins), list(coins), "gap", within="seed")
    assert found.to_numpy().mean() == pytest.approx(1, abs=0.03)


def test_a_measure_may_order_well_and_pick_badly():
    gaps = np.arange(1.0, 10.0)
    table = pd.DataFrame({"gap": gaps, "measure": [*gaps[:-1], 0.0]})  # right but for the worst, which it likes best
    assert kendall(table["measure"], table["gap"]).tau > 0.5
    assert regret(table, "measure", "gap")["measure"].item() == 2


def test_a_group_of_equal_gaps_offers_no_choice():
    table = pd.DataFrame({"gap": [0.1, 0.1, 0.2, 0.3], "size": [1, 1, 2, 2], "measure": [1, 2, 3, 4]})
    assert regret(table, "measure", "gap", within="size").index.tolist() == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": "other"}, "table has no column 'other'"),
        ({"within": "place"}, "table has no column 'place'"),
        ({"measures": []}, "measures is empty"),
        ({"within": ["width", "lr", "seed"]}, "within is .* leaves no two networks"),
        ({"gap": "flat"}, "flat: the same value for all networks"),
        ({"measures": "holed"}, r"NaN in holed \(1 of 18\)"),
        ({"within": "holed"}, "within holds holed with NaN"),
    ],
)
def test_what_offers_no_choice_is_refused(options, message):
    table = grid().assign(flat=1.0, holed=lambda t: t["noise"].where(t.index > 0))
    with pytest.raises(ValueError, match=message):
        regret(table, **{"measures": "good", "gap": "gap"} | options)
