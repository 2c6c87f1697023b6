"""Nothing but the published files is read: damaged ones are fetched anew or refused by name."""

import gzip
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from data_cases import IMAGE_SETS, TEST, TRAIN
from torchvision import datasets

from genlib.data import files, load


def test_the_table_names_the_files_that_torchvision_reads():
    for name, reader in (("mnist", datasets.MNIST), ("fashion_mnist", datasets.FashionMNIST)):
        source = files.SOURCES[name]
        assert list(source.sha256) == [file for file, _ in reader.resources]
        assert source.folder == f"{reader.__name__}/raw"
    for name, reader in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        assert [mirror + reader.filename for mirror in files.SOURCES[name].mirrors] == [reader.url]
        assert list(files.SOURCES[name].sha256) == [reader.filename]
    urls = [files.SOURCES["svhn"].mirrors[0] + file for file in files.SOURCES["svhn"].sha256]
    assert urls == [datasets.SVHN.split_list[split][0] for split in ("train", "test")]
    digests = [digest for source in files.SOURCES.values() for digest in source.sha256.values()]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests) and len(set(digests)) == len(digests)


def test_torchvision_itself_reads_the_made_up_files(tmp_path):
    """The formats are the published ones: torchvision's own classes read them, less their MD5s."""
    root, source = files._stand_in("mnist")
    for packed, plain in zip(source.files(Path(root)), source.files(tmp_path), strict=True):
        plain.parent.mkdir(parents=True, exist_ok=True)
        plain.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    assert len(datasets.MNIST(tmp_path, train=True)) == TRAIN and len(datasets.MNIST(tmp_path, train=False)) == TEST
    root, _ = files._stand_in("cifar10")
    shutil.unpack_archive(f"{root}/cifar-10-python.tar.gz", tmp_path, filter="data")
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        datasets.CIFAR10(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(files._CIFAR10(tmp_path)) == TRAIN


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut short":
        path.write_bytes(content[:-7])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut short", "altered", "emptied"])
@pytest.mark.parametrize("name", IMAGE_SETS)
def test_a_damaged_file_is_refused_by_name(name, how, placed):
    root, source = placed(name)
    for path in source.files(root):
        intact = path.read_bytes()
        damage(path, how)
        with (
            pytest.warns(UserWarning, match=f"{path} is damaged .* fetching it anew"),
            pytest.raises(
                ValueError, match=f"{path} is damaged .*, and fetching it failed:\n.*Name or service not known"
            ),
        ):
            load(name, root=root)
        path.write_bytes(intact)
    assert len(load(name, root=root)) == TRAIN


def test_a_damaged_file_is_fetched_anew(placed, monkeypatch):
    root, source = placed("mnist")
    made, _ = files._stand_in("mnist")
    tried = []

    def fetch(url, folder):
        tried.append(url)
        if len(tried) == 1:
            raise TimeoutError("timed out")
        shutil.copy(f"{made}/MNIST/raw/{url.rsplit('/', 1)[1]}", folder)

    monkeypatch.setattr(files, "download_url", fetch)
    before = load("mnist", root=root)
    path = next(iter(source.files(root)))
    damage(path, "altered")
    with pytest.warns(UserWarning, match="is damaged"):
        after = load("mnist", root=root)
    assert tried == [mirror + path.name for mirror in source.mirrors[:2]]
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.inputs, load("mnist", root=root).inputs)
    assert not list(path.parent.glob("tmp*"))


def test_a_fetched_file_that_is_not_the_published_one_is_refused(placed, monkeypatch):
    root, source = placed("cifar10")
    path = next(iter(source.files(root)))
    path.unlink()
    monkeypatch.setattr(files, "download_url", lambda url, folder: shutil.copy(__file__, f"{folder}/{path.name}"))
    with pytest.raises(FileNotFoundError, match=f"{path.name}: what came has SHA-256"):
        load("cifar10", root=root)
    assert not path.exists()


@pytest.mark.parametrize("name", IMAGE_SETS)
def test_without_a_network_the_error_says_what_to_place_where(name, tmp_path, placed):
    with pytest.raises(FileNotFoundError) as error:
        load(name, root=tmp_path)
    for path, digest in files.SOURCES[name].files(tmp_path).items():
        assert f"{path} with SHA-256 {digest}" in str(error.value)
    assert "is missing, and fetching it failed" in str(error.value) and "Place it there" in str(error.value)


def test_the_usual_folder_is_in_the_home_directory(tmp_path, placed, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/.cache/genlib/data/train_32x32.mat is missing"):
        load("svhn")


def test_files_unpacked_earlier_are_not_read(placed):
    root, _ = placed("mnist")
    before = load("mnist", root=root)
    (root / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"not the published images")
    assert torch.equal(load("mnist", root=root).inputs, before.inputs)
    assert (root / "MNIST/raw/train-images-idx3-ubyte").read_bytes() == b"not the published images"


def test_fetching_puts_the_time_limit_back(placed, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        files, "download_url", lambda url, folder: seen.append(files.socket.getdefaulttimeout()) or 1 / 0
    )
    before = files.socket.getdefaulttimeout()
    with pytest.raises(ZeroDivisionError):
        load("svhn", root=tmp_path)
    assert seen == [30] and files.socket.getdefaulttimeout() == before
