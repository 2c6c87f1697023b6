"""What is read is the published content, wherever it lies; what is not is refused by name, and left as it is."""

import gzip
import os
import re
import shutil
import struct
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from data_cases import IMAGE_SETS, TRAIN
from torchvision import datasets

from genlib.data import files, load

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = files.SOURCES["mnist"].sums


def below(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def contents_of(source):
    """The content of each member of the made-up set."""
    return source.make_up(source.reader, source.sums)


def test_the_table_names_the_files_that_torchvision_reads():
    for name, reader in (("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST)):
        source = files.SOURCES[name]
        assert [source.packed.format(member) for member in source.sums] == [file for file, _ in reader.resources]
        assert source.folders[0] == f"{reader.__name__}/raw"
    for name, reader in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        source = files.SOURCES[name]
        assert [mirror + source.packed for mirror in source.mirrors] == [reader.url]
        of_meta = (reader.meta["filename"], reader.meta["md5"])
        assert list(source.sums.items()) == [*map(tuple, reader.train_list + reader.test_list), of_meta]
    urls = [files.SOURCES["svhn"].mirrors[0] + file for file in files.SOURCES["svhn"].sums]
    assert urls == [datasets.SVHN.split_list[split][0] for split in ("train", "test")]
    sums = [each for source in files.SOURCES.values() for each in source.sums.values()]
    assert all(re.fullmatch("[0-9a-f]{64}|[0-9a-f]{32}", each) for each in sums) and len(set(sums)) == len(sums)


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_torchvision_itself_reads_the_same_from_the_made_up_files(name, placed, monkeypatch):
    """The formats are the published ones; of CIFAR's members it checks the MD5s."""
    root, source = placed(name)
    reader = source.reader
    ours = files.read(name, root)
    if name == "svhn":
        unchecked = {split: [*where, None] for split, (*where, _) in reader.split_list.items()}
        monkeypatch.setattr(reader, "split_list", unchecked)
        theirs = [reader(root, split=split) for split in ("train", "test")]
    elif source.packed == "{}.gz":
        for member, content in contents_of(source).items():
            (root / source.folders[0] / member).write_bytes(content)
        theirs = [reader(root, train=train) for train in (True, False)]
    else:
        shutil.unpack_archive(root / source.packed, root, filter="data")
        for files_of_split in ("train_list", "test_list"):
            sums = [(file, source.sums[file]) for file, _ in getattr(reader, files_of_split)]
            monkeypatch.setattr(reader, files_of_split, sums)
        file = reader.meta["filename"]
        monkeypatch.setattr(reader, "meta", reader.meta | {"md5": source.sums[file]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, on Python 2's dtypes
            theirs = [reader(root, train=train) for train in (True, False)]
        assert ours[4] == tuple(theirs[0].classes)
    for split, images, labels in zip(theirs, ours[0::2], ours[1::2], strict=False):
        data = torch.as_tensor(split.data)
        data = data.permute(0, 3, 1, 2) if name.startswith("cifar") else data.reshape(images.shape)
        assert torch.equal(images, data)
        assert torch.equal(labels, torch.as_tensor(split.labels if name == "svhn" else split.targets))


def test_the_files_may_lie_in_any_layout_packed_or_not(placed, tmp_path_factory):
    _, source = placed("fashion_mnist")
    expected = load("fashion_mnist", root=placed("fashion_mnist")[0]).inputs
    layouts = {
        "torchvision's": ("FashionMNIST/raw", ["{}"] * 4, bytes),
        "torchvision's, packed": ("FashionMNIST/raw", ["{}.gz"] * 4, gzip.compress),
        "plain": ("", ["{}"] * 4, bytes),
        "plain, packed, as Debian's by other means": ("", ["{}.gz"] * 4, lambda content: gzip.compress(content, 1)),
        "unpacked by a browser, which left the name": ("", ["{}.gz"] * 4, bytes),
        "half unpacked": ("", ["{}", "{}.gz", "{}", "{}.gz"], bytes),
    }
    for layout, (folder, names, pack) in layouts.items():
        root = tmp_path_factory.mktemp("root")
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file, (member, content) in zip(names, contents_of(source).items(), strict=True):
            (root / folder / file.format(member)).write_bytes(pack(content))
        before = below(root)
        assert torch.equal(load("fashion_mnist", root=str(root)).inputs, expected), layout
        assert below(root) == before


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_may_be_unpacked_or_packed_anew(name, placed, tmp_path):
    root, source = placed(name)
    expected, archive = load(name, root=root).inputs, root / source.packed
    shutil.unpack_archive(archive, root, filter="data")
    archive.unlink()
    folder = root / source.reader.base_folder
    for place in (root, folder):
        assert torch.equal(load(name, root=place).inputs, expected)
    with tarfile.open(archive, "w:gz", compresslevel=1) as anew:
        for path in sorted(folder.iterdir(), reverse=True):
            anew.add(path, f"./elsewhere/{path.name}")
    shutil.rmtree(folder)
    assert torch.equal(load(name, root=root).inputs, expected)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut short", "altered", "emptied"])
@pytest.mark.parametrize("name", IMAGE_SETS)
def test_a_damaged_file_is_refused_by_name_and_left_as_it_is(name, how, placed):
    root, _ = placed(name)
    for path in below(root):
        intact = path.read_bytes()
        damage(path, how)
        damaged = path.read_bytes()
        with pytest.raises(ValueError, match=rf"^root: files of {name} can't be taken:\n  {re.escape(str(path))} .*\n"):
            load(name, root=root)
        assert path.read_bytes() == damaged
        path.write_bytes(intact)
    assert len(load(name, root=root)) == TRAIN


def sums_of(source, member, content):
    return (
        f"its content has the sum {files._sum(content, source.sums[member])}, the published one {source.sums[member]}"
    )


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_what_is_another_file_is_said(packed, placed):
    root, source = placed("mnist")
    contents = contents_of(source)
    shape = struct.unpack(">4I", contents[IMAGES][:16])[1:]
    of_user = contents[IMAGES][:-1] + bytes([contents[IMAGES][-1] ^ 1])
    cases = [
        (IMAGES, contents[LABELS], f"is {LABELS} of mnist"),
        (LABELS, contents[IMAGES], f"is {IMAGES} of mnist"),
        (TEST_IMAGES, contents[IMAGES], f"is {IMAGES} of mnist"),
        (IMAGES, of_user, f"holds other images, of shape {shape}"),
        (LABELS, struct.pack(">2I", 0x801, 3) + b"abc", "holds other labels, of shape (3,)"),
        (
            IMAGES,
            contents[IMAGES][:-5],
            f"is cut short or damaged ({TRAIN * 784 + 11} bytes, and its header says shape",
        ),
        (IMAGES, b"", "is no idx file of images or labels (it begins with b'')"),
        (LABELS, b"\0\0\x08\x01\0", "is no idx file of images or labels"),
        (LABELS, b"\0\0\x0d\x01" + bytes(8), "is no idx file of images or labels"),  # floats
        (IMAGES, b"<html>", "is no idx file of images or labels (it begins with b'<htm')"),
    ]
    for path in below(root):
        path.unlink()
    for member, content in contents.items():
        (root / member).write_bytes(content)
    for member, content, kind in cases:
        path = root / f"{member}.gz" if packed else root / member
        (root / member).unlink()
        path.write_bytes(gzip.compress(content) if packed else content)
        with pytest.raises(ValueError) as error:
            load("mnist", root=root)
        assert f"{path} {kind}" in str(error.value) and sums_of(source, member, content) in str(error.value)
        path.unlink()
        (root / member).write_bytes(contents[member])
    assert len(load("mnist", root=root)) == TRAIN


def test_another_set_under_the_same_names_is_said(placed, monkeypatch):
    root, of_mnist = placed("mnist")
    fashion = replace(of_mnist, sums=dict.fromkeys(of_mnist.sums, "0" * 64))
    monkeypatch.setitem(files.SOURCES, "fashion_mnist", fashion)
    with pytest.raises(ValueError, match=f"{root}/MNIST/raw/{IMAGES}.gz is {IMAGES} of mnist: "):
        load("fashion_mnist", root=root)


def test_a_right_file_is_read_past_a_wrong_one(placed):
    root, _ = placed("mnist")
    before = load("mnist", root=root)
    (root / "MNIST/raw" / IMAGES).write_bytes(b"not the published images")
    assert torch.equal(load("mnist", root=root).inputs, before.inputs)
    assert (root / "MNIST/raw" / IMAGES).read_bytes() == b"not the published images"


def test_an_archive_that_lacks_a_member_is_refused(placed):
    root, source = placed("cifar10")
    with tarfile.open(root / source.packed, "w:gz") as archive:
        archive.add(__file__, "cifar-10-batches-py/data_batch_1")
    with pytest.raises(
        ValueError, match=f"{source.packed} is damaged or another file: its content(.|\n)*no data_batch_2"
    ):
        load("cifar10", root=root)


def test_a_link_to_what_is_not_there_is_said_and_left(placed, monkeypatch):
    monkeypatch.setattr(files, "download_url", lambda *_: pytest.fail("fetched"))
    root, _ = placed("mnist")
    path = root / f"MNIST/raw/{IMAGES}.gz"
    path.unlink()
    path.symlink_to("/drive/that/is/not/mounted")
    with pytest.raises(ValueError, match=f"{path} is a link to what is not there: /drive/that"):
        load("mnist", root=root)
    assert path.is_symlink()


@pytest.mark.parametrize("packed", ["w:xz", "w:bz2"])
def test_a_damaged_archive_of_another_packing_is_refused_by_name(packed, placed):
    root, source = placed("cifar10")
    with tarfile.open(root / source.packed, packed) as archive:
        archive.add(__file__, "cifar-10-batches-py/data_batch_1")
    content = (root / source.packed).read_bytes()
    for at in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[at] ^= 255
        (root / source.packed).write_bytes(damaged)
        with pytest.raises(ValueError, match=source.packed):
            load("cifar10", root=root)


@pytest.mark.parametrize("what", ["FashionMNIST/raw", f"FashionMNIST/raw/{IMAGES}.gz"], ids=["folder", "file"])
def test_what_can_not_be_read_is_said(what, placed):
    made, _ = placed("fashion_mnist")
    user = os.geteuid()
    with TemporaryDirectory() as root:  # not the tests' own folder, which only their user may enter
        shutil.copytree(made, root, dirs_exist_ok=True)
        Path(root).chmod(0o755)
        assert len(load("fashion_mnist", root=root)) == TRAIN
        Path(root, what).chmod(0)
        if user == 0:
            os.seteuid(65534)  # for root reads everything
        try:
            with pytest.raises(ValueError) as error:
                load("fashion_mnist", root=root)
        finally:
            os.seteuid(user)
            Path(root, what).chmod(0o755)
    folder = f"{root}/FashionMNIST/raw"
    assert re.search(
        f"{folder}/{IMAGES}.* can't be read by this user; try chmod -R a\\+rX {folder}\n", str(error.value)
    )
    assert (LABELS in str(error.value)) == (what == "FashionMNIST/raw")


def test_a_missing_file_is_fetched_and_no_other_is_touched(placed, monkeypatch):
    root, source = placed("mnist")
    made, _ = files._stand_in("mnist")
    tried = []

    def fetch(url, folder):
        tried.append(url)
        if len(tried) == 1:
            raise TimeoutError("timed out")
        shutil.copy(f"{made}/MNIST/raw/{url.rsplit('/', 1)[1]}", folder)

    monkeypatch.setattr(files, "download_url", fetch)
    before, present = load("mnist", root=root), below(root)
    path = root / f"MNIST/raw/{IMAGES}.gz"
    path.unlink()
    times = {path: path.stat().st_mtime_ns for path in below(root)}
    after = load("mnist", root=root)
    assert tried == [mirror + path.name for mirror in source.mirrors[:2]]
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.inputs, load("mnist", root=root).inputs)
    assert below(root) == present and all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert not list(path.parent.glob("tmp*"))


def test_a_fetched_file_that_is_not_the_published_one_is_refused(placed, monkeypatch):
    root, source = placed("cifar10")
    path = root / source.packed
    path.unlink()
    monkeypatch.setattr(files, "download_url", lambda url, folder: shutil.copy(__file__, f"{folder}/{path.name}"))
    with pytest.raises(FileNotFoundError, match=f"{path.name} is cut short, damaged or no archive"):
        load("cifar10", root=root)
    assert not path.exists()


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_without_a_network_the_error_says_what_to_place_where(name, tmp_path, alone):
    with pytest.raises(FileNotFoundError) as error:
        load(name, root=tmp_path)
    for member, digest in files.SOURCES[name].sums.items():
        assert f"{member} {digest}" in str(error.value)
    assert f" is missing in {tmp_path}" in str(error.value) and "Place it there" in str(error.value)
    assert "fetching it failed" in str(error.value) and "Name or service not known" in str(error.value)
    debian = "apt-get install dataset-fashion-mnist (31 MB), Debian's, to /usr/share/datasets/fashion-mnist"
    assert (debian in str(error.value)) == (name == "fashion_mnist")


def test_a_root_that_is_a_file_is_refused(tmp_path, alone):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=f"is missing in {tmp_path}/file/MNIST/raw or "):
        load("mnist", root=tmp_path / "file")


def test_the_usual_folder_is_in_the_home_directory(tmp_path, alone, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"train_32x32.mat is missing in {tmp_path}/.cache/genlib/data"):
        load("svhn")


def test_fetching_puts_the_time_limit_back(tmp_path, alone, monkeypatch):
    seen = []
    monkeypatch.setattr(
        files, "download_url", lambda url, folder: seen.append(files.socket.getdefaulttimeout()) or 1 / 0
    )
    before = files.socket.getdefaulttimeout()
    with pytest.raises(ZeroDivisionError):
        load("svhn", root=tmp_path)
    assert seen == [30] and files.socket.getdefaulttimeout() == before
