"""Image sets on disk: where their files may lie, the sums of what is in them, and small ones for a dry run."""

import atexit
import contextlib
import gzip
import hashlib
import http.client
import io
import itertools
import lzma
import os
import socket
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import download_url

from genlib import scale
from genlib.data import formats

__all__ = ["SOURCES", "Source", "read", "read_folders"]

DEBIAN = "/usr/share/datasets/fashion-mnist"


@dataclass(frozen=True)
class Source:
    """torchvision's class for a set, where its files come from and may lie, and the sums of their content, unpacked.

    `folders` are below the root, the first one torchvision's, where fetched files go. A member of the set lies there
    by itself, or in the file `packed`. A sum is a SHA-256, or an MD5 where torchvision publishes no other.
    """

    reader: type
    parse: Callable
    make_up: Callable
    mirrors: Sequence[str]
    folders: Sequence[str]
    packed: str
    sums: Mapping[str, str]
    package: str = ""

    def places(self, root: Path) -> dict[Path, list[str]]:
        """The files below `root` that may hold the set, with the members that each would hold."""
        places = {}
        for folder, member in itertools.product(self.folders, self.sums):
            for file in dict.fromkeys([member, self.packed.format(member)]):
                places.setdefault(root / folder / file, []).append(member)
        return places


def _cifar(reader: type) -> Source:
    members = dict([*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])])
    mirror = reader.url.removesuffix(reader.filename)
    return Source(
        reader, formats.cifar, formats.made_up_cifar, [mirror], ["", reader.base_folder], reader.filename, members
    )


