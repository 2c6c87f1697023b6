"""Slopes of learning curves, by hand, planted, and against numpy's fit; and how fragile they are."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genlib.measures import CATALOGUE
from genlib.ranking import adjusted, exponents, fragility, is_logarithm


def curves(seeds=3, noise=0.0, sizes=(100, 200, 800), **slopes):
    """Networks of two widths; `slopes` of each measure at either, and a start that hangs on the width."""
    rng = np.random.default_rng(0)
    rows = [(width, n, seed) for width in (8, 16) for n in sizes for seed in range(seeds)]
    table = pd.DataFrame(rows, columns=["width", "n", "seed"])
    for name, (narrow, wide) in slopes.items():
        slope = np.where(table["width"] == 8, 1.0 * narrow, 1.0 * wide)
        table[name] = table["width"] * table["n"] ** slope * np.exp(rng.normal(0, noise, len(table)))
    return table


def test_slopes_by_hand():
    table = pd.DataFrame({"n": [1, 2, 4], "mine": [1.0, 8.0, 4.0], "path": [0.0, math.log(8), math.log(4)]})
    # ln μ rises by 0, 3, 2 (units of ln 2) at 0, 1, 2: the slope is (2 − 0) / 2; a path norm is a logarithm already.
    np.testing.assert_allclose(exponents(table, ["mine", "path"]), [[1, 1]])
    np.testing.assert_allclose(exponents(table.head(2), "mine"), [[3]])


def test_planted_slopes_come_out_by_cell():
    table = curves(l2=(1.5, -0.5), flatness=(0.0, 2.0)).sample(frac=1, random_state=0)
    table["path"] = 2 * np.log(table["l2"])
    found = exponents(table, ["l2", "flatness", "path"], within="width")
    assert found.index.tolist() == [8, 16] and found.columns.tolist() == ["l2", "flatness", "path"]
    np.testing.assert_allclose(found, [[1.5, 0, 3], [-0.5, 2, -1]], atol=1e-12)
    by_two = exponents(table, "l2", within=["width", "seed"])
    assert by_two.index.names == ["width", "seed"] and by_two["l2"].tolist() == pytest.approx([1.5] * 3 + [-0.5] * 3)


def test_slopes_are_those_of_numpy_s_fit_also_where_cells_are_ragged():
    table = curves(noise=0.5, l2=(1, 2), steps=(0, 1)).drop(index=[0, 1, 10])
    found = exponents(table.rename(columns={"n": "samples"}), ["l2", "steps"], axis="samples", within="width")
    for width, row in found.iterrows():
        part = table[table["width"] == width]
        for name in ("l2", "steps"):
            assert row[name] == pytest.approx(np.polyfit(np.log(part["n"]), np.log(part[name]), 1)[0])


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.2, 3))
def test_units_leave_a_slope_and_powers_multiply_it(unit, of_n, power):
    table = curves(noise=0.3, l2=(1, -1))
    found = exponents(table, "l2", within="width")
    other = table.assign(n=of_n * table["n"], l2=unit * table["l2"] ** power)
    np.testing.assert_allclose(exponents(other, "l2", within="width"), power * found, rtol=1e-9, atol=1e-9)


def test_a_bound_falls_where_the_slope_is_below_one():
    table = curves(l2=(0.6, 1.4))
    found = exponents(adjusted(table, "l2"), "l2", within="width")["l2"]
    np.testing.assert_allclose(found, [(0.6 - 1) / 2, (1.4 - 1) / 2])


def test_which_rows_are_logarithms_stands_in_the_catalogue():
    n = np.array([10.0, 100.0])
    table = pd.DataFrame({"n": n} | dict.fromkeys(CATALOGUE, np.log(n) + 1))
    slopes = exponents(table, list(CATALOGUE)).iloc[0]
    logarithms = {name for name in CATALOGUE if abs(slopes[name] - 1) < 1e-12}
    heads = ("product_", "spectral_from_", "l1_path", "path", "neyshabur_")
    others = {
        "l1_max_margin",
        "l3_margin",
        "lipschitz_bound",
        "spectral_origin",
        "spectral_start",
        "spectral_complexity",
    }
    expected = {name for name in CATALOGUE if name.startswith(heads)} | others | {"frobenius_complexity", "log_volume"}
    assert logarithms == expected == {name for name in CATALOGUE if is_logarithm(name)}
    assert not is_logarithm("a column of one's own")


def test_what_does_not_change_has_no_sign():
    table = curves(seeds=7, sizes=(250, 500, 1000), l2=(0, 0)).assign(l2=0.1)
    found = exponents(table, "l2", within="width")
    assert (found["l2"] == 0).all() and fragility(found)["minority"].item() == 0


def test_fragility_by_hand_and_of_planted_curves():
    slopes = pd.DataFrame({"a": [1.0, 2.0, -1.0, 3.0], "b": [-1.0, -2.0, -2.5, -4.0], "c": [0.0, 0.0, 0.0, 1.0]})
    found = fragility(slopes)
    assert found.columns.tolist() == ["median", "low", "high", "minority"]
    np.testing.assert_allclose(found, [[1.5, -1, 3, 0.25], [-2.25, -4, -1, 0], [0, 0, 1, 0]])
    planted = fragility(exponents(curves(noise=0.1, l2=(1, 2), flatness=(1, -1)), ["l2", "flatness"], within="width"))
    assert planted["minority"].tolist() == [0, 0.5]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"measures": "other"}, "table has no column 'other'"),
        ({"axis": "samples"}, "table has no column 'samples'"),
        ({"measures": []}, "measures is empty"),
        ({"within": ["width", "holed"]}, "within holds holed with NaN"),
        ({"measures": "holed"}, r"NaN in holed \(1 of 18\)"),
        ({"measures": "word"}, "word: no column of numbers"),
        ({"measures": ["l2", "falling"]}, "measures: falling is not positive and finite everywhere"),
        ({"measures": "endless"}, "measures: endless is not positive and finite everywhere"),
        ({"axis": "one"}, r"axis: one holds \[1\.0\]; a learning curve takes two positive values or more"),
        ({"axis": "seed"}, r"axis: seed holds \[0, 1, 2\]; a learning curve takes two positive values"),
        ({"within": ["width", "large"]}, r"within: the cell \(8, False\) has no network of n \[800\]"),
    ],
)
def test_what_has_no_learning_curve_is_refused(changed, message):
    table = curves(l2=(1, 1)).assign(one=1.0, word="a", holed=lambda t: t["l2"].where(t.index > 0))
    table = table.assign(falling=lambda t: 40 - t.index - 30.0, endless=np.inf, large=lambda t: t["n"] > 700)
    with pytest.raises(ValueError, match=message):
        exponents(table, **{"measures": "l2", "within": "width"} | changed)


def test_no_slopes_have_no_fragility():
    for slopes in (pd.DataFrame({"a": [1.0, np.nan]}), pd.DataFrame({"a": []})):
        with pytest.raises(ValueError, match="exponents has no rows or holds NaN"):
            fragility(slopes)
