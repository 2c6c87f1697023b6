import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from genlib.estimates import interval


@given(st.lists(st.integers(-(10**9), 10**9).map(lambda k: k / 1000), min_size=2, max_size=20))
def test_interval_is_students(values):
    if np.ptp(values) == 0:
        assert interval(values) == pytest.approx((values[0], values[0]))
    else:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert interval(values) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_interval_by_hand():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert interval([7.0]) == (7, 7)
