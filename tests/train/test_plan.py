"""A plan that never ends is refused."""

import pytest

from genlib.train import Stop


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "never ends"),
        ({"steps": 0}, "stop.steps is 0"),
        ({"accuracy": 1.5}, "at most 1"),
        ({"loss": -1.0}, "positive"),
    ],
)
def test_a_bad_stop_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Stop(**kwargs)
