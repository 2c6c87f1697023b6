"""One quiet progress line: on a terminal, on Colab, or in a notebook that somebody has open, and nowhere else."""

import os
import sys

from tqdm import tqdm

from genlib.scale import on_colab

__all__ = ["progress"]


def progress(items=None, *, total: int | None = None, what: str = "") -> tqdm:
    """`items`, with one line on stdout that counts them and vanishes at the end; silent in tests and built pages."""
    shown = sys.stdout.isatty() or on_colab() or _in_open_notebook()
    return tqdm(items, total=total, desc=what, file=sys.stdout, leave=False, disable=not shown, dynamic_ncols=True)


def _in_open_notebook() -> bool:
    """Whether this is the kernel of a notebook that is open in Jupyter.

    Its server names the notebook to the kernel; nbclient, by which notebooks are run and pages built, doesn't.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return type(shell).__name__ == "ZMQInteractiveShell" and "JPY_SESSION_NAME" in os.environ
