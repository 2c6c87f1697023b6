"""Inputs and labels of training samples, read from the forms in which people have them."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Number

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import data as torch_data
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from genlib.data import Dataset
from genlib.measures.spool import Spool, numbers_of
from genlib.network import Network
from genlib.network.arguments import arguments_of
from genlib.network.errors import first_line, out_of_memory
from genlib.network.precision import upcast
from genlib.network.targets import sample_axes

__all__ = ["Inputs", "Samples", "inputs_and_labels", "network_and_samples"]

Inputs = Tensor | tuple | dict
Samples = Dataset | torch_data.Dataset | Tensor | Mapping | Iterable

_LABELS = ("labels", "label", "label_ids", "targets", "target", "y")
_FORMS = (
    "give a pair of inputs and labels, tensors or arrays; several inputs as ((first, second), labels), or by their "
    "names in a dict that has labels, too; or a loader, a list or a dataset of such pairs or dicts"
)
_AT_ONCE = 256  # samples of a dataset that are put together at a time


def network_and_samples(network: nn.Module | Network, data: Samples) -> tuple[Network, Tensor, Tensor | None]:
    """The network, one tensor of inputs, and labels where it is, one number a sample where that is a matter of form."""
    network = Network.of(network)
    weight = next((w for w in network.params.values() if w.is_floating_point()), torch.zeros(()))
    inputs, labels = inputs_and_labels(data, upcast(weight).dtype)
    inputs, labels = _brought(inputs, weight.device), labels if labels is None else _brought(labels, weight.device)
    first = tree_leaves(inputs)[0]
    axes = sample_axes(first, labels, network.size)
    if labels is not None and not labels.is_floating_point():
        labels = labels.squeeze(1) if labels.shape[1:] == (1,) and axes == 1 else labels
        labels = labels if labels.dtype == torch.bool else labels.long()
    if isinstance(inputs, Tensor):
        return network, inputs, labels
    inputs, arguments = arguments_of(network.module, inputs, axes=axes)
    return network.taking(arguments), inputs, labels


def _brought(inputs: Inputs, device: torch.device) -> Inputs:
    """To where the network is, or as they are where they would take more than half of the memory that is free there."""
    size = sum(leaf.nbytes for leaf in tree_leaves(inputs) if leaf.device != device)
    if device.type == "meta" or (device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] / 2):
        return inputs
    return tree_map(lambda leaf: leaf.to(device), inputs)


def inputs_and_labels(data: Samples, dtype: torch.dtype | None = None) -> tuple[Inputs, Tensor | None]:
    """All inputs and labels: tensors with the samples in front, of several inputs a tuple or a dict of them.

    A pair of inputs and labels, or a dict of both; inputs alone, whose labels are None; a loader, a list or another
    iterable of such batches; a dataset of such samples. What is read batch by batch is written down, in `dtype` where
    these are floats, and beyond 64 MB lies in a file that is mapped: memory then holds what is at work. It is read
    twice, to see that it is the same again, in whatever order. ValueError: another form, batches that don't fit
    together, an iterator that has come to its end, other samples at the second time.
    """
    if isinstance(data, Dataset):
        if not isinstance(data.inputs, Tensor):
            raise ValueError("data are streamed from files; take as many samples as fit in memory first (subset)")
        return data.inputs, data.labels
    if _is_batch(data):
        return _batch(data, "data")
    kind = type(data).__name__
    if isinstance(data, torch_data.Dataset):
        data = _PutTogether(data)
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise ValueError(f"data is a {kind}; {_FORMS}")
    rereadable = not isinstance(data, list | tuple | Iterator)
    found, first = _written(data, kind, dtype, numbered=rereadable)
    if rereadable:
        again = _sorted(numbers_of(leaves) for leaves, _ in _flat(data, kind, dtype))
        if len(again) != len(first):
            raise ValueError(
                f"data is a {kind} that gave {len(first)} samples and, read again, {len(again)}; give one that starts "
                "anew each time, or a list of its batches"
            )
        if not torch.allclose(first, again, rtol=1e-9, atol=0, equal_nan=True):
            raise ValueError(
                f"data is a {kind} that gives other samples each time, as random crops and drop_last with shuffle do; "
                "turn these off, or give a list of its batches"
            )
    return found


def _is_batch(data: object) -> bool:
    """Whether these are inputs, and labels if any, and no iterable of batches."""
    if not isinstance(data, tuple | list) or not data:
        return _is_array(data) or isinstance(data, Mapping)
    last = data[-1]
    numbers = isinstance(last, tuple | list) and all(isinstance(label, Number) for label in last)
    return _is_array(last) or last is None or numbers


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or hasattr(value, "__array__")


def _batch(batch: object, what: str) -> tuple[Inputs, Tensor | None]:
    labels = None
    if isinstance(batch, Mapping):
        names = [name for name in _LABELS if name in batch]
        if len(names) > 1:
            raise ValueError(f"{what} has {' and '.join(names)}, each of which may be the labels; leave one of them")
        inputs = {name: value for name, value in batch.items() if name not in names}
        labels = batch[names[0]] if names else None
    elif isinstance(batch, tuple | list):
        if len(batch) not in (1, 2):
            entries = ", ".join(type(part).__name__ for part in itertools.islice(batch, 4)) or "nothing"
            raise ValueError(f"{what} is a {type(batch).__name__} of {entries}; {_FORMS}")
        inputs, labels = (*batch, None)[:2]
    else:
        inputs = batch
    inputs = _tree(inputs, what)
    if not tree_leaves(inputs):
        raise ValueError(f"{what} has no inputs; {_FORMS}")
    return inputs, None if labels is None else _tensor(labels, f"{what}, in the place of labels,")


def _tree(value: object, what: str) -> Inputs:
    if isinstance(value, Mapping):
        return {name: _tree(part, f"{what}, by the name {name!r},") for name, part in value.items() if part is not None}
    if isinstance(value, tuple | list):
        return tuple(_tree(part, what) for part in value)
    if not _is_array(value):
        raise ValueError(f"{what} holds a {type(value).__name__}; {_FORMS}")
    return _tensor(value, what)


def _tensor(value: object, what: str) -> Tensor:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise ValueError(f"{what} holds a sparse tensor, {value.layout}; give a dense one, as by to_dense")
        return value
    try:
        return torch.as_tensor(np.array(value, order="C"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} holds a {type(value).__name__} that is no array of numbers; {_FORMS}") from error


@dataclass(frozen=True)
class _PutTogether:
    """The samples of a dataset in batches."""

    samples: torch_data.Dataset

    def __iter__(self) -> Iterator[object]:
        try:
            yield from torch_data.DataLoader(self.samples, _AT_ONCE)
        except (TypeError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise ValueError(
                f"data is a {type(self.samples).__name__} whose samples can't be put together ({first_line(error)}); "
                "let it give tensors of one shape, or give a DataLoader with a collate_fn that makes batches of them"
            ) from error


def _flat(data: Iterable, kind: str, dtype: torch.dtype | None) -> Iterator[tuple[list[Tensor], TreeSpec]]:
    """The tensors of each batch, and how they hang together."""
    first = None
    for batch in data:
        inputs, labels = _batch(batch, f"a batch of the {kind}")
        inputs = tree_map(lambda leaf: leaf.to(dtype) if dtype and leaf.is_floating_point() else leaf, inputs)
        leaves, spec = tree_flatten((inputs, [] if labels is None else [labels]))
        form = (spec, [(leaf.shape[1:], leaf.dtype) for leaf in leaves])
        if form != (first or form) or not all(leaf.dim() for leaf in leaves):
            raise ValueError(
                f"data is a {kind} whose samples differ in shape or kind from batch to batch, or that has no batches; "
                "pad them to one shape, and give it a batch_size"
            )
        first = form
        if len({len(leaf) for leaf in leaves}) > 1:
            raise ValueError(f"a batch of the {kind} has {[*map(len, leaves)]} rows; give each tensor a row a sample")
        yield leaves, spec


def _written(
    data: Iterable, kind: str, dtype: torch.dtype | None, *, numbered: bool
) -> tuple[tuple[Inputs, Tensor | None], Float[Tensor, " samples"]]:
    """All batches as one, and if they are `numbered` the numbers by which their samples are known again."""
    spec, spools, numbers = None, [], []
    with ExitStack() as files:
        for leaves, spec in _flat(data, kind, dtype):  # noqa: B007
            spools = spools or [Spool(leaf, files) for leaf in leaves]
            for spool, leaf in zip(spools, leaves, strict=True):
                spool.append(leaf)
            numbers += [numbers_of(leaves)] if numbered else []
        if spec is None:
            once = isinstance(data, Iterator)
            mend = "it may have been read before; give a list or a loader" if once else "give one of a sample or more"
            raise ValueError(f"data is a {kind} of no batches; {mend}")
        inputs, labels = tree_unflatten([spool.whole() for spool in spools], spec)
    return (inputs, labels[0] if labels else None), _sorted(numbers)


def _sorted(numbers: Iterable[Tensor]) -> Float[Tensor, " samples"]:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *numbers]).sort().values
