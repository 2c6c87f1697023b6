"""A training and a test set on one device, and the history of what was done to them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from genlib.data.draws import at_most, generator_for, whole_number
from genlib.data.streams import StreamedImages
from genlib.network.chunks import BLOCK_BYTES

__all__ = ["Dataset", "remembered"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A training and a test set on one device, and the history of what was done to them.

    `inputs` and `test_inputs` are tensors [samples, *input_shape], or images that stay in their files; `classes` names
    what the labels 0, 1, … stand for. `true_labels` are the training labels before any corruption (by default
    `labels`), and `replaced` marks the labels that a corruption drew anew; `labels != true_labels` are the wrong ones.
    Test labels are always the true ones. Labels that match neither inputs nor classes: ValueError.
    """

    inputs: Float[Tensor, "train *shape"] | StreamedImages
    labels: Int64[Tensor, " train"]
    test_inputs: Float[Tensor, "test *shape"] | StreamedImages
    test_labels: Int64[Tensor, " test"]
    classes: tuple[str, ...]
    name: str = "data"
    history: tuple[str, ...] = ()
    true_labels: Int64[Tensor, " train"] | None = None
    replaced: Bool[Tensor, " train"] | None = None

    def __post_init__(self):
        _check("", self.inputs, self.labels, self.classes)
        _check("test_", self.test_inputs, self.test_labels, self.classes)
        if self.inputs.shape[1:] != self.test_inputs.shape[1:]:
            shapes = f"{tuple(self.test_inputs.shape[1:])}, those of inputs {self.input_shape}"
            raise ValueError(f"the rows of test_inputs have shape {shapes}; give both the same")
        if self.true_labels is None:
            object.__setattr__(self, "true_labels", self.labels)
        if self.replaced is None:
            object.__setattr__(self, "replaced", torch.zeros_like(self.labels, dtype=torch.bool))
        beside = (self.true_labels, self.replaced)
        if not all(isinstance(tensor, Tensor) and tensor.shape == self.labels.shape for tensor in beside):
            raise ValueError("true_labels and replaced need one entry a label; give all anew, or None")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        sizes = f"{len(self)} training and {len(self.test_labels)} test samples of shape {self.input_shape}"
        return "; ".join([f"{self.name}: {sizes}, {len(self.classes)} classes", *self.history])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.inputs.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where the tensors are, and where minibatches of streamed images go."""
        return self.labels.device

    @property
    def replaced_rate(self) -> float:
        """The share of training labels that were drawn anew; some of these are right by luck."""
        return self.replaced.double().mean().item()

    @property
    def wrong_rate(self) -> float:
        """The share of training labels that are wrong."""
        return (self.labels != self.true_labels).double().mean().item()

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data on `device`."""
        fields = ("inputs", "labels", "test_inputs", "test_labels", "true_labels", "replaced")
        return replace(self, **{field: getattr(self, field).to(device) for field in fields})

    def subset(self, size: int, *, seed: int) -> "Dataset":
        """`size` training samples; with one seed a smaller subset is the beginning of a larger one."""
        size = at_most("size", size, len(self), f"{self.name} has {len(self)} training samples")
        chosen = torch.randperm(len(self), generator=generator_for(seed, "subset"))[:size].to(self.device)
        taken = {field: getattr(self, field)[chosen] for field in ("inputs", "labels", "true_labels", "replaced")}
        return remembered(replace(self, **taken), f"{size} training samples drawn (seed {seed})")

    def minibatches(self, order: Int64[Tensor, " n"], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the training samples in this `order`, `batch_size` at a time; the last are the rest."""
        return _minibatches(self.inputs, self.labels, order, batch_size)

    def test_minibatches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the test samples, `batch_size` at a time."""
        return _minibatches(self.test_inputs, self.test_labels, torch.arange(len(self.test_labels)), batch_size)


def _minibatches(inputs, labels: Tensor, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    whole_number("batch_size", batch_size)
    order = order.to(labels.device)
    if isinstance(inputs, StreamedImages):
        images = inputs.minibatches(order, batch_size, labels.device)
        yield from zip(images, labels[order].split(batch_size), strict=True)
        return
    # One gather for many batches, then views: a gather in each step costs as much as the step of a small network.
    batch_bytes = batch_size * math.prod(inputs.shape[1:]) * inputs.element_size()
    for chosen in order.split(batch_size * max(1, BLOCK_BYTES // batch_bytes)):
        yield from zip(inputs[chosen].split(batch_size), labels[chosen].split(batch_size), strict=True)


def remembered(dataset: Dataset, step: str) -> Dataset:
    return replace(dataset, history=(*dataset.history, step))


def _check(which: str, inputs, labels, classes) -> None:
    if not isinstance(inputs, StreamedImages) and not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        raise ValueError(f"{which}inputs must be a tensor of floats; convert them, as by torch.as_tensor(…).float()")
    if isinstance(inputs, Tensor) and inputs.dim() == 0:
        raise ValueError(f"{which}inputs is a single number; give one row a sample")
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(f"classes is {classes!r}; give the name of each, as ('cat', 'dog')")
    if not (isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.dim() == 1):
        raise ValueError(f"{which}labels must be a vector of int64; convert them, as by torch.as_tensor(…).long()")
    if len(labels) != len(inputs) or len(labels) == 0:
        raise ValueError(f"{which}labels are {len(labels)} for {len(inputs)} {which}inputs; give one label an input")
    if isinstance(inputs, Tensor) and inputs.device != labels.device:
        raise ValueError(f"{which}labels are on {labels.device}, {which}inputs on {inputs.device}; bring both to one")
    low, high = torch.stack(labels.aminmax()).tolist()
    if low < 0 or high >= len(classes):
        most = len(classes) - 1
        raise ValueError(f"{which}labels go from {low} to {high}; with {len(classes)} classes they go from 0 to {most}")
