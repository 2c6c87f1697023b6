"""The memory that a table takes at its peak, foretold by a model of parameters and activations, and what there is."""

import contextlib
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genlib.measures.measure import Measure
from genlib.measures.parts import Passes, Room, times, unseen
from genlib.measures.searches import Shared
from genlib.network.chunks import side_by_side
from genlib.network.derivatives import twice_differentiable
from genlib.network.objective import Objective

__all__ = ["free_bytes", "memory", "warn_of_memory"]

_FEW = 8  # samples whose activations stand for all
_OF_WEIGHTS, _OF_ITS_OWN = times(4, 0), times(8, 4)  # what no part is known of
_DRAWS = 10  # that a search for a deviation may pass together


def memory(shared: Shared, measures: list[Measure]) -> list[float]:
    """The bytes that each measure of a table takes at its peak, beyond the network and its data; earlier rows' too."""
    room = Room(sum(w.nbytes for w in shared.weights.values()))
    if "data" not in shared.lacking and any(measure.passes for measure in measures):
        objective = shared.unlabelled
        room = Room(
            room.weights,
            k=shared.k,
            of_sample=_written(objective) / min(_FEW, objective.samples),
            row=objective.inputs[0].numel() * objective.inputs.element_size(),
            samples=objective.samples,
            chunk=min(objective.chunk_size, objective.samples),
            classes=objective.classes,
            draws=max(1, min(_DRAWS, objective.chunk_size // objective.samples, side_by_side(shared.weights))),
        )
    found, kept = [], 1  # the displacement from the start
    for measure, new in unseen(measures):
        own = _OF_ITS_OWN if measure.passes and not isinstance(measure.passes, Passes) else _OF_WEIGHTS
        found.append(kept * room.weights + max(peak(room) for peak in [own, *(part.peak for part in new)]))
        kept += sum(part.kept for part in new)
    return found


def warn_of_memory(shared: Shared, measures: list[Measure]) -> None:
    """Say it beforehand where a row may take more memory than its device has to give."""
    device = next(iter(shared.weights.values())).device
    able = [measure for measure in measures if not shared.lacking & set(measure.needs)]
    try:
        takes, name = max(zip(memory(shared, able), (m.name for m in able), strict=True), default=(0, ""))
    except Exception:  # what fails here fails in its row again, which says why
        return
    if takes > (free := free_bytes(device)):
        warnings.warn(
            f"{name} may take {takes / 2**30:.3g} GiB of memory beyond the network and the data, and on {device} are "
            f"{free / 2**30:.3g} GiB; measure fewer samples, leave it out of names, or give a smaller chunk_size",
            RuntimeWarning,
            stacklevel=4,
        )


def free_bytes(device: torch.device) -> float | int:
    """The memory that is there for more tensors; infinite where the system doesn't tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = math.inf
    with contextlib.suppress(OSError):
        free = 2**10 * _numbers(Path("/proc/meminfo"))["MemAvailable"]
    group = Path("/sys/fs/cgroup")  # of a container
    with contextlib.suppress(OSError, ValueError):  # its limit may be "max"
        used = int((group / "memory.current").read_text()) - _numbers(group / "memory.stat")["inactive_file"]
        free = min(free, int((group / "memory.max").read_text()) - used)
    return free


def _numbers(path: Path) -> dict[str, int]:
    """The numbers of a file of lines, each a name and a number."""
    lines = [line.replace(":", "").split() for line in path.read_text().splitlines()]
    return {name: int(number) for name, number, *_ in lines}


class _Written(TorchDispatchMode):
    """Adds up the bytes of all that is computed."""

    bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch.compile is imported with all that it needs, which takes seconds

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.untyped_storage()._cdata not in given]
        self.bytes += sum(t.nbytes for t in made)
        return output


def _written(objective: Objective) -> int:
    """The bytes that a forward pass of a few samples writes, as it runs where it is differentiated twice."""
    weights = {name: w.detach().requires_grad_() for name, w in objective.network.params.items()}
    with torch.enable_grad(), twice_differentiable(), _Written() as written:
        objective.network.apply(weights, objective.inputs[:_FEW])
    return written.bytes
