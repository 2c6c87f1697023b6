"""One quiet progress line: on a terminal or on Colab, and nowhere else."""

import sys

from tqdm import tqdm

from genlib.scale import on_colab

__all__ = ["progress"]


def progress(items=None, *, total: int | None = None, what: str = "") -> tqdm:
    """`items`, with one line on stdout that counts them and vanishes at the end; silent in tests and built pages."""
    shown = sys.stdout.isatty() or on_colab()
    return tqdm(items, total=total, desc=what, file=sys.stdout, leave=False, disable=not shown, dynamic_ncols=True)
