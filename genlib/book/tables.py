"""A table of the book's pages, from a data frame of Markdown."""

import pandas as pd

__all__ = ["table"]


def table(frame: pd.DataFrame) -> str:
    """The frame as a Markdown table; bars within cells are escaped."""
    return frame.map(lambda text: text.replace("|", r"\|")).to_markdown(index=False, disable_numparse=True)
