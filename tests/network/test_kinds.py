"""The kinds of operations, by what they are given; and what torch.fx is helped to follow."""

import copy
import operator
import random

import pytest
import torch
import torch.nn.functional as F
from cases import drawn
from idioms import BENT, CONSTANT, LINEAR, MEETING, NEITHER, Between
from torch import nn

from genlib.network import Network
from genlib.network.operations import Rerun

AFFINE = {**LINEAR, **CONSTANT, **MEETING}
PIECEWISE_LINEAR = {name: function for name, (function, _) in BENT.items()}
X = torch.randn(3, 4, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Alone(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.function(x)


def kinds(function):
    return {layer.name: layer.kind for layer in Network.of(Alone(function)).layers}


@pytest.mark.parametrize("name", AFFINE)
def test_what_is_affine_is_linear(name):
    function = copy.deepcopy(AFFINE[name])
    function = function.double() if isinstance(function, nn.Module) else function
    found = kinds(function)
    assert found and set(found.values()) == {"linear"}
    a, b = X, X.flip(0).roll(1, 3)
    middle, ends = function((a + b) / 2), [function(x.clone()) for x in (a, b)]
    torch.testing.assert_close(middle, (ends[0] + ends[1]) / 2)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", BENT)
def test_what_bends_is_piecewise_linear(name):
    found = kinds(BENT[name][0])
    assert set(found.values()) <= {"linear", "piecewise linear"} and "piecewise linear" in found.values()
    function = torch.func.vmap(lambda x: BENT[name][0](x.unsqueeze(0)).flatten())
    with torch.no_grad():
        near, far, between = (function(X + t) for t in (0.0, 2e-9, 1e-9))
    torch.testing.assert_close(between, (near + far) / 2, rtol=1e-14, atol=1e-15)  # no kink is near


@pytest.mark.parametrize("name", NEITHER)
def test_what_is_neither_is_neither(name):
    function, operation, kind = NEITHER[name]
    assert kinds(function)[operation] == kind
    assert not Network.of(Between(lambda x: function(x) if x.requires_grad else x)).piecewise_linear


@pytest.mark.parametrize("seed", range(30))
def test_compositions_are_what_their_parts_are(seed):
    choose = random.Random(seed)
    functions = {n: f for n, f in {**AFFINE, **PIECEWISE_LINEAR}.items() if not isinstance(f, nn.Module)}
    same = {n: f for n, f in functions.items() if f(torch.zeros(2, 4, 4, 3)).shape == (2, 4, 4, 3)}
    names = choose.choices(list(same), k=4)

    def whole(x):
        for name in names:
            x = same[name](x)
        return x

    found = kinds(whole)
    expected = {"linear", "piecewise linear"} if set(names) & set(BENT) else {"linear"}
    assert set(found.values()) <= expected and ("piecewise linear" in found.values()) == (len(expected) == 2)
    odd = choose.choice(list(NEITHER))
    assert not set(kinds(lambda x: NEITHER[odd][0](whole(x))).values()) <= {"linear", "piecewise linear"}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap has no rule for clamp_
@pytest.mark.parametrize("name", {**AFFINE, **PIECEWISE_LINEAR})
def test_the_graph_does_what_the_module_does_alone_and_in_a_stack(name):
    modules = [drawn(Between({**AFFINE, **PIECEWISE_LINEAR}[name]).double(), seed) for seed in (1, 2)]
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    expected = torch.stack([module(x) for module in modules])
    torch.testing.assert_close(Rerun(modules[0], graph=Network.of(modules[0]).graph).run(x.clone()), expected[0])
    if name in ("moveaxis", "data asserted"):  # which vmap can't follow
        return
    stack = Network.stack(modules)
    torch.testing.assert_close(stack.apply(stack.params, x), expected)


def test_a_weight_is_no_data():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.layer = nn.Parameter(torch.ones(3)), nn.Linear(4, 3)

        def forward(self, x):
            return torch.sigmoid(self.gate) * F.linear(x, self.layer.weight)

    class Given(Gated):
        def forward(self, x):
            return self.gate * F.linear(x, self.layer(torch.eye(4)).T)

    assert {layer.kind for layer in Network.of(Gated()).layers} == {"linear"}
    assert [layer.kind for layer in Network.of(Given()).layers if layer.name == "linear"] == ["smooth"]


class Written(nn.Module):
    """A dense layer before and after what is written in place."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 4), nn.Linear(4, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def _a_view_stays(x):
    left = x[:, :2]
    x += 1
    return torch.cat([left, x[:, 2:]], 1)


def _a_part(x):
    x[:, :2].mul_(2)
    return x


def _another_name(x):
    other = x
    x -= 1
    return other


def _a_shape_stays(x):
    shape = x.shape
    x += 1
    x = x.mul_(3)
    return x.view(shape[0], -1)


def _by_keyword(x):
    kept = x
    torch.relu_(input=x)
    return nn.functional.relu(input=x + kept, inplace=True)


def _of_two_names(x):
    kept = x.flatten(1)
    return x.add_(1) + kept


def _relu_in_place(x):
    kept = x
    nn.functional.relu(x, inplace=True)
    return x + kept


def _a_number(x):
    rows = more = x.shape[0]
    more += 1
    return x.view(rows, -1)[: more - 1]


def _more_parts(x):
    parts = kept = x.chunk(2, 1)
    parts += (x,)
    return parts[2] + torch.cat(kept, 1)


SEEN = [_a_part, _of_two_names, _a_view_stays, _a_number, _more_parts]


@pytest.mark.parametrize("function", SEEN)
def test_a_change_that_others_see_or_may_see_stays_unknown(function):
    layers = Network.of(Written(function)).layers
    assert [layer.kind for layer in layers if layer.operation in ("mul_", "add_", operator.iadd)] == ["unknown"]


IN_PLACE = [_a_shape_stays, _another_name, _relu_in_place, _by_keyword, *SEEN]


@pytest.mark.parametrize("function", IN_PLACE)
def test_what_is_changed_in_place_is_changed_in_the_graph(function):
    network, x = Written(function).double(), torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(Rerun(network, graph=Network.of(network).graph).run(x), network(x))


def test_a_change_that_nobody_else_sees_is_a_new_value():
    network = Network.of(Written(_a_shape_stays))
    assert {layer.kind for layer in network.layers} == {"linear"}
    assert [layer.operation for layer in network.layers if layer.name == "mul_"] == ["mul"]


def test_what_counts_keeps_no_proxy():
    class Counts(nn.Linear):
        seen = 0

        def forward(self, x):
            Counts.seen += len(x)
            return super().forward(x)

    module = Counts(4, 2)
    assert Network.of(module).graph is None and Counts.seen == 0
    assert len([1, 2]) == 2 and type(len) is type(abs)  # Python's own again


def _branch(x):
    if x.dim() == 2:
        return x
    raise ValueError("not two axes")


def test_a_branch_is_no_assertion():
    assert Network.of(Written(_branch)).graph is None


def test_an_assertion_that_was_passed_over_holds_when_the_module_runs():
    network = Network.of(Alone(LINEAR["shape asserted"]))
    assert network.piecewise_linear
    with pytest.raises(AssertionError, match="no batch of images"):
        network.module(torch.zeros(2, 5, 4, 3))
