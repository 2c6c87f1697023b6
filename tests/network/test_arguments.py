"""A forward pass that takes several tensors is measured as one that takes them as one, and looks them up by sample."""

import collections

import numpy as np
import pandas as pd
import pytest
import torch
from cases import WHOLE
from torch import nn
from torch.utils.data import DataLoader

from genlib.measures import evaluate
from genlib.network import Network
from genlib.network.arguments import Arguments


class Parts(nn.Module):
    """Images, words and a mask of these, or all in one tensor; layers run in another order than they stand here."""

    def __init__(self, seed=0, change=lambda h: h):
        super().__init__()
        torch.manual_seed(seed)
        self.head, self.change = nn.Linear(9, 3), change
        self.image, self.words = nn.Conv2d(2, 3, 2), nn.Linear(4, 6)

    def forward(self, image, words, mask=None):
        words = self.words(torch.where(mask, words, 0).to(image))
        return self.head(torch.cat([torch.relu(self.image(image)).amax((2, 3)), torch.relu(self.change(words))], 1))


class Whole(Parts):
    def forward(self, x):
        if float(x.detach().sum()) < -1e30:  # which torch.fx doesn't follow
            return x
        image, words, mask = x.split([18, 4, 4], 1)
        return super().forward(image.view(-1, 2, 3, 3), words, mask > 0)


class Named(Parts):
    """As those of transformers: everything by its name, and more than there is."""

    def forward(self, ids=None, words=None, mask=None, image=None, labels=None, **options):
        assert ids is None and labels is None and not options
        return {"loss": None, "logits": super().forward(image, words, mask)}


def parts(seed=1, samples=24):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(samples, 2, 3, 3, generator=generator)
    words, mask = torch.randint(0, 9, (2, samples, 4), generator=generator)
    return image, words, mask > 3


X, Y = parts()[0], torch.arange(24) % 3


def whole(image, words, mask):
    return torch.cat([image.flatten(1), words, mask], 1)


def table(kind, data, **options):
    network, start = (kind(seed).double().eval() for seed in (0, 1))
    return evaluate(network, data, initial=start, first_epoch=start, **{"names": WHOLE} | options)


PATHS = ["path", "l1_path", "path_margin", "l1_path_margin", "neyshabur_l1_path", "neyshabur_l2_path"]
GRAM = ["soft_rank", "tic", "log_evidence"]  # of layers that torch.fx has seen
OF_ONE = ["input_margin", "jacobian_norm", "input_gradient", "transitions", "loss_curvature"]
OF_ONE += ["spectral_origin", "spectral_start", "spectral_complexity", "local_complexity", "mixup_response"]
KEYS = ("image", "words", "mask", "labels")
FORMS = {
    "a tuple": (Parts, lambda i, w, m, y: ((i, w, m), y)),
    "arrays": (Parts, lambda i, w, m, y: ((i.numpy(), w.numpy(), m.numpy()), y.numpy())),
    "names": (Parts, lambda i, w, m, y: ({"mask": m, "words": w, "image": i}, y)),
    "names with labels": (Named, lambda i, w, m, y: {"labels": y, "image": i, "words": w, "mask": m, "ids": None}),
    "a loader": (
        Named,
        lambda i, w, m, y: DataLoader([dict(zip(KEYS, s, strict=True)) for s in zip(i, w, m, y, strict=True)], 5),
    ),
    "batches": (Parts, lambda i, w, m, y: [((i[:9], w[:9], m[:9]), y[:9]), ((i[9:], w[9:], m[9:]), y[9:])]),
    "whole numbers of few bits": (Parts, lambda i, w, m, y: ((i, w.to(torch.uint8), m), y)),
    "writing into them": (lambda s: Parts(s, lambda h: h.relu_()), lambda i, w, m, y: ((i, w, m), y)),
}


