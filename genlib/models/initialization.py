"""The seed and the law of the first weights, and the look at a builder's arguments."""

import difflib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from genlib.models.by_hand import whole

__all__ = ["drawn_from", "initialized", "require_at_least", "require_one_of", "require_positive", "require_share"]


@contextmanager
def drawn_from(seed) -> Iterator[None]:
    """Module constructors draw from the global state: lend them one of this seed, and put the old one back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(whole(seed))  # torch.manual_seed would reseed the GPUs as well
        yield


def initialized(network: nn.Sequential, law: str, scale: float = 1.0) -> nn.Sequential:
    require_one_of("initialization", law, ("default", "xavier", "he"))
    for layer in network.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if law == "xavier":
            nn.init.xavier_normal_(layer.weight)
        elif law == "he":
            nn.init.kaiming_normal_(layer.weight)
        if law != "default" and layer.bias is not None:
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight.mul_(scale)
    return network


def require_at_least(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name} is {size}; it must be at least {least}")


def require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite")


def require_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; it must be a share, at least 0 and below 1")


def require_one_of(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        nearest = difflib.get_close_matches(name, known, cutoff=0.4) or known
        raise ValueError(f"{what} {name!r} is unknown; nearest: {', '.join(nearest)}")
