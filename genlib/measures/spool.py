"""Batches written one behind the other, and read back as whole tensors: from memory, or mapped from a file."""

import mmap
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["Spool", "numbers_of"]

_ROWS = 32  # at a time, for in float64 a batch would be twice as large
_IN_MEMORY = 64 * 2**20  # bytes of a tensor above which it lies in a file that has no name and goes with it


class Spool:
    """One tensor, written batch by batch along its first axis into what `files` closes; a map of it stays."""

    def __init__(self, like: Tensor, files: ExitStack):
        self._row, self._dtype, self._rows = like.shape[1:], like.dtype, 0
        file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 `files` closes it
        self._file = files.enter_context(file)

    def append(self, batch: Shaped[Tensor, "n ..."]) -> None:
        self._rows += len(batch)
        rows = batch.detach().cpu().contiguous().resolve_conj().resolve_neg().reshape(-1)
        try:
            self._file.write(rows.view(torch.uint8).numpy().data)
        except OSError as error:
            raise ValueError(
                f"data don't fit: after {self._rows} samples {tempfile.gettempdir()} is full ({error.strerror}); let "
                "TMPDIR name a folder with more room, or give fewer samples"
            ) from error

    def whole(self) -> Shaped[Tensor, "samples ..."]:
        size = self._file.tell()
        self._file.seek(0)
        if size > _IN_MEMORY:
            held = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY)
        else:
            held = bytearray(self._file.read())
        if not size:
            return torch.empty((self._rows, *self._row), dtype=self._dtype)
        return torch.frombuffer(held, dtype=self._dtype).view(self._rows, *self._row)


def numbers_of(tensors: Iterable[Shaped[Tensor, "n ..."]]) -> Float[Tensor, " n"]:
    """A number for each sample, equal for equal ones: the sum of its own times numbers drawn for their places."""
    return sum(_number(i, tensor.detach().cpu().unsqueeze(-1).flatten(1)) for i, tensor in enumerate(tensors))


def _number(i: int, rows: Shaped[Tensor, "n numbers"]) -> Float[Tensor, " n"]:
    drawn = torch.rand(rows.shape[1], generator=torch.Generator().manual_seed(i), dtype=torch.float64)
    return torch.cat([(part.double() * drawn).sum(1) for part in rows.split(_ROWS)])
