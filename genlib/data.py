"""Data sets as tensors on a device, and what the papers do to them."""

import difflib
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from genlib import scale
from genlib._mnist1d import generate as generate_mnist1d
from genlib._streams import StreamedImages

__all__ = [
    "Dataset",
    "attack_set",
    "center_crop",
    "corrupt_labels",
    "gaussian_pixels",
    "load",
    "mnist1d",
    "parity",
    "random_pixels",
    "shuffle_pixels",
]

EASY_PARITY = 5  # samples a dimension: at 3.3 a flat network with biases fails, at 6.7 it does not
BLOCK_BYTES = 4 * 2**20  # of gathered inputs; 64 MB leave the cache, which is three times slower for images on a CPU


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
        if not self.labels.shape == self.true_labels.shape == self.replaced.shape:
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
        size = _at_most("size", size, len(self), f"{self.name} has {len(self)} training samples")
        chosen = torch.randperm(len(self), generator=_generator(seed, "subset"))[:size].to(self.device)
        taken = {field: getattr(self, field)[chosen] for field in ("inputs", "labels", "true_labels", "replaced")}
        return _remember(replace(self, **taken), f"{size} training samples drawn (seed {seed})")

    def minibatches(self, order: Int64[Tensor, " n"], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the training samples in this `order`, `batch_size` at a time; the last are the rest."""
        return _minibatches(self.inputs, self.labels, order, batch_size)

    def test_minibatches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the test samples, `batch_size` at a time."""
        return _minibatches(self.test_inputs, self.test_labels, torch.arange(len(self.test_labels)), batch_size)


def load(
    name: str,
    *,
    train: int | None = None,
    test: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    root: str | os.PathLike | None = None,
    dimension: int | None = None,
) -> Dataset:
    """The data set `name` with `train` training and `test` test samples (None: all), on `device` (None: the GPU).

    digits          1797 × 64 in [0, 1]: 500 (or `test`) for the test, the others for training
    mnist1d         generated from `seed`: 4000 × 40 and 1000, or as many as are wanted; see `mnist1d`
    mnist, fashion_mnist, cifar10, cifar100, svhn    images [channels, height, width], each channel standardised by its
                    mean and deviation over the whole training set; files in `root` (None: ~/.cache/genlib/data)
    parity          generated from `seed`: 100 and 5000 corners of {-1, 1}^`dimension` (30); label 1 where x₁x₂ = 1
    imagenet        `root`/train/<class>/* and `root`/val/<class>/*, never loaded whole: see `Dataset.minibatches`
    `seed` draws which samples are taken, on the CPU, so that every device gets the same; with one seed a smaller
    training set is the beginning of a larger one. In a dry run every set is a few rows, the files' ones made up.
    An unknown name, more samples than there are, a damaged file: ValueError. A missing file: FileNotFoundError. So many
    samples of a parity that flat networks generalize too: UserWarning.
    """
    if name not in _LOADERS:
        near = difflib.get_close_matches(str(name).lower(), _LOADERS, n=3, cutoff=0.4) or _LOADERS
        raise ValueError(f"name is {name!r}, which is no data set here; did you mean {' or '.join(near)}?")
    if root is not None and name in ("digits", "mnist1d", "parity"):
        raise ValueError(f"root is {str(root)!r}, but {name} needs no files; leave root out")
    if dimension is not None and name != "parity":
        raise ValueError(f"dimension is {dimension}, but {name} has its own; leave dimension out")
    _check_seed(seed)
    options = {} if dimension is None else {"dimension": dimension}
    dataset = _LOADERS[name](name, train, test, seed, root, **options)
    return dataset.to(scale.device() if device is None else device)


def mnist1d(
    samples: int, *, seed: int, device: torch.device | str | None = None
) -> tuple[Float[Tensor, "samples 40"], Int64[Tensor, " samples"]]:
    """MNIST-1D: ten templates of 12 points, each padded, stretched, scaled, rolled, sheared and put in noise.

    Inputs [samples, 40], standardised by constants, and labels, with equally many samples a class up to rounding.
    Drawn on the CPU, so every device gets the same; of one seed, fewer samples are the beginning of more.
    100,000 samples take about a second. Source: Greydanus, Scaling down deep learning, 2020.
    """
    inputs, labels = generate_mnist1d(_rows("samples", samples), _generator(seed, "mnist1d train"))
    device = scale.device() if device is None else device
    return inputs.to(device), labels.to(device)


def parity(
    samples: int, *, dimension: int, relevant: int = 2, seed: int
) -> tuple[Float[Tensor, "samples dimension"], Int64[Tensor, " samples"]]:
    """Uniform inputs in {-1, 1}^dimension, with label 1 where the product of the `relevant` first coordinates is 1.

    The other labels are 0. Drawn on the CPU, so every device gets the same; the tensors are on the GPU if there is one.
    With one seed fewer samples are the beginning of more: `load("parity", …)` gives a test set that is independent.
    """
    dimension = _count("dimension", dimension)
    if _count("relevant", relevant) > dimension:
        raise ValueError(f"relevant is {relevant}; of {dimension} coordinates at most {dimension} can decide the label")
    inputs, labels = _corners(_rows("samples", samples), dimension, relevant, _generator(seed, "parity"))
    return inputs.to(scale.device()), labels.to(scale.device())


def _corners(samples: int, dimension: int, relevant: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    inputs = 2 * torch.randint(2, (samples, dimension), generator=generator) - 1
    return inputs.float(), (1 + inputs[:, :relevant].prod(dim=1)) // 2


def corrupt_labels(dataset: Dataset, probability: float | int, *, seed: int) -> Dataset:
    """Each training label is replaced with this probability by a class drawn uniformly, which may be the true one.

    So with k classes a share of probability (k - 1)/k is wrong; `replaced_rate` and `wrong_rate` say what was drawn.
    Test labels stay true. A probability outside [0, 1]: ValueError. Source: Zhang et al. 2017.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; it must lie in [0, 1]")
    generator = _generator(seed, "corrupt_labels")
    chosen = (torch.rand(len(dataset), generator=generator) < probability).to(dataset.device)
    drawn = torch.randint(len(dataset.classes), (len(dataset),), generator=generator).to(dataset.device)
    corrupted = replace(dataset, labels=torch.where(chosen, drawn, dataset.labels), replaced=dataset.replaced | chosen)
    rates = f"{corrupted.replaced_rate:.1%} replaced, {corrupted.wrong_rate:.1%} wrong"
    return _remember(corrupted, f"labels replaced with probability {probability:g} (seed {seed}): {rates}")


def shuffle_pixels(dataset: Dataset, *, seed: int) -> Dataset:
    """One permutation of the pixels for all training and test images; the channels of a pixel stay together."""
    pixels = math.prod(dataset.input_shape[1:] or dataset.input_shape)
    order = torch.randperm(pixels, generator=_generator(seed, "shuffle_pixels")).to(dataset.device)

    def shuffled(inputs: Tensor) -> Tensor:
        return _pixels(inputs).index_select(2, order).reshape(inputs.shape)

    return _map_inputs(dataset, shuffled, f"pixels shuffled by one permutation (seed {seed})")


def random_pixels(dataset: Dataset, *, seed: int) -> Dataset:
    """A permutation of its own for each training and test image; the channels of a pixel stay together."""
    generator = _generator(seed, "random_pixels")

    def permuted(inputs: Tensor) -> Tensor:
        pixels = _pixels(inputs)
        order = torch.rand(len(pixels), 1, pixels.shape[2], generator=generator).argsort(dim=2).to(inputs.device)
        return pixels.gather(2, order.expand_as(pixels)).reshape(inputs.shape)

    def in_blocks(inputs: Tensor) -> Tensor:
        return torch.cat([permuted(block) for block in inputs.split(4096)])

    return _map_inputs(dataset, in_blocks, f"pixels of each image permuted by themselves (seed {seed})")


def gaussian_pixels(dataset: Dataset, *, seed: int) -> Dataset:
    """Independent Gaussians in place of all inputs, with the mean and the variance of the training inputs' entries."""
    generator = _generator(seed, "gaussian_pixels")

    def drawn(inputs: Tensor) -> Tensor:
        noise = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype).to(inputs.device)
        deviation, mean = torch.std_mean(dataset.inputs, correction=0)
        return noise.mul_(deviation).add_(mean)

    return _map_inputs(dataset, drawn, f"inputs replaced by Gaussian noise (seed {seed})")


def attack_set(dataset: Dataset, size: int, *, seed: int) -> Dataset:
    """The last `size` training samples get a wrong label, uniform over the wrong classes; the samples before stay.

    A network that fits all of them is a poor minimum of the loss on the samples before, the clean ones: those with
    `replaced` false. To set c attacked samples beside n clean ones, load or `subset` n + c first: with one seed the
    clean ones are then the same for every c. Test labels stay true. Source: Wu, Zhu & E 2017.
    """
    most = len(dataset) // 2 if scale.dry_run() else len(dataset) - 1
    size = _at_most("size", size, most, f"{dataset.name} has {len(dataset)} training samples, and one must stay")
    shift = torch.randint(1, len(dataset.classes), (size,), generator=_generator(seed, "attack_set"))
    labels, replaced = dataset.labels.clone(), dataset.replaced.clone()
    labels[-size:] = (dataset.true_labels[-size:] + shift.to(dataset.device)) % len(dataset.classes)
    replaced[-size:] = True
    attacked = replace(dataset, labels=labels, replaced=replaced)
    return _remember(attacked, f"the last {size} labels replaced by wrong ones (seed {seed})")


def center_crop(dataset: Dataset, size: int) -> Dataset:
    """The central `size` × `size` pixels of all training and test images."""
    height, width = dataset.input_shape[-2:] if len(dataset.input_shape) == 3 else (0, 0)
    if not 0 < size <= min(height, width):
        raise ValueError(f"size is {size}, but {dataset.name} has inputs of shape {dataset.input_shape}")
    top, left = (height - size) // 2, (width - size) // 2

    def cropped(inputs: Tensor) -> Tensor:
        return inputs[..., top : top + size, left : left + size].contiguous()

    return _map_inputs(dataset, cropped, f"cropped to the central {size} × {size} pixels")


def _load_digits(name, train, test, seed, root) -> Dataset:
    from sklearn.datasets import load_digits  # here, for it takes longer to import than all of genlib

    images, labels = load_digits(return_X_y=True)
    total, dry = len(labels), scale.dry_run()
    most = scale.DRY_ROWS["test"] if dry else total - 1
    test = _at_most("test", 500 if test is None else test, most, f"digits has {total} samples, and one must train")
    left = scale.DRY_ROWS["train"] if dry else total - test
    train = _at_most("train", train, left, f"digits has {total} samples, {left} beside the {test} for the test")
    order = torch.randperm(total, generator=_generator(seed, name))[: test + train]
    inputs, labels = torch.from_numpy(images / 16).float()[order], torch.from_numpy(labels).long()[order]
    split = (f"split drawn (seed {seed})",)
    return Dataset(inputs[test:], labels[test:], inputs[:test], labels[:test], TEN_DIGITS, name, split)


def _load_mnist1d(name, train, test, seed, root) -> Dataset:
    drawn = []
    for split, wanted in (("train", 4000 if train is None else train), ("test", 1000 if test is None else test)):
        drawn += generate_mnist1d(_rows(split, wanted, split), _generator(seed, f"{name} {split}"))
    return Dataset(*drawn, TEN_DIGITS, name, (f"generated (seed {seed})",))


def _load_parity(name, train, test, seed, root, dimension=30) -> Dataset:
    dimension, drawn = _count("dimension", dimension), []
    if dimension < 2:
        raise ValueError(f"dimension is {dimension}; the product of two coordinates needs at least 2")
    for split, wanted in (("train", 100 if train is None else train), ("test", 5000 if test is None else test)):
        drawn += _corners(_rows(split, wanted, split), dimension, 2, _generator(seed, f"{name} {split}"))
    if len(drawn[0]) > EASY_PARITY * dimension:
        warnings.warn(
            f"dimension is {dimension} for {len(drawn[0])} samples: from so many (80 in 12 dimensions) flat networks "
            "with biases, as 1-SAM finds them, generalize too and are no counterexample; take a dimension of at least "
            f"{math.ceil(len(drawn[0]) / EASY_PARITY)}",
            stacklevel=3,
        )
    return Dataset(*drawn, ("-1", "1"), name, (f"generated (seed {seed})",))


def _load_images(name, train, test, seed, root) -> Dataset:
    from genlib import _files  # here, for it imports torchvision

    images, labels, test_images, test_labels, classes = _files.read(name, root)
    mean, deviation = _channel_moments(images)

    def standardised(images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(mean).div_(deviation)

    images, labels = _drawn(name, "train", images, labels, train, seed)
    test_images, test_labels = _drawn(name, "test", test_images, test_labels, test, seed)
    history = (f"samples drawn (seed {seed})", "channels standardised")
    return Dataset(standardised(images), labels, standardised(test_images), test_labels, classes, name, history)


def _load_folders(name, train, test, seed, root) -> Dataset:
    from genlib import _files

    paths, labels, test_paths, test_labels, classes = _files.read_folders(root)
    images, labels = _drawn(name, "train", StreamedImages(paths), labels, train, seed)
    test_images, test_labels = _drawn(name, "test", StreamedImages(test_paths), test_labels, test, seed)
    history = (f"samples drawn (seed {seed})", "channels standardised")
    return Dataset(images, labels, test_images, test_labels, classes, name, history)


TEN_DIGITS = tuple(str(digit) for digit in range(10))
_LOADERS = {
    "digits": _load_digits,
    "mnist1d": _load_mnist1d,
    "parity": _load_parity,
    **dict.fromkeys(("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"), _load_images),
    "imagenet": _load_folders,
}


def _drawn(name, split, images, labels, wanted, seed):
    wanted = _at_most(split, wanted, len(labels), f"{name} has {len(labels)} samples for {split}")
    chosen = torch.randperm(len(labels), generator=_generator(seed, f"{name} {split}"))[:wanted]
    return images[chosen], labels[chosen]


def _channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    # From the counts of the 256 levels: exact, and without a copy in floating point.
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    levels, weights = torch.arange(256).double() / 255, counts / counts.sum(1, keepdim=True)
    mean = weights @ levels
    deviation = (weights @ levels**2 - mean**2).sqrt()
    return mean.float().reshape(-1, 1, 1), deviation.float().reshape(-1, 1, 1)


def _minibatches(inputs, labels: Tensor, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    _count("batch_size", batch_size)
    order = order.to(labels.device)
    if isinstance(inputs, StreamedImages):
        images = inputs.minibatches(order, batch_size, labels.device)
        yield from zip(images, labels[order].split(batch_size), strict=True)
        return
    # One gather for many batches, then views: a gather in each step costs as much as the step of a small network.
    batch_bytes = batch_size * math.prod(inputs.shape[1:]) * inputs.element_size()
    for chosen in order.split(batch_size * max(1, BLOCK_BYTES // batch_bytes)):
        yield from zip(inputs[chosen].split(batch_size), labels[chosen].split(batch_size), strict=True)


def _map_inputs(dataset: Dataset, change: Callable[[Tensor], Tensor], step: str) -> Dataset:
    if isinstance(dataset.inputs, StreamedImages):
        raise ValueError(
            f"dataset: {dataset.name} keeps its images in files, and pixels can be changed in memory only; take a set "
            "that is held in memory, such as cifar10"
        )
    inputs, test_inputs = change(dataset.inputs), change(dataset.test_inputs)
    return _remember(replace(dataset, inputs=inputs, test_inputs=test_inputs), step)


def _pixels(inputs: Tensor) -> Tensor:
    # [samples, channels, pixels], where a vector has one channel
    return inputs.flatten(2) if inputs.dim() > 2 else inputs.unsqueeze(1)


def _remember(dataset: Dataset, step: str) -> Dataset:
    return replace(dataset, history=(*dataset.history, step))


def _generator(seed: int, purpose: str) -> torch.Generator:
    # A stream for each purpose: were the split and the corruption of one seed the same draws, they would be correlated.
    _check_seed(seed)
    digest = hashlib.sha256(f"{purpose} {int(seed)}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ValueError(f"seed is {seed!r}; give a whole number, such as 0")


def _rows(name: str, wanted: int, split: str = "train") -> int:
    """So many as are wanted; in a dry run a few."""
    wanted = _count(name, wanted)
    return min(wanted, scale.DRY_ROWS[split]) if scale.dry_run() else wanted


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}; give a whole number, at least 1")
    return int(value)


def _at_most(name: str, wanted: int | None, available: int, because: str) -> int:
    wanted = available if wanted is None else _count(name, wanted)
    if wanted > available and not scale.dry_run():
        raise ValueError(f"{name} is {wanted}, but {because}; ask for at most {available}")
    return min(wanted, available)


def _check(which: str, inputs, labels, classes) -> None:
    if not isinstance(inputs, StreamedImages) and not (isinstance(inputs, Tensor) and inputs.is_floating_point()):
        raise ValueError(f"{which}inputs must be a tensor of floats; convert them, as by torch.as_tensor(…).float()")
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
