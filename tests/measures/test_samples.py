"""Data in the forms that people have: every row is that of plain inputs and labels, or says what is missing."""

import collections

import numpy as np
import pandas as pd
import pytest
import torch
from measures_cases import SAMPLED, dense, inputs_of, own_labels
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from genlib.measures import CATALOGUE, evaluate
from genlib.measures.samples import inputs_and_labels
from genlib.network import Network

X, Y = torch.arange(40.0).view(10, 4), torch.arange(10) % 3


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Batches:
    """Read again from the start each time, without a length."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def halves(x, y):
    return [(x[:17], y[:17]), (x[17:], y[17:])]


Pair = collections.namedtuple("Pair", "inputs labels")
FORMS = {
    "a list of two": lambda x, y: [x, y],
    "a named tuple": Pair,
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "arrays turned around": lambda x, y: (x.numpy()[::-1].copy()[::-1], y.numpy()[::-1].copy()[::-1]),
    "data frames": lambda x, y: (pd.DataFrame(x.numpy()), pd.Series(y.numpy())),
    "labels as a list": lambda x, y: (x, y.tolist()),
    "labels in a column": lambda x, y: (x, y.unsqueeze(1)),
    "a loader": lambda x, y: DataLoader(TensorDataset(x, y), 7),
    "a tensor dataset": TensorDataset,
    "a dataset": lambda x, y: Rows([(one.numpy(), int(label)) for one, label in zip(x, y, strict=True)]),
    "a dataset that is a stream": lambda x, y: Stream(list(zip(x, y, strict=True))),
    "batches": halves,
    "batches in a tuple": lambda x, y: tuple(halves(x, y)),
    "one batch": lambda x, y: [(x, y)],
    "batches of arrays": lambda x, y: [(a.numpy(), b.numpy()) for a, b in halves(x, y)],
    "batches of three samples": lambda x, y: list(zip(x.split(3), y.split(3), strict=True)),
    "batches without a length": lambda x, y: Batches(*halves(x, y)),
    "batches once": lambda x, y: iter(halves(x, y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_that_of_plain_inputs_and_labels(form, measured):
    network, initial, inputs, labels, expected = measured
    table = evaluate(network, FORMS[form](inputs, labels), initial=initial, first_epoch=initial)
    pd.testing.assert_frame_equal(table, expected)


def test_a_loader_may_shuffle(measured):
    network, _, inputs, labels, expected = measured
    loader = DataLoader(TensorDataset(inputs, labels), 7, shuffle=True)
    names = ["cross_entropy", "inverse_margin", "hessian_trace", "sam_sharpness", "jacobian_norm"]
    for _ in range(2):
        table = evaluate(network, loader, names=names)
        np.testing.assert_allclose(table["value"], expected.loc[names, "value"], rtol=1e-12)


OF_INPUTS = {"negative_entropy", "jacobian_norm", "input_gradient", "transitions"}
OF_LABELS = {name for name, measure in CATALOGUE.items() if "data" in measure.needs and name not in OF_INPUTS}
ALONE = {
    "a tensor": lambda x: x,
    "an array": lambda x: x.numpy(),
    "no labels": lambda x: (x, None),
    "a pair of one": lambda x: (x,),
    "a loader": lambda x: DataLoader(x, 7),
    "a loader of pairs of one": lambda x: DataLoader(TensorDataset(x), 7),
}


@pytest.mark.parametrize("form", ALONE)
def test_of_inputs_alone_only_what_needs_labels_is_missing(form, measured):
    network, initial, inputs, _, expected = measured
    table = evaluate(network, ALONE[form](inputs), initial=initial, first_epoch=initial)
    kept = [name for name in CATALOGUE if name not in OF_LABELS]
    columns = ["value", "standard_error", "reason"]
    pd.testing.assert_frame_equal(table.loc[kept, columns], expected.loc[kept, columns])
    assert table.loc[sorted(OF_LABELS), "reason"].str.startswith("labels are missing; give evaluate inputs and").all()
    assert table["passes"].sum() == table.loc[sorted(OF_INPUTS), "passes"].sum()


def test_without_data_there_are_the_rows_of_the_weights(measured):
    network, initial, _, _, expected = measured
    table = evaluate(network, initial=initial, first_epoch=initial, input_shape=(5,))
    lacking = [name for name, measure in CATALOGUE.items() if "data" in measure.needs]
    kept = [name for name in CATALOGUE if name not in lacking]
    pd.testing.assert_frame_equal(table.loc[kept], expected.loc[kept])
    assert table.loc[lacking, "reason"].str.startswith("data are missing; give evaluate").all()
    without = evaluate(network, initial=initial, names=["l2", "parameter_norm", "product_spectral", "path"])
    assert without["reason"].str.startswith("input_shape is missing").tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match=r"^input_shape is given beside data"):
        evaluate(network, inputs_of(network), input_shape=(5,))
    with pytest.raises(ValueError, match=r"dropout in training mode; call module.eval\(\)"):
        evaluate(nn.Sequential(network, nn.Dropout()), names=["l2"])


def test_a_stack_may_lack_labels_or_data(measured):
    networks, initial = [dense((5, 6, 4, 3), seed=seed) for seed in range(2)], measured[1]
    stack, starts = Network.stack(networks), Network.stack([initial] * 2)
    inputs = inputs_of(networks[0])
    for data, shape in ((inputs, None), (None, (5,))):
        table = evaluate(stack, data, initial=starts, input_shape=shape)
        for i, network in enumerate(networks):
            each = evaluate(network, data, initial=initial, input_shape=shape)
            pd.testing.assert_frame_equal(table.loc[i], each)


def test_a_column_of_labels_is_no_data_of_each_network():
    networks = [dense((5, 3), seed=seed) for seed in range(4)]
    stack, inputs = Network.stack(networks), inputs_of(networks[0], 4)
    labels = own_labels(networks[0], inputs)
    names = ["cross_entropy"]
    shared = evaluate(stack, (inputs, labels), names=names)
    pd.testing.assert_frame_equal(evaluate(stack, (inputs, labels.unsqueeze(1)), names=names), shared)
    own = evaluate(stack, (inputs.unsqueeze(1), labels.unsqueeze(1)), names=names)
    for i in range(4):
        alone = evaluate(networks[i], (inputs[i : i + 1], labels[i : i + 1]), names=names)
        assert own.loc[(i, "cross_entropy"), "value"] == pytest.approx(alone["value"].item())


REFUSED = {
    "a number": (3, "data is a int; give a pair of inputs and labels"),
    "a word": ("cifar10", "data is a str; give a pair"),
    "nothing": ((), "data is a tuple of no batches; give one of a sample or more"),
    "an empty loader": (DataLoader(TensorDataset(X[:0], Y[:0]), 2), "data is a DataLoader of no batches; give one"),
    "what has been read": (
        iter([]),
        "data is a list_iterator of no batches; it may have been read before; give a list",
    ),
    "three tensors": ((X, Y, torch.arange(10)), "data is a tuple of Tensor, Tensor, Tensor; give a pair"),
    "batches of three": (
        DataLoader(TensorDataset(X, Y, Y), 2),
        "a batch of the DataLoader is a list of Tensor, Tensor, ",
    ),
    "other batches": ([X, X, X], "data is a list of Tensor, Tensor, Tensor; give a pair of inputs and labels"),
    "words": ((X, ["a"] * 10), "a batch of the tuple is a list of str, str, str, str; give a pair"),
    "an array of words": (
        (X, np.array(["a"] * 10)),
        "data, in the place of labels, holds a ndarray that is no array of",
    ),
    "samples of nothing": (Rows([("a", None)] * 3), "data is a Rows whose samples can't be put together"),
    "samples of two shapes": (
        Rows([X[0], X[0, :2]]),
        "data is a Rows whose samples can't be put together .* collate_fn",
    ),
    "samples in no batches": (
        DataLoader(TensorDataset(X, Y), batch_size=None),
        "data is a DataLoader whose .* batch_size",
    ),
    "batches of two widths": ([(X[:2], Y[:2]), (X[2:, :3], Y[2:])], "data is a list whose samples differ .*; pad them"),
    "some labels": ([(X[:2], Y[:2]), (X[2:], None)], "data is a list whose samples differ in shape or kind"),
    "whole and other labels": ([(X[:2], Y[:2]), (X[2:], Y[2:].float())], "data is a list whose samples differ"),
    "one-hot labels": (
        (X, nn.functional.one_hot(Y, 3)),
        r"labels has the shape \(10, 3\) .*labels.argmax\(1\) of one-hot",
    ),
    "one-hot floats": ((X, nn.functional.one_hot(Y, 3).float()), r"labels are torch.float32; .*labels.argmax\(1\)"),
    "labels of floats": ((X, Y.float()), r"labels are torch.float32; they must be whole numbers .*labels.long\(\)"),
    "truths": ((X, Y > 0), r"labels are torch.bool; they must be whole numbers .*labels.long\(\)"),
    "labels of others": ((X, Y[:-1]), r"labels has the shape \(9,\) and inputs \(10, 4\)"),
    "one number": ((torch.tensor(1.0), Y), r"labels has the shape \(10,\) and inputs \(\)"),
    "one number alone": (torch.tensor(1.0), r"labels has the shape \(\) and inputs \(\)"),
    "no samples": ((X[:0], Y[:0]), "inputs is empty"),
    "bytes": (
        (X.to(torch.uint8), Y),
        r"network: its forward pass fails .* as inputs.float\(\) / 255 where it asks for",
    ),
    "whole numbers": (
        (X.long(), Y),
        r"network: its forward pass fails .* as inputs.float\(\) where it asks for floats",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_data_are_refused_with_the_mend(form, unchecked):
    data, said = REFUSED[form]
    with pytest.raises(ValueError, match=f"^{said}"):
        evaluate(nn.Linear(4, 3), data, names=["l2", "cross_entropy"])


def test_an_iterator_is_read_once():
    batches = iter([(X, Y)])
    evaluate(nn.Linear(4, 3), batches, names=["cross_entropy"])
    with pytest.raises(ValueError, match="it may have been read before; give a list or a loader"):
        evaluate(nn.Linear(4, 3), batches, names=["cross_entropy"])


def test_arrays_are_left_as_they_were():
    array = np.ones((4, 2), dtype=np.float32)
    array.flags.writeable = False
    inputs, labels = inputs_and_labels((array, np.arange(4, dtype=np.int16)))
    inputs += 1
    assert (array == 1).all() and inputs.dtype == torch.float32 and labels.dtype == torch.int16


class Bytes(nn.Sequential):
    def forward(self, x):
        return super().forward(x.double() / 255)


def test_of_whole_numbers_only_what_moves_them_is_missing(measured):
    network, initial, *_ = measured
    bytes_ = torch.randint(0, 256, (40, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    modules = [Bytes(*network), Bytes(*initial)]
    labels = own_labels(modules[0], bytes_)
    names = [name for name, measure in CATALOGUE.items() if "run" not in measure.needs and name not in SAMPLED]
    tables = [
        evaluate(modules[0], (x, labels), initial=modules[1], first_epoch=modules[1], names=names)
        for x in (bytes_, bytes_.double())
    ]
    moved = ["input_margin", "jacobian_norm", "input_gradient", "transitions"]
    assert tables[0].loc[moved, "reason"].str.match("inputs is of torch.uint8, .* make them float").all()
    pd.testing.assert_frame_equal(*(table.drop(moved) for table in tables))
    assert (tables[0].drop(moved)["reason"] == "").all()


def test_distances_of_layers_need_no_shape_of_a_sample_but_the_spectral_one():
    network, start = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    table = evaluate(network, initial=start, names=["frobenius_distance", "spectral_distance"])
    moved = (network[0].weight - start[0].weight).square().sum().item()
    assert table.loc["frobenius_distance", "value"] == pytest.approx(moved, rel=1e-6)
    assert table.loc["spectral_distance", "reason"].startswith("input_shape is missing")


class Reread:
    """A loader that gives other batches each time it is read, in their order."""

    def __init__(self, *times):
        self.times, self.read = times, 0

    def __iter__(self):
        self.read += 1
        return iter(self.times[self.read - 1])


def test_what_is_read_again_must_be_the_same_in_whatever_order():
    x, y = X, Y
    inputs, labels = inputs_and_labels(Reread(halves(x, y), halves(x.flip(0), y.flip(0))))
    assert torch.equal(inputs, x) and torch.equal(labels, y)
    again = {
        "gives other samples each time": halves(x + torch.eye(10, 4), y),
        "other labels are other samples": halves(x, y.roll(1)),
        "that gave 10 samples and, read again, 7;": halves(x[:7], y[:7]),
        "that gave 10 samples and, read again, 0;": [],
    }
    for words, second in again.items():
        words = "gives other samples each time" if words.startswith("other") else words
        with pytest.raises(ValueError, match=f"^data is a Reread {words}|^data is a Reread that {words}"):
            inputs_and_labels(Reread(halves(x, y), second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool])
def test_what_is_large_lies_in_a_file_and_reads_the_same(dtype, monkeypatch):
    monkeypatch.setattr("genlib.measures.spool._IN_MEMORY", 50)
    x = (torch.rand(23, 3, 2, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    batches = [({"pixels": part, "more": part.flip(2)}, torch.arange(len(part))) for part in x.split(4)]
    inputs, labels = inputs_and_labels([({**b[0]}, b[1]) for b in batches])
    assert torch.equal(inputs["pixels"], x) and torch.equal(inputs["more"], x.flip(2))
    assert torch.equal(labels, torch.cat([label for _, label in batches]))
    inputs["pixels"][0] = 0  # a copy of the file's pages, not the file
    assert not torch.equal(inputs["pixels"], x) or not x[0].any()


def test_all_rows_of_a_stream_are_those_of_its_samples(measured, monkeypatch):
    monkeypatch.setattr("genlib.measures.spool._IN_MEMORY", 50)
    network, initial, inputs, labels, _ = measured
    loader = DataLoader(TensorDataset(inputs.float(), labels), 7)  # floats are cast as they are written
    table = evaluate(network, loader, initial=initial, first_epoch=initial)
    exact = evaluate(network, (inputs.float().double(), labels), initial=initial, first_epoch=initial)
    pd.testing.assert_frame_equal(table, exact)


class Full:
    def write(self, _):
        raise OSError(28, "No space left on device")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_a_full_disk_is_said_to_be_full(monkeypatch):
    monkeypatch.setattr("genlib.measures.spool.tempfile.SpooledTemporaryFile", lambda **_: Full())
    with pytest.raises(ValueError, match=r"^data don't fit: after 17 samples .* TMPDIR"):
        inputs_and_labels(halves(*[torch.zeros(20, 2)] * 2))
