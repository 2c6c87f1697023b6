"""What an error of other code says, and whether it is that there is no memory left."""

import torch

__all__ = ["first_line", "out_of_memory"]


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, on a GPU or a CPU, or Python says that there is no memory left."""
    said = str(error).lower()
    marks = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(mark in said for mark in marks)
