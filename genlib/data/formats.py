"""The formats of image sets, from bytes to arrays: idx, CIFAR's pickles, SVHN's matrices; and made-up ones."""

import io
import math
import pickle
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets

from genlib import scale

__all__ = [
    "cifar",
    "idx",
    "idx_array",
    "made_up",
    "made_up_cifar",
    "made_up_folders",
    "made_up_idx",
    "made_up_svhn",
    "svhn",
]


def idx_array(content: bytes) -> np.ndarray:
    """The array of bytes that an idx file holds."""
    axes = content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0
    if axes not in (1, 3) or len(content) < 4 + 4 * axes:
        raise ValueError(f"is no idx file of images or labels (it begins with {content[:4]!r})")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    if len(content) != 4 + 4 * axes + math.prod(shape):
        raise ValueError(f"is cut short or damaged ({len(content)} bytes, and its header says shape {shape})")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def idx(reader: type, contents: Mapping[str, bytes]) -> tuple:
    images, labels, test_images, test_labels = map(idx_array, contents.values())
    return images[:, None], labels, test_images[:, None], test_labels, tuple(reader.classes)


def cifar(reader: type, contents: Mapping[str, bytes]) -> tuple:
    with warnings.catch_warnings():
        # CIFAR's pickles are of Python 2, and NumPy deprecates a detail of how they spell a dtype
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        batches = {file: pickle.loads(content, encoding="latin1") for file, content in contents.items()}
    key = "labels" if reader is datasets.CIFAR10 else "fine_labels"
    arrays = []
    for files in (reader.train_list, reader.test_list):
        split = [batches[file] for file, _ in files]
        arrays.append(np.concatenate([batch["data"] for batch in split]).reshape(-1, 3, 32, 32))
        arrays.append(np.concatenate([batch[key] for batch in split]))
    return *arrays, tuple(batches[reader.meta["filename"]][reader.meta["key"]])


def svhn(reader: type, contents: Mapping[str, bytes]) -> tuple:
    import scipy.io  # here, for scipy takes longer to import than all of genlib

    splits = [scipy.io.loadmat(io.BytesIO(content)) for content in contents.values()]
    arrays = [array for split in splits for array in (split["X"].transpose(3, 2, 0, 1), split["y"].ravel() % 10)]
    return *arrays, tuple(str(digit) for digit in range(10))


def made_up(split: str, shape: tuple[int, ...], classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(list(split.encode()))
    classes = min(classes, scale.DRY_ROWS["train"] // 3)  # three of each: a chapter draws triples of one class
    labels = random.permutation(np.arange(scale.DRY_ROWS[split]) % classes)
    return random.integers(256, size=(len(labels), *shape), dtype=np.uint8), labels


def made_up_idx(reader: type, members: Iterable[str]) -> dict[str, bytes]:
    contents = {}
    for member in members:
        images, labels = made_up("train" if member.startswith("train") else "test", (28, 28))
        array = images if "images" in member else labels.astype(np.uint8)
        contents[member] = struct.pack(f">{1 + array.ndim}i", 0x0800 + array.ndim, *array.shape) + array.tobytes()
    return contents


class _Python2Pickler(pickle.Pickler):
    def reducer_override(self, value):
        if isinstance(value, np.dtype):  # align is 0 and not False, as in CIFAR's own files
            constructor, (kind, _, copy), state = value.__reduce__()
            return constructor, (kind, 0, copy), state
        return NotImplemented


def made_up_cifar(reader: type, members: Iterable[str]) -> dict[str, bytes]:
    contents = {}
    classes, labels_key = (10, "labels") if reader is datasets.CIFAR10 else (100, "fine_labels")

    def write(file: str, content: dict) -> None:
        stream = io.BytesIO()
        _Python2Pickler(stream, protocol=2).dump(content)
        contents[file] = stream.getvalue()

    for split, files in (("train", reader.train_list), ("test", reader.test_list)):
        images, labels = made_up(split, (3072,), classes)
        parts = zip(files, np.array_split(images, len(files)), np.array_split(labels, len(files)), strict=True)
        for (file, _), rows, targets in parts:
            write(file, {"data": rows, labels_key: targets.tolist()})
    write(reader.meta["filename"], {reader.meta["key"]: [f"class {i}" for i in range(classes)]})
    return contents


def made_up_svhn(reader: type, members: Iterable[str]) -> dict[str, bytes]:
    import scipy.io

    contents = {}
    for member in members:
        images, labels = made_up(member.split("_")[0], (3, 32, 32))
        labels[labels == 0] = 10  # as in the published files
        stream = io.BytesIO()
        scipy.io.savemat(stream, {"X": images.transpose(2, 3, 1, 0), "y": labels.astype(np.uint8)[:, None]})
        contents[member] = stream.getvalue()
    return contents


def made_up_folders(root: Path) -> None:
    for split, folder in (("train", "train"), ("test", "val")):
        images, labels = made_up(split, (320, 304, 3))
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / folder / f"n{label:08d}" / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
