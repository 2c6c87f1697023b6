"""The ground: a module as a pure function of its parameters, with what it does and what it loses.

Every measure begins here: `Network.of` reads a module once, `Objective` (in `network/objective.py`) makes a mean loss
of it and the data. All rooms stand on this one, and may import its files one by one. Chapters 2 and 3 build by hand
what these hold.
"""

from genlib.network.activations import register_activation
from genlib.network.calls import plainly_called
from genlib.network.functional import (
    Network,
    Params,
    aliases,
    called,
    copied,
    layout,
    over_models,
    require_one_shape,
    without_hooks,
)
from genlib.network.operations import ELEMENTWISE, Layer, dense_steps

__all__ = [
    "ELEMENTWISE",
    "Layer",
    "Network",
    "Params",
    "aliases",
    "called",
    "copied",
    "dense_steps",
    "layout",
    "over_models",
    "plainly_called",
    "register_activation",
    "require_one_shape",
    "without_hooks",
]