@pytest.fixture(scope="module")
def expected():
    x = whole(*parts())
    with torch.no_grad():
        labels = Whole().double()(x.double()).argmax(1)
    return labels, table(Whole, (x, labels))


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_that_of_all_in_one_tensor(form, expected):
    (kind, of), (labels, rows), given = FORMS[form], expected, parts()
    found = table(kind, of(*given, labels))
    assert all(torch.equal(a, b) for a, b in zip(given, parts(), strict=True))
    assert found.loc[OF_ONE, "reason"].str.match("inputs are several tensors, .* forward that takes one").all()
    assert found.loc[PATHS, "reason"].str.startswith("network: it takes several inputs, and a path norm").all()
    assert found.loc[GRAM, "reason"].str.endswith("top_eigenvalues gives those of the Hessian of any network").all()
    found, rows = found.drop(OF_ONE + PATHS + GRAM), rows.drop(OF_ONE + PATHS + GRAM)
    refused = set(rows.index[rows["reason"] != ""])
    of_the_run, of_others = {"steps", "first_steps", "last_steps", "training_area"}, {"lipschitz_bound", "rescaled_kl"}
    assert refused == of_the_run | of_others | {"spectral_alpha"}
    pd.testing.assert_frame_equal(found, rows)


def test_of_inputs_alone_the_rest_is_measured():
    found = table(Parts, dict(zip(KEYS, parts(), strict=False)), names=["negative_entropy", "cross_entropy", "l2"])
    assert found["reason"].str.startswith("labels are missing").tolist() == [False, True, False]
    entropy = table(Whole, whole(*parts()), names=["negative_entropy"])
    assert found.loc["negative_entropy", "value"] == entropy["value"].item()


@pytest.mark.parametrize("own", [False, True])
def test_a_stack_shares_its_inputs_or_each_has_its_own(own):
    names = ["cross_entropy", "sam_sharpness", "keskar_sharpness", "gradient_variance", "product_spectral"]
    networks, data = [Parts(seed).double() for seed in range(2)], [parts(seed) for seed in range(2)]
    labels = torch.arange(48).view(2, 24) % 3
    inputs = tuple(map(torch.stack, zip(*data, strict=True))) if own else data[0]
    found = evaluate(Network.stack(networks), (inputs, labels if own else labels[0]), names=names)
    for i, network in enumerate(networks):
        alone = evaluate(network, (data[i * own], labels[i * own]), names=names)
        pd.testing.assert_frame_equal(found.loc[i], alone, rtol=1e-9)


