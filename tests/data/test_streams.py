"""Images that stay in their files."""

import shutil
from pathlib import Path

import pytest
import torch
from data_cases import TEST

from genlib.data import (
    attack_set,
    center_crop,
    corrupt_labels,
    files,
    gaussian_pixels,
    load,
    random_pixels,
    shuffle_pixels,
)
from genlib.data.streams import StreamedImages


@pytest.fixture
def folders(tmp_path):
    made, _ = files._stand_in("imagenet")
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_imagenet_is_streamed_from_its_folders(folders):
    loaded = load("imagenet", train=12, root=folders)
    assert isinstance(loaded.inputs, StreamedImages) and loaded.input_shape == (3, 299, 299)
    assert (len(loaded), len(loaded.test_labels)) == (12, TEST)
    assert "files unverified" in repr(loaded)
    assert loaded.classes == tuple(f"n{label:08d}" for label in range(5))
    order = torch.tensor([5, 0, 11, 5, 7])
    batches = list(loaded.minibatches(order, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    inputs, labels = map(torch.cat, zip(*batches, strict=True))
    assert torch.equal(labels, loaded.labels[order])
    for image, label, index in zip(inputs, labels, order, strict=True):
        path = loaded.inputs.paths[index].decode()
        assert f"/train/n{label:08d}/" in path
        assert torch.equal(image, loaded.inputs[int(index)])
    test_inputs, test_labels = map(torch.cat, zip(*loaded.test_minibatches(8), strict=True))
    assert test_inputs.shape == (TEST, 3, 299, 299) and torch.equal(test_labels, loaded.test_labels)


def test_a_streamed_image_is_resized_cropped_and_standardised(tmp_path):
    from PIL import Image

    for colour, folder in (((255, 0, 51), "train"), ((255, 0, 51), "val")):
        (tmp_path / folder / "only").mkdir(parents=True)
        Image.new("RGB", (700, 400), colour).save(tmp_path / folder / "only" / "wide.png")
    image = load("imagenet", root=tmp_path).inputs[0]
    expected = (torch.tensor([1, 0, 0.2]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert image.shape == (3, 299, 299)
    torch.testing.assert_close(image, expected[:, None, None].expand(3, 299, 299), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kept", [0, 500])
def test_an_image_cut_short_is_refused_by_name(folders, kept):
    streamed = load("imagenet", root=folders).inputs
    path = Path(streamed.paths[3].decode())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{path} is no whole image"):
        streamed[3]


def test_labels_of_streamed_images_can_be_changed_and_pixels_not(folders):
    loaded = load("imagenet", root=folders)
    corrupted = attack_set(corrupt_labels(loaded, 0.5, seed=0), 5, seed=0)
    assert corrupted.wrong_rate > 0.3 and corrupted.inputs is loaded.inputs
    small = corrupted.subset(12, seed=0)
    where = [list(loaded.inputs.paths).index(path) for path in small.inputs.paths]
    assert torch.equal(corrupted.labels[where], small.labels)
    for corrupt in (shuffle_pixels, random_pixels, gaussian_pixels):
        with pytest.raises(ValueError, match="imagenet keeps its images in files"):
            corrupt(loaded, seed=0)
    with pytest.raises(ValueError, match="imagenet keeps its images in files"):
        center_crop(loaded, 200)


def test_without_its_folders_imagenet_says_what_to_place_where(folders, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(
        FileNotFoundError, match=f"needs the folder {empty}/train.*{empty}/train/<class>/.*{empty}/val/<class>/"
    ):
        load("imagenet", root=empty)
    shutil.rmtree(folders / "val" / "n00000003")
    with pytest.raises(ValueError, match="must hold the same classes, but differ in n00000003"):
        load("imagenet", root=folders)
    shutil.rmtree(folders / "val")
    with pytest.raises(FileNotFoundError, match=f"needs the folder {folders}/val"):
        load("imagenet", root=folders)
