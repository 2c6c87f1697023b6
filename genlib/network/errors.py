"""What an error of other code says, and whether it is that there is no memory left."""

import torch

__all__ = ["first_line", "out_of_memory"]


def first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, on a GPU or a CPU, or Python says that there is no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
