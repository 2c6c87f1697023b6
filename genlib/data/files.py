"""Image sets on disk: their checksums, fetching and reading them, and the small files that a dry run makes."""

import atexit
import contextlib
import gzip
import hashlib
import http.client
import io
import os
import pickle
import shutil
import socket
import struct
import sys
import tarfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import numpy as np
import scipy.io
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from genlib import scale

__all__ = ["SOURCES", "Source", "read", "read_folders"]


# The SHA-256 of an archive stands for all that is in it. torchvision's MD5s of the unpacked files say the same of the
# published files and would refuse the small files of a dry run, so these readers leave them out.
class _CIFAR10(datasets.CIFAR10):
    train_list = tuple((file, None) for file, _ in datasets.CIFAR10.train_list)
    test_list = tuple((file, None) for file, _ in datasets.CIFAR10.test_list)
    meta = MappingProxyType(datasets.CIFAR10.meta | {"md5": None})


class _CIFAR100(datasets.CIFAR100):
    train_list = tuple((file, None) for file, _ in datasets.CIFAR100.train_list)
    test_list = tuple((file, None) for file, _ in datasets.CIFAR100.test_list)
    meta = MappingProxyType(datasets.CIFAR100.meta | {"md5": None})


class _SVHN(datasets.SVHN):
    split_list = MappingProxyType({split: (*where, None) for split, (*where, _) in datasets.SVHN.split_list.items()})


@dataclass(frozen=True)
class Source:
    """The class that reads a set, where its files come from, their folder, and their names with their SHA-256."""

    reader: type
    mirrors: Sequence[str]
    folder: str
    sha256: Mapping[str, str]

    def files(self, root: Path) -> dict[Path, str]:
        """The paths of the files under `root`, with their SHA-256."""
        return {root / self.folder / name: digest for name, digest in self.sha256.items()}


