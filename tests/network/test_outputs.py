"""The logits are found in what a forward pass returns, and the table is theirs; what is unclear is refused."""

import collections
from dataclasses import dataclass

import pandas as pd
import pytest
import torch
from cases import WHOLE
from torch import Tensor, nn

from genlib.measures import evaluate
from genlib.network import Network
from genlib.network.losses import logits_of_classes
from genlib.network.outputs import logits_of


class ModelOutput(collections.OrderedDict):
    """As that of transformers: a dict whose entries are attributes, too."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


@dataclass
class Found:
    logits: Tensor
    features: Tensor


Named = collections.namedtuple("Named", "features logits")


class Head(nn.Module):
    """Two dense layers, and what `how` makes of the logits, the hidden units and a layer of a branch."""

    def __init__(self, how, outputs=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second, self.branch = nn.Linear(5, 7), nn.Linear(7, outputs), nn.Linear(7, 4)
        self.how = how

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        return self.how(self.second(hidden), hidden, self.branch)


def table(how, outputs=3, **options):
    network = Head(how, outputs).double()
    inputs = torch.randn(30, 5, generator=torch.Generator().manual_seed(1)).double()
    hidden = torch.relu(network.first(inputs))
    labels = logits_of_classes(network.second(hidden)).argmax(1)
    start = Head(how, outputs, seed=1).double()
    return evaluate(network, (inputs, labels), initial=start, first_epoch=start, **{"names": WHOLE} | options)


@pytest.fixture(scope="module")
def expected():
    tables = {outputs: table(lambda f, h, b: f, outputs) for outputs in (3, 1)}
    assert all((found["reason"] == "").sum() >= 60 for found in tables.values())
    return tables


FORMS = {
    "a dict": lambda f, h, b: {"features": h, "logits": f},
    "an object": lambda f, h, b: Found(f, h),
    "a dict with attributes": lambda f, h, b: ModelOutput(logits=f, features=h),
    "a named tuple": lambda f, h, b: Named(h, f),
    "a tuple of one": lambda f, h, b: (f,),
    "a tuple with features": lambda f, h, b: (f, h),
    "a list with a branch that has weights": lambda f, h, b: [f, b(h).tanh(), None],
}
SQUEEZED = {
    "squeeze()": lambda f, h, b: f.squeeze(),
    "squeeze(-1)": lambda f, h, b: f.squeeze(-1),
    "torch.squeeze in a tuple": lambda f, h, b: (torch.squeeze(f, 1), h),
    "squeezed in a dict": lambda f, h, b: {"logits": f.squeeze()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_that_of_the_logits_alone(form, expected):
    pd.testing.assert_frame_equal(table(FORMS[form]), expected[3])


@pytest.mark.parametrize("form", SQUEEZED)
def test_of_one_output_the_axis_may_be_squeezed_out(form, expected):
    pd.testing.assert_frame_equal(table(SQUEEZED[form], 1), expected[1])


def test_of_more_outputs_a_sample_alone_may_lose_its_axis(expected):
    pd.testing.assert_frame_equal(table(lambda f, h, b: f.squeeze()), expected[3])


@pytest.mark.parametrize("outputs", [1, 3])
def test_where_samples_pass_one_by_one_each_has_its_axis(outputs):
    """Not through torch.fx, nor layer by layer: gradients of single samples, by vmap or one after the other."""

    def looked_at(f, h, b):
        return f.squeeze() if h.detach().sum() > -1e30 else f

    def computed(f, h, b):
        return (f * nn.functional.softmax(b(h), 1).sum(1, keepdim=True)).squeeze()

    names = ["gradient_variance", "first_gradient_variance", "hessian_trace"]
    for how in (looked_at, computed):
        kept = table(lambda f, h, b: how(f, h, b).view(-1, outputs), outputs, names=names)  # noqa: B023
        pd.testing.assert_frame_equal(table(how, outputs, names=names), kept)


@pytest.mark.parametrize("form", ["a dict", "a tuple with features"])
def test_a_stack_finds_the_logits_of_each_network(form, expected):
    names = ["cross_entropy", "inverse_margin", "input_margin", "jacobian_norm", "sam_sharpness", "gradient_variance"]
    networks = [Head(FORMS[form]).double(), Head(FORMS[form]).double()]
    inputs = torch.randn(30, 5, generator=torch.Generator().manual_seed(1)).double()
    labels = logits_of(networks[0](inputs), 30).argmax(1)
    found = evaluate(Network.stack(networks), (inputs, labels), names=names)
    for i in range(2):
        pd.testing.assert_series_equal(found.loc[i, "value"], expected[3].loc[names, "value"])


REFUSED = {
    "features first": (lambda f, h, b: (h, f), r"a tuple of \(8, 7\), \(8, 3\); wrap it"),
    "features first, one output squeezed": (lambda f, h, b: (h, f[:, 0]), r"a tuple of \(8, 7\), \(8,\); wrap it"),
    "a loss first": (lambda f, h, b: (f.mean(), f), r"a tuple of \(\), \(8, 3\); wrap it"),
    "series first": (lambda f, h, b: (f.unsqueeze(1), None), r"a tuple of \(8, 1, 3\), NoneType; wrap it"),
    "another key": (lambda f, h, b: {"out": f, "aux": h}, "a dict of out, aux; wrap it"),
    "nothing": (lambda f, h, b: (), "a tuple of nothing; wrap it"),
    "no tensor": (lambda f, h, b: {"logits": None}, "a dict of logits; wrap it"),
    "an array": (lambda f, h, b: f.detach().numpy(), "a ndarray; wrap it"),
    "classes": (lambda f, h, b: {"logits": f.argmax(1)}, None),
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_outputs_are_refused_with_the_mend(form):
    how, said = REFUSED[form]
    said = "of torch.int64; let it return logits" if said is None else f"{said} .*returns the logits alone, or .* dict"
    with pytest.raises(ValueError, match=f"^network: its output is {said}"):
        table(how, names=["l2"])
