"""A module as a pure function of its parameters, alone or in a stack. All of torch.func and torch.fx is here."""

from genlib.network.functional import (
    Network,
    Params,
    aliases,
    called,
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
    "dense_steps",
    "layout",
    "over_models",
    "require_one_shape",
    "without_hooks",
]
