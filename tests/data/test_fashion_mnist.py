"""The real Fashion-MNIST, where Debian's package dataset-fashion-mnist is installed."""

import gzip
import hashlib
import shutil
import struct
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from genlib import train
from genlib.data import files, load
from genlib.models import mlp

DEBIAN = Path(files.DEBIAN)
pytestmark = pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist isn't installed")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(files, "download_url", lambda url, folder: pytest.fail(f"{url} was fetched"))


@pytest.fixture
def two_seeds():
    return [load("fashion_mnist", train=2000, seed=seed, device="cpu") for seed in (0, 1)]


def sorted_rows(*tensors):
    return sorted(tuple(row.tolist()) for row in torch.cat([tensor.flatten(1) for tensor in tensors], dim=1))


def test_seeds_hardly_share_training_images_and_share_the_test_images(two_seeds):
    """Two draws of 2000 from 60,000 share 67 on average, with a deviation of 8."""
    trained = [set(sorted_rows(each.inputs)) for each in two_seeds]
    assert all(len(rows) > 1990 for rows in trained)  # few images of the set are there twice
    assert 35 <= len(trained[0] & trained[1]) <= 105
    tests = [(each.test_inputs[:, 0, ::4, ::4], each.test_labels[:, None].float()) for each in two_seeds]
    assert all(len(labels) == 10_000 for _, labels in tests)
    assert sorted_rows(*tests[0]) == sorted_rows(*tests[1])


def test_the_whole_set_is_balanced_and_standardised():
    images, labels, _, test_labels, classes = files.read("fashion_mnist", None)
    assert images.shape == (60_000, 1, 28, 28) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert labels.bincount().tolist() == [6000] * 10 and test_labels.bincount().tolist() == [1000] * 10
    assert (classes[0], classes[9]) == ("T-shirt/top", "Ankle boot")
    drawn = load("fashion_mnist", test=1, device="cpu")
    assert abs(drawn.inputs.mean()) < 1e-4 and abs(drawn.inputs.std() - 1) < 1e-4
    with pytest.raises(ValueError, match="train is 60001, but fashion_mnist has 60000 samples for train"):
        load("fashion_mnist", train=60_001)


def test_the_content_is_that_of_the_published_archives():
    """With name and time put back into the headers of Debian's, the MD5s are those that torchvision knows."""
    for file, published in datasets.FashionMNIST.resources:
        debian, time = (DEBIAN / file).read_bytes(), 1504176606 if file.startswith("train") else 1504176627
        header = (
            debian[:3] + b"\x08" + struct.pack("<I", time) + debian[8:10] + file.removesuffix(".gz").encode() + b"\0"
        )
        assert hashlib.md5(header + debian[10:]).hexdigest() == published != hashlib.md5(debian).hexdigest()


def test_a_copy_of_debians_files_is_read_and_its_likes_refused(tmp_path, alone):
    for path in DEBIAN.iterdir():
        shutil.copy(path, tmp_path)
    assert len(load("fashion_mnist", train=2000, root=tmp_path)) == 2000
    images = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(images.read_bytes()))
    content[-1] ^= 1
    images.write_bytes(gzip.compress(content, 1))
    published = "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    with pytest.raises(ValueError, match=rf"{images} holds other images, of shape \(60000, 28, 28\): .* {published}\n"):
        load("fashion_mnist", root=tmp_path)


def test_an_epoch_of_training_learns(two_seeds):
    dataset = two_seeds[0]
    run = train.fit(mlp(784, 10, width=64), dataset, lr=0.02, batch_size=50, stop=train.Stop(epochs=1))
    accuracy = train.loss_and_accuracy(run.module, dataset.test_inputs, dataset.test_labels)[1]
    assert run.steps == 40 and accuracy > 0.6
