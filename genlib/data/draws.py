"""How many samples are asked for, and the generators that draw them."""

import hashlib
import math
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from genlib import scale

__all__ = ["at_most", "classes_in_turn", "generator_for", "in_chunks", "require_seed", "rows", "whole_number"]

CHUNK = 2000


def generator_for(seed: int, purpose: str) -> torch.Generator:
    # A stream for each purpose: were the split and the corruption of one seed the same draws, they would be correlated.
    require_seed(seed)
    digest = hashlib.sha256(f"{purpose} {int(seed)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def in_chunks(
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]], samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs and labels, drawn in whole chunks, so that fewer samples are the beginning of more."""
    chunks = [draw(CHUNK, generator) for _ in range(math.ceil(samples / CHUNK))]
    inputs, labels = (torch.cat(parts)[:samples].clone() for parts in zip(*chunks, strict=True))
    return inputs, labels


def classes_in_turn(samples: int, generator: torch.Generator) -> Tensor:
    """Labels of ten classes, each of them once in every ten samples, in random order."""
    return torch.rand(samples // 10, 10, generator=generator).argsort(dim=1).flatten()


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
