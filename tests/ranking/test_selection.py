"""What a choice costs and how often it is good, by hand and against a loop."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_cases import grid

from genlib.ranking import kendall, picked_among_best, regret


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


def test_picks_among_the_best_by_hand():
    table = pd.DataFrame({"gap": [0.1, 0.2, 0.2, 0.6, 0.7], "first": [1, 2, 3, 4, 5], "second": [2, 1, 3, 4, 5]})
    table = table.assign(tied=[1, 1, 1, 2, 2], last=-table["first"])
    names = ["first", "second", "tied", "last"]
    # A fifth of five is the best alone; of two fifths the second is one, and with it the third, whose gap is the same.
    np.testing.assert_allclose(picked_among_best(table, names, "gap").iloc[0], [1, 0, 1 / 3, 0])
    np.testing.assert_allclose(picked_among_best(table, names, "gap", share=0.4).iloc[0], [1, 1, 1, 0])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.7])
def test_picks_within_groups_against_a_loop(share):
    table = grid(seeds=10)
    found = picked_among_best(table, ["good", "noise"], "gap", within="lr", share=share)
    for lr, row in found.iterrows():
        part = table[table["lr"] == lr].sort_values("gap")  # 30 networks
        for name in ("good", "noise"):
            assert row[name] == (part[name].idxmin() in part.index[: {0.05: 2, 0.2: 6, 0.7: 21}[share]])


def test_chance_is_among_the_best_fifth_one_time_in_five():
    table = grid(seeds=10)
    rng = np.random.default_rng(0)
    coins = pd.DataFrame(rng.normal(size=(len(table), 600)), columns=[f"coin {k}" for k in range(600)])
    found = picked_among_best(table[["gap"]].join(coins), [*coins, "gap"], "gap")
    assert found["gap"].item() == 1
    assert found[list(coins)].to_numpy().mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 600))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 6), min_size=3, max_size=12).filter(lambda gaps: len(set(gaps)) > 1), st.integers(0, 99))
def test_picks_hang_on_orders_alone_and_regret_on_no_unit(gaps, seed):
    measure = np.random.default_rng(seed).permutation(len(gaps))
    table = pd.DataFrame({"gap": gaps, "measure": measure})
    other = pd.DataFrame({"gap": 3.0 * table["gap"] - 1, "measure": np.exp(measure)}).sample(frac=1, random_state=seed)
    for worth in (regret, picked_among_best):
        np.testing.assert_allclose(worth(other, "measure", "gap"), worth(table, "measure", "gap"), atol=1e-12)
    warped = table.assign(gap=table["gap"] ** 3)
    pd.testing.assert_frame_equal(*(picked_among_best(t, "measure", "gap") for t in (table, warped)))


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
        ({"gap": "endless"}, "gap: endless holds infinite values"),
    ],
)
def test_what_offers_no_choice_is_refused(options, message):
    table = grid().assign(flat=1.0, holed=lambda t: t["noise"].where(t.index > 0))
    table["endless"] = table["gap"].where(table.index > 0, np.inf)
    with pytest.raises(ValueError, match=message):
        regret(table, **{"measures": "good", "gap": "gap"} | options)


@pytest.mark.parametrize("share", [0, 1, -0.2, 20])
def test_a_share_lies_between_nothing_and_all(share):
    with pytest.raises(ValueError, match=f"share is {share}; it lies between 0 and 1"):
        picked_among_best(grid(), "good", "gap", share=share)
