"""Inputs and labels of training samples, read from the forms in which people have them."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data as torch_data
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from genlib.data import Dataset
from genlib.network import Network
from genlib.network.arguments import arguments_of
from genlib.network.errors import first_line, out_of_memory

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
    network, (inputs, labels) = Network.of(network), inputs_and_labels(data)
    first = tree_leaves(inputs)[0]
    device = next((w.device for w in network.params.values()), first.device)
    if device.type != "meta":
        inputs, labels = tree_map(lambda t: t if t is None else t.to(device), (inputs, labels))
    of_each = labels is not None and labels.dim() == 2 and (network.size, labels.shape[1]) == first.shape[:2]
    if labels is not None and labels.shape[1:] == (1,) and not of_each:
        labels = labels.squeeze(1)
    if labels is not None and not labels.is_floating_point() and labels.dtype != torch.bool:
        labels = labels.long()
    if isinstance(inputs, Tensor):
        return network, inputs, labels
    inputs, arguments = arguments_of(network.module, inputs, axes=1 + of_each)
    return network.taking(arguments), inputs, labels


def inputs_and_labels(data: Samples) -> tuple[Inputs, Tensor | None]:
    """All inputs and labels, read once: tensors with the samples in front, of several inputs a tuple or a dict of them.

    A pair of inputs and labels, or a dict of both; inputs alone, whose labels are None; a loader, a list or another
    iterable of such batches; a dataset of such samples. ValueError: another form, batches that don't fit together, an
    iterator that has come to its end.
    """
    if isinstance(data, Dataset):
        if not isinstance(data.inputs, Tensor):
            raise ValueError("data are streamed from files; take as many samples as fit in memory first (subset)")
        return data.inputs, data.labels
    if _is_batch(data):
        return _batch(data, "data")
    kind = type(data).__name__
    if isinstance(data, torch_data.Dataset):
        data = _put_together(data)
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise ValueError(f"data is a {kind}; {_FORMS}")
    batches = [_batch(batch, f"a batch of the {kind}") for batch in data]
    if not batches:
        once = isinstance(data, Iterator)
        mend = "it may have been read before; give a list or a loader" if once else "give one of at least one sample"
        raise ValueError(f"data is a {kind} of no batches; {mend}")
    return _joined(batches, kind)


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


def _put_together(samples: torch_data.Dataset) -> list[object]:
    try:
        return list(torch_data.DataLoader(samples, _AT_ONCE))
    except (TypeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(
            f"data is a {type(samples).__name__} whose samples can't be put together ({first_line(error)}); let it "
            "give tensors of one shape, or give a DataLoader with a collate_fn that makes batches of them"
        ) from error


def _joined(batches: list[tuple[Inputs, Tensor | None]], kind: str) -> tuple[Inputs, Tensor | None]:
    """All batches as one."""
    flat = [tree_flatten((inputs, [] if labels is None else [labels])) for inputs, labels in batches]
    leaves, spec = flat[0]
    forms = {(str(form), *((leaf.shape[1:], leaf.dtype) for leaf in found)) for found, form in flat}
    if len(forms) > 1 or not all(leaf.dim() for leaf in leaves):
        raise ValueError(
            f"data is a {kind} whose samples differ in shape or kind from batch to batch, or that has no batches; pad "
            "them to one shape, and give it a batch_size"
        )
    inputs, labels = tree_unflatten([torch.cat(parts) for parts in zip(*(f for f, _ in flat), strict=True)], spec)
    return inputs, labels[0] if labels else None
