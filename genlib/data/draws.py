"""How many samples are asked for, and the generators that draw them."""

import hashlib
from numbers import Integral

import torch

from genlib import scale

__all__ = ["at_most", "generator_for", "require_seed", "rows", "whole_number"]


def generator_for(seed: int, purpose: str) -> torch.Generator:
    # A stream for each purpose: were the split and the corruption of one seed the same draws, they would be correlated.
    require_seed(seed)
    digest = hashlib.sha256(f"{purpose} {int(seed)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def require_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ValueError(f"seed is {seed!r}; give a whole number, such as 0")


def rows(name: str, wanted: int, split: str = "train") -> int:
    """So many as are wanted; in a dry run a few."""
    wanted = whole_number(name, wanted)
    return min(wanted, scale.DRY_ROWS[split]) if scale.dry_run() else wanted


def whole_number(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a whole number, at least 1")
    return int(value)


def at_most(name: str, wanted: int | None, available: int, because: str) -> int:
    wanted = available if wanted is None else whole_number(name, wanted)
    if wanted > available and not scale.dry_run():
        raise ValueError(f"{name} is {wanted}, but {because}; ask for at most {available}")
    return min(wanted, available)