# SHA-256 as published by torchvision (prototype datasets), TensorFlow Datasets (url_checksums) and Keras.
SOURCES = {
    "mnist": Source(
        datasets.MNIST,
        datasets.MNIST.mirrors,
        "MNIST/raw",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Source(
        datasets.FashionMNIST,
        datasets.FashionMNIST.mirrors,
        "FashionMNIST/raw",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": Source(
        _CIFAR10,
        ["https://www.cs.toronto.edu/~kriz/"],
        "",
        {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
    ),
    "cifar100": Source(
        _CIFAR100,
        ["https://www.cs.toronto.edu/~kriz/"],
        "",
        {"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
    ),
    "svhn": Source(
        _SVHN,
        ["http://ufldl.stanford.edu/housenumbers/"],
        "",
        {
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
    ),
}
Split = tuple[Tensor | np.ndarray, Tensor, Tensor | np.ndarray, Tensor, tuple[str, ...]]


def read(name: str, root: str | os.PathLike | None) -> Split:
    """Images [n, channels, height, width] in uint8 and labels of training and test set, and the classes' names.

    The files in `root` are fetched where they are missing and checked by SHA-256 before anything is read.
    A damaged file that can't be fetched anew: ValueError. A missing one: FileNotFoundError.
    """
    source = SOURCES[name]
    if scale.dry_run():
        root, source = _stand_in(name)
    files = source.files(_folder(root))
    for path in files:
        _ensure(name, path, files, source.mirrors)
    # Archives are unpacked anew each time: nothing vouches for a file that was unpacked earlier.
    with TemporaryDirectory() as unpacked:
        for path, to in zip(files, source.files(Path(unpacked)), strict=True):
            _unpack(path, to)
        images, labels, classes = _read_split(name, unpacked, train=True)
        test_images, test_labels, _ = _read_split(name, unpacked, train=False)
    return images, labels, test_images, test_labels, classes


def read_folders(root: str | os.PathLike | None) -> Split:
    """ImageNet as `read` gives the other sets, but with the paths of the images in place of the images.

    The files are `root`/train/<class>/* and `root`/val/<class>/*. A missing folder: FileNotFoundError.
    """
    root = Path(_stand_in("imagenet")[0]) if scale.dry_run() else _folder(root) / ("" if root else "imagenet")
    splits = [_list_folders(root / split) for split in ("train", "val")]
    (paths, labels, classes), (test_paths, test_labels, test_classes) = splits
    if classes != test_classes:
        differ = ", ".join(sorted(set(classes) ^ set(test_classes))[:5])
        raise ValueError(f"root: {root}/train and {root}/val must hold the same classes, but differ in {differ}")
    return paths, labels, test_paths, test_labels, classes


def _list_folders(folder: Path) -> tuple[np.ndarray, Tensor, tuple[str, ...]]:
    if not folder.is_dir():
        place = f"{folder.parent}/train/<class>/* and {folder.parent}/val/<class>/*"
        raise FileNotFoundError(
            f"imagenet needs the folder {folder}, and there is none. ImageNet (ILSVRC 2012) is not fetched: place its "
            f"images as {place}, or set root to the folder that holds train and val"
        )
    found = datasets.ImageFolder(folder)
    # an array of bytes: a list of a million strings would be copied into each process that decodes
    return np.array([os.fsencode(path) for path, _ in found.samples]), torch.tensor(found.targets), tuple(found.classes)


def _folder(root) -> Path:
    return Path(root or "~/.cache/genlib/data").expanduser().absolute()


def _ensure(name: str, path: Path, files: Mapping[Path, str], mirrors: Sequence[str]) -> None:
    expected = files[path]
    found = _sha256(path) if path.is_file() else None
    if found == expected:
        return
    state = f"is damaged (its SHA-256 is {found})" if found else "is missing"
    if found:
        warnings.warn(f"{path} {state}; fetching it anew", stacklevel=4)
    failures = _fetch(path, expected, mirrors)
    if not failures:
        return
    needs = [f"{each} with SHA-256 {digest}" for each, digest in files.items()]
    mend = f"Place it there by hand, or set root to the folder that has it. {name} needs:"
    message = "\n  ".join([f"{path} {state}, and fetching it failed:", *failures, mend, *needs])
    raise ValueError(message) if found else FileNotFoundError(message)


def _fetch(path: Path, expected: str, mirrors: Sequence[str]) -> list[str]:
    # Fetched beside its place and moved there once checked, so that a break leaves no half file. Returns the failures.
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    with TemporaryDirectory(dir=path.parent) as folder, _fetching():
        fetched = Path(folder) / path.name
        for mirror in mirrors:
            try:
                download_url(mirror + path.name, folder)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                failures.append(f"{mirror}{path.name}: {error}")
                continue
            if (found := _sha256(fetched)) == expected:
                os.replace(fetched, path)
                return []
            failures.append(f"{mirror}{path.name}: what came has SHA-256 {found}")
            fetched.unlink()
    return failures


@contextlib.contextmanager
def _fetching():
    # torchvision sets no time limit and writes its progress to stderr.
    shown = sys.stdout if sys.stdout.isatty() or scale.on_colab() else io.StringIO()
    limit = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with contextlib.redirect_stderr(shown):
            yield
    finally:
        socket.setdefaulttimeout(limit)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(to.parent)
    elif path.suffix == ".gz":
        with gzip.open(path) as packed, to.with_suffix("").open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    else:
        shutil.copyfile(path, to)


def _read_split(name: str, root: str, *, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    split = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    with warnings.catch_warnings():
        # CIFAR's pickles are of Python 2, and NumPy deprecates a detail of how they spell a dtype
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        found = SOURCES[name].reader(root, **split)
    images = torch.as_tensor(found.data)
    if name == "svhn":
        return images.contiguous(), torch.as_tensor(found.labels), tuple(str(digit) for digit in range(10))
    images = images.permute(0, 3, 1, 2).contiguous() if images.dim() == 4 else images.unsqueeze(1)
    return images, torch.as_tensor(found.targets), tuple(found.classes)


@cache
def _stand_in(name: str) -> tuple[str, Source | None]:
    """A folder with a few made-up images in the format of the set `name`, and the source with their checksums."""
    directory = TemporaryDirectory()
    atexit.register(directory.cleanup)
    root = Path(directory.name)
    if name == "imagenet":
        _write_folders(root)
        return directory.name, None
    source = SOURCES[name]
    write = {"cifar10": _write_cifar, "cifar100": _write_cifar, "svhn": _write_svhn}.get(name, _write_idx)
    (root / source.folder).mkdir(parents=True, exist_ok=True)
    write(source, root / source.folder)
    return directory.name, replace(source, sha256={path.name: _sha256(path) for path in source.files(root)})


def _made_up(split: str, shape: tuple[int, ...], classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(list(split.encode()))
    classes = min(classes, scale.DRY_ROWS["train"] // 3)  # three of each: a chapter draws triples of one class
    labels = random.permutation(np.arange(scale.DRY_ROWS[split]) % classes)
    return random.integers(256, size=(len(labels), *shape), dtype=np.uint8), labels


def _write_idx(source: Source, folder: Path) -> None:
    for file in source.sha256:
        images, labels = _made_up("train" if file.startswith("train") else "test", (28, 28))
        array = images if "images" in file else labels.astype(np.uint8)
        header = struct.pack(f">{1 + array.ndim}i", 0x0800 + array.ndim, *array.shape)
        with gzip.open(folder / file, "wb") as packed:
            packed.write(header + array.tobytes())


class _Python2Pickler(pickle.Pickler):
    def reducer_override(self, value):
        if isinstance(value, np.dtype):  # align is 0 and not False, as in CIFAR's own files
            constructor, (kind, _, copy), state = value.__reduce__()
            return constructor, (kind, 0, copy), state
        return NotImplemented


def _write_cifar(source: Source, folder: Path) -> None:
    reader = source.reader
    classes, labels_key = (10, "labels") if reader is _CIFAR10 else (100, "fine_labels")
    batches = folder / reader.base_folder
    batches.mkdir()

    def write(file: str, content: dict) -> None:
        with (batches / file).open("wb") as batch:
            _Python2Pickler(batch, protocol=2).dump(content)

    for split, files in (("train", reader.train_list), ("test", reader.test_list)):
        images, labels = _made_up(split, (3072,), classes)
        parts = zip(files, np.array_split(images, len(files)), np.array_split(labels, len(files)), strict=True)
        for (file, _), rows, targets in parts:
            write(file, {"data": rows, labels_key: targets.tolist()})
    write(reader.meta["filename"], {reader.meta["key"]: [f"class {i}" for i in range(classes)]})
    with tarfile.open(folder / reader.filename, "w:gz") as archive:
        archive.add(batches, reader.base_folder)


def _write_svhn(source: Source, folder: Path) -> None:
    for file in source.sha256:
        images, labels = _made_up(file.split("_")[0], (3, 32, 32))
        labels[labels == 0] = 10  # as in the published files
        scipy.io.savemat(folder / file, {"X": images.transpose(2, 3, 1, 0), "y": labels.astype(np.uint8)[:, None]})


def _write_folders(root: Path) -> None:
    for split, folder in (("train", "train"), ("test", "val")):
        images, labels = _made_up(split, (320, 304, 3))
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / folder / f"n{label:08d}" / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