class First(nn.Module):
    """One tensor, by one name or another; more may be given."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(18, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, pixels, scale=None):
        return self.layers(pixels.flatten(1)) * (1 if scale is None else scale)


ALONE = {
    "the name that forward has": lambda x, y: {"pixels": x, "labels": y},
    "a name of the data's own": lambda x, y: ({"image": x}, y),
    "a tuple of one": lambda x, y: ((x,), y),
    "a loader": lambda x, y: DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], 5),
    "a list of dicts": lambda x, y: [{"x": x[:9], "y": y[:9]}, {"x": x[9:], "y": y[9:]}],
    "a dict of arrays": lambda x, y: {"pixels": x.numpy(), "target": y.numpy()},
    "what is like a dict": lambda x, y: collections.UserDict(pixels=x, label=y),
}


@pytest.mark.parametrize("form", ALONE)
def test_of_one_tensor_by_a_name_all_rows_are_there(form):
    x = parts()[0]
    labels = First().double()(x.double()).argmax(1)
    rows = table(First, (x, labels))
    assert set(rows.index[rows["reason"] != ""]) == {
        *("transitions", "class_separation"),  # of one ellipse, and of one class
        *("lipschitz_bound", "rescaled_kl", "spectral_alpha"),  # of no chain, nor a wide layer
        *("steps", "first_steps", "last_steps", "training_area"),
    }
    pd.testing.assert_frame_equal(table(First, ALONE[form](x, labels)), rows)


def test_one_tensor_by_a_later_name_is_that():
    scale = parts()[0].flatten(1)[:, :1]
    names = ["cross_entropy", "gradient_variance", "sam_sharpness"]

    class Fixed(First):
        def forward(self, pixels=None, scale=None):
            return super().forward(torch.ones(len(scale), 18).to(scale), scale)

    y = torch.arange(24) % 3
    found = table(Fixed, {"scale": scale, "y": y}, names=names)
    np.testing.assert_allclose(
        found["value"], table(First, ((torch.ones(24, 18), scale), y), names=names)["value"], rtol=1e-12
    )


class Late(First):
    def forward(self, pixels, words, image):
        return super().forward(pixels, words)


FAILS = r"network: its forward pass fails on inputs of shape "
TAKES = r"; give inputs as forward takes them, pixels, scale, several as .* in a dict"
REFUSED = {
    "a name too many": ({"pixels": X, "index": Y}, rf"{FAILS}.* unexpected keyword argument 'index'\){TAKES}"),
    "no name for the first": ({"scale": Y}, rf"{FAILS}.* missing 1 required positional argument: 'pixels'\){TAKES}"),
    "three by their places": (
        (X, Y, Y),
        rf"{FAILS}.* takes from 2 to 3 positional arguments but 4 were given\){TAKES}",
    ),
    "other samples": ((X, Y[:-1]), r"data has inputs of the shapes \(24, 2, 3, 3\) and \(23,\); give each a row"),
    "a number for all": ({"pixels": X, "scale": torch.tensor(2.0)}, r"data has inputs of the shapes .* as a buffer"),
    "words": ({"pixels": X, "scale": ["a"] * 24}, r"data, by the name 'scale', holds a str; give"),
    "zeros left out": ((X, Y.to_sparse()), r"data holds a sparse tensor, torch.sparse_coo; give a dense one"),
    "samples in a list": (list(X), r"labels has the shape \(24,\) and inputs \(2,\); give one label a sample"),
    "shapes that don't go together": (
        (X, torch.ones(24, 2)),
        rf"{FAILS}\(8, 2, 3, 3\) and torch.float32, \(8, 2\) and ",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_inputs_are_refused_with_the_mend(form):
    inputs, said = REFUSED[form]
    with pytest.raises(ValueError, match=f"^{said}"):
        evaluate(First(), (inputs, Y), names=["l2"])
    with pytest.raises(ValueError, match=r"^data has target and y, each of which may be the labels"):
        evaluate(First(), {"pixels": X, "y": Y, "target": Y})
    with pytest.raises(ValueError, match=r"^data has no inputs; give"):
        evaluate(First(), {"y": Y})
    with pytest.raises(ValueError, match=f"^{FAILS}.*missing 2 required .*: 'words' and 'image'.*take"):
        evaluate(Late(), (X, Y))


def test_samples_that_are_mixed_are_seen():
    network = Parts(change=lambda h: h - h.mean(0))
    found = evaluate(network, (parts(), Y), names=["l2", "cross_entropy", "product_spectral"])
    assert found.loc["cross_entropy", "reason"].startswith("network: its forward pass mixes samples")
    assert found.loc["l2", "reason"] == ""


def test_batch_normalization_with_several_inputs_is_refused_where_its_layer_is_unknown():
    network = Parts()
    network.words = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    found = evaluate(network.eval(), (parts(), Y), names=["product_spectral", "cross_entropy"])
    assert found["reason"].str.startswith("network: it takes several inputs, so what words.1").tolist() == [True, False]


def test_floats_are_looked_up_in_the_precision_of_the_weights_and_whole_numbers_as_they_are():
    arguments = Arguments((torch.ones(3, 2),), {"ids": torch.arange(3, dtype=torch.uint8)})
    for dtype in (torch.float32, torch.float64):
        (x,), named = arguments.of(torch.tensor([2, 0]), {"w": torch.ones(1, dtype=dtype)})
        assert x.dtype == dtype and named["ids"].tolist() == [2, 0] and named["ids"].dtype == torch.uint8
    assert arguments.numbers == 3