SOURCES = {
    # The sums of MNIST's content, with those of the archives that torchvision publishes: github.com/cvdfoundation/mnist
    "mnist": Source(
        datasets.MNIST,
        formats.idx,
        formats.made_up_idx,
        datasets.MNIST.mirrors,
        ["MNIST/raw", ""],
        "{}.gz",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": Source(
        datasets.FashionMNIST,
        formats.idx,
        formats.made_up_idx,
        datasets.FashionMNIST.mirrors,
        ["FashionMNIST/raw", "", DEBIAN],
        "{}.gz",
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        f", or apt-get install dataset-fashion-mnist (31 MB), Debian's, to {DEBIAN}",
    ),
    "cifar10": _cifar(datasets.CIFAR10),
    "cifar100": _cifar(datasets.CIFAR100),
    # The SHA-256 as published by TensorFlow Datasets.
    "svhn": Source(
        datasets.SVHN,
        formats.svhn,
        formats.made_up_svhn,
        ["http://ufldl.stanford.edu/housenumbers/"],
        [""],
        "{}",
        {
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
    ),
}
Split = tuple[Tensor | np.ndarray, Tensor, Tensor | np.ndarray, Tensor, tuple[str, ...]]


def read(name: str, root: str | os.PathLike | None) -> Split:
    """Images [n, channels, height, width] in uint8 and labels of training and test set, and the classes' names.

    Each file is looked for in torchvision's folder below `root`, in `root` itself and where Debian has it, unpacked or
    not. What is read has the published content, by its sum; files that are nowhere are fetched, and none that is
    there is overwritten. A file that is damaged or another, or can't be read: ValueError. A missing one that can't be
    fetched: FileNotFoundError.
    """
    root, source = _stand_in(name) if scale.dry_run() else (_folder(root), SOURCES[name])
    *arrays, classes = source.parse(source.reader, _contents(name, source, Path(root)))
    images, labels, test_images, test_labels = (torch.from_numpy(np.array(array, order="C")) for array in arrays)
    return images, labels.long(), test_images, test_labels.long(), classes


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


def _contents(name: str, source: Source, root: Path) -> dict[str, bytes]:
    """The content of each member of the set, from the first file that holds the published one."""
    found, faults = {}, {}
    for path, members in source.places(root).items():
        if wanted := [member for member in members if member not in found]:
            intact, wrong = _take(path, wanted, source.sums)
            found, faults = found | intact, wrong | faults
    missing = [member for member in source.sums if member not in found]
    if wrong := dict.fromkeys(faults[member] for member in missing if member in faults):
        mend = f"Nothing was changed. Mend or remove them (what is missing is fetched), or set root to a whole {name}"
        raise ValueError("\n  ".join([f"root: files of {name} can't be taken:", *wrong, mend]))
    files = {}
    for member in missing:
        files.setdefault(source.packed.format(member), []).append(member)
    for file, members in files.items():
        intact, failures = _fetch(source, root / source.folders[0], file, members)
        if failures:
            raise FileNotFoundError(_needs(name, source, root, file, failures))
        found |= intact
    return {member: found[member] for member in source.sums}


def _needs(name: str, source: Source, root: Path, file: str, failures: Sequence[str]) -> str:
    looked = " or ".join(str(root / folder) for folder in source.folders)
    sums = [f"{member} {published}" for member, published in source.sums.items()]
    mend = f"Place it there by hand, unpacked or not, or set root to the folder that has it{source.package}"
    unpacked = f"The sums of {name}, unpacked:"
    return "\n  ".join([f"{file} is missing in {looked}, and fetching it failed:", *failures, mend, unpacked, *sums])


def _take(path: Path, wanted: Iterable[str], sums: Mapping[str, str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """The members whose content in a file is the published one, and by member what is wrong with the others."""
    try:
        contents = _unpacked(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        link = f"{path} is a link to what is not there: {os.readlink(path)}" if path.is_symlink() else ""
        return {}, dict.fromkeys(wanted, link) if link else {}
    except PermissionError:
        return {}, dict.fromkeys(wanted, f"{path} can't be read by this user; try chmod -R a+rX {path.parent}")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        return {}, dict.fromkeys(wanted, f"{path} is cut short, damaged or no archive: {error}")
    intact, faults = {}, {}
    for member in wanted:
        content = contents.get(member)
        if content is None:
            faults[member] = f"{path} is damaged or another archive: it has no {member}"
        elif (found := _sum(content, sums[member])) == sums[member]:
            intact[member] = content
        else:
            sums_of_both = f"its content has the sum {found}, the published one {sums[member]}"
            faults[member] = f"{path} {_kind(member, content, found)}: {sums_of_both}"
    return intact, faults


def _unpacked(path: Path) -> dict[str, bytes]:
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            return {Path(each.name).name: archive.extractfile(each).read() for each in archive if each.isfile()}
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):  # and not by the name: browsers unpack, and leave the name
        content = gzip.decompress(content)
    return {path.name.removesuffix(".gz"): content}


def _sum(content: bytes, like: str) -> str:
    return hashlib.new("md5" if len(like) == 32 else "sha256", content, usedforsecurity=False).hexdigest()


def _kind(member: str, content: bytes, found: str) -> str:
    """What a file holds in place of its member."""
    for name, source in SOURCES.items():
        for other, published in source.sums.items():
            if published == found:
                return f"is {other} of {name}"
    if "-idx" not in member:
        return "is damaged or another file"
    try:
        array = formats.idx_array(content)
    except ValueError as error:
        return str(error)
    return f"holds other {'images' if array.ndim == 3 else 'labels'}, of shape {array.shape}"


def _fetch(source: Source, folder: Path, file: str, members: Sequence[str]) -> tuple[dict[str, bytes], list[str]]:
    """The members in a file that is fetched to the folder, or else the failures."""
    failures = []
    for url in (mirror + file for mirror in source.mirrors):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Fetched beside its place and moved there once checked, so that a break leaves no half file.
            with TemporaryDirectory(dir=folder) as beside, _fetching():
                download_url(url, beside)
                intact, faults = _take(Path(beside, file), members, source.sums)
                if not faults:
                    os.replace(Path(beside, file), folder / file)
                    return intact, []
                failures += [f"{url}: {fault}" for fault in faults.values()]
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
    return {}, failures


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


@cache
def _stand_in(name: str) -> tuple[Path, Source | None]:
    """A folder with a few made-up images in the format of the set `name`, and the source with their sums."""
    directory = TemporaryDirectory()
    atexit.register(directory.cleanup)
    root = Path(directory.name)
    if name == "imagenet":
        formats.made_up_folders(root)
        return root, None
    source = SOURCES[name]
    contents = source.make_up(source.reader, source.sums)
    (root / source.folders[0]).mkdir(parents=True, exist_ok=True)
    if source.packed.endswith(".tar.gz"):
        with tarfile.open(root / source.packed, "w:gz") as archive:
            for member, content in contents.items():
                entry = tarfile.TarInfo(f"{source.reader.base_folder}/{member}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    else:
        for member, content in contents.items():
            path = root / source.folders[0] / source.packed.format(member)
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return root, replace(source, sums={member: _sum(contents[member], like) for member, like in source.sums.items()})
