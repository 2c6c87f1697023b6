"""Activations that are registered: what a network with them gets, and which claims are refused."""

import types

import pytest
import torch
import torch.nn.functional as F
from cases import drawn
from torch import nn

from genlib import curvature, norms, sensitivity
from genlib.measures import evaluate
from genlib.network import Network, register_activation
from genlib.network.kinds import KINKS, MODULES, NONEXPANSIVE, TABLE
from genlib.network.objective import Objective


@pytest.fixture(autouse=True)
def _as_before():
    """Of the registry nothing stays."""
    registries = [(registry, dict(registry)) for registry in (KINKS, MODULES, NONEXPANSIVE, TABLE)]
    yield
    for registry, before in registries:
        registry.clear()
        registry.update(before)


def leaky(x):
    return torch.where(x > 0, x, torch.asinh(torch.sinh(0.1 * x)))


def _hidden_(x):  # neither of the underscores says anything
    return leaky(x)


def hinge(x, at):
    return torch.log(torch.exp(F.relu(x - at)))


class Leaky(nn.Module):
    def forward(self, x):
        return leaky(x)


class Hinge(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, x):
        return hinge(x, self.at)


class Each(nn.Module):
    """A slope for each unit."""

    def __init__(self, slopes):
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor(slopes))

    def forward(self, x):
        return torch.asinh(torch.sinh(torch.where(x > 0, x, self.slopes * x)))


class Opaque(torch.autograd.Function):
    """A relu through which neither torch.fx nor torch.func sees."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


class Opaquely(nn.Module):
    def forward(self, x):
        return Opaque.apply(x)


class Calling(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(activation):
    layers = nn.Linear(4, 5), activation, nn.Linear(5, 5), activation, nn.Linear(5, 3)
    return drawn(nn.Sequential(*layers).double())


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.arange(12) % 3


def kinds(module):
    return {layer.kind for layer in Network.of(module).layers}


@pytest.mark.parametrize("function", [False, True])
def test_a_registered_activation_gets_the_rows_of_its_twin(function):
    module, twin = network(Calling(leaky) if function else Leaky()), network(nn.LeakyReLU(0.1))
    rows = ["path", "l1_path", "transitions", "hessian_trace", "jacobian_norm"]
    assert "unknown" in kinds(module)
    assert evaluate(module, data(), names=rows)["value"].isna()[["path", "l1_path", "transitions"]].all()
    register_activation(leaky if function else Leaky, "piecewise linear", kinks=(0,), nonexpansive=True)
    found, expected = (evaluate(m, data(), names=rows) for m in (module, twin))
    assert found["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), rel=1e-9)


def same_measures(module, twin, x=None):
    y = data()[1]
    x = data()[0] if x is None else x
    assert torch.equal(sensitivity.transitions(module, 2 * x), sensitivity.transitions(twin, 2 * x))
    traces = [curvature.trace(m, x, y, method="exact").value for m in (module, twin)]
    torch.testing.assert_close(*traces)


@pytest.mark.parametrize("function", [False, True])
def test_images_pass_it_too(function):
    register_activation(leaky if function else Leaky, "piecewise linear", kinks=(0,), nonexpansive=True)

    def images(activation):
        convolution, norm, head = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(12, 3)
        pool = nn.MaxPool2d(2)
        return drawn(nn.Sequential(convolution, norm, activation, pool, activation, nn.Flatten(), head).double())

    module, twin = images(Calling(leaky) if function else Leaky()), images(nn.LeakyReLU(0.1))
    same_measures(module, twin, torch.randn(12, 2, 4, 4, dtype=torch.float64))
    for p in (1, 2):
        paths = [norms.path_norm(m, input_shape=(2, 4, 4), p=p) for m in (module, twin)]
        torch.testing.assert_close(*paths)


@pytest.mark.parametrize("slopes", [[0.1] * 5, [0.1, 0.2, -0.3, 0.9, 0.0]])
def test_settings_and_weights_are_the_modules_own(slopes):
    register_activation(Each, "piecewise linear", kinks=(0,), nonexpansive=True)
    twin = nn.PReLU(5)
    twin.weight.data = torch.tensor(slopes)
    path = 2 * data()[0]
    counts = [sensitivity.transitions(network(activation), path) for activation in (Each(slopes), twin)]
    assert torch.equal(*counts) and counts[0].sum() > 0


def test_kinks_may_hang_on_the_module_or_on_the_arguments():
    register_activation(Hinge, "piecewise linear", kinks=lambda layer: (layer.at,))
    register_activation(hinge, "piecewise linear", kinks=lambda at: [at])

    class Twin(nn.Module):
        def forward(self, x):
            return F.relu(x - 0.7)

    for activation in (Hinge(0.7), Calling(lambda x: hinge(x, 0.7)), Calling(lambda x: hinge(x, at=0.7))):
        same_measures(network(activation), network(Twin()))
    with pytest.raises(ValueError, match="no known paths"):
        norms.path_norm(network(Hinge(0.7)), input_shape=(4,))


CALLS = {
    "by name": lambda x: leaky(x),
    "as an attribute": leaky,
    "by a name with underscores": lambda x: _hidden_(x),
    "from another module": lambda x: ELSEWHERE.leaky(x),
}
ELSEWHERE = types.SimpleNamespace(leaky=lambda x: leaky(x))


@pytest.mark.parametrize("name", CALLS)
def test_a_function_is_found_however_it_is_called(name):
    for function in (leaky, _hidden_):
        register_activation(function, "piecewise linear", kinks=(0,), nonexpansive=True)
    named = dict(globals())
    same_measures(network(Calling(CALLS[name])), network(nn.LeakyReLU(0.1)))
    assert all(globals()[key] is value for key, value in named.items())  # Python's own again


def test_of_a_function_that_is_not_found_the_steps_are_looked_at():
    register_activation(leaky, "piecewise linear", kinks=(0,))
    held = {"leaky": leaky}
    assert kinds(network(Calling(lambda x: held["leaky"](x)))) == {"linear", "piecewise linear", "unknown"}


def test_a_function_of_torch_is_its_method_too():
    register_activation(torch.asinh, "smooth", nonexpansive=True)
    register_activation(F.elu, "smooth")
    for function in (lambda x: x.asinh(), lambda x: torch.asinh(x), lambda x: F.elu(x, alpha=1.0, inplace=True)):
        assert kinds(network(Calling(function))) == {"linear", "smooth"}
    paths = [norms.path_norm(network(a), input_shape=(4,)) for a in (Calling(lambda x: x.asinh()), nn.Tanh())]
    torch.testing.assert_close(*paths)


def test_what_is_said_last_holds():
    register_activation(leaky, "smooth")
    register_activation(leaky, "piecewise linear", kinks=(0,), nonexpansive=True)
    same_measures(network(Calling(leaky)), network(nn.LeakyReLU(0.1)))


def test_a_subclass_is_another_activation():
    class Scaled(Leaky):
        def forward(self, x):
            return torch.asinh(super().forward(x))

    register_activation(Leaky, "piecewise linear", kinks=(0,))
    assert kinds(network(Leaky())) == {"linear", "piecewise linear"}
    assert "unknown" in kinds(network(Scaled()))


def test_data_besides_the_tensor_make_it_unknown():
    class Gated(nn.Module):
        def forward(self, x):
            return self.act(x, x.mean()) + self.function(x, x.mean())

    module = Gated()
    module.act, module.function = Hinge(0.7), hinge
    register_activation(Hinge, "piecewise linear", kinks=lambda layer: (layer.at,))
    register_activation(hinge, "piecewise linear", kinks=lambda at: (at,))
    found = {layer.name: layer.kind for layer in Network.of(module).layers}
    assert found["act"] == found["hinge"] == "unknown"


def test_what_vmap_cannot_follow_is_measured_one_after_the_other():
    register_activation(Opaquely, "piecewise linear", kinks=(0,), nonexpansive=True)
    module, twin = network(Opaquely()), network(nn.ReLU())
    same_measures(module, twin)
    assert [Objective.of(m, *data(), chunk_size=48).together for m in (module, twin)] == [1, 4]
    paths = [norms.path_norm(Network.stack([m, m]), input_shape=(4,)) for m in (module, twin)]
    torch.testing.assert_close(*paths)


def _ste(x):
    return x + (torch.sign(x) - x).detach()


FALSE = {
    "curved": (lambda x: F.gelu(x), "piecewise linear", {"kinks": (0,)}, r"isn't affine between its kinks \[0\]"),
    "nearly a relu": (lambda x: F.softplus(x, 50), "piecewise linear", {"kinks": (0,)}, "isn't affine between"),
    "curved and linear": (lambda x: torch.erf(x), "linear", {}, "isn't affine everywhere"),
    "a kink too few": (lambda x: F.hardtanh(x), "piecewise linear", {"kinks": (-1,)}, "isn't affine between"),
    "a kink too many": (lambda x: F.relu(x), "piecewise linear", {"kinks": (0, 2)}, "doesn't bend at 2"),
    "another kink": (lambda x: F.relu(x), "piecewise linear", {"kinks": (0.01,)}, "isn't affine between"),
    "softmax": (lambda x: x.softmax(-1), "smooth", {}, "hangs on more than its own input"),
    "softmax of channels": (lambda x: x.softmax(1), "smooth", {}, "hangs on more than its own input"),
    "less the largest": (lambda x: x - x.max(), "linear", {}, "hangs on more"),
    "less the least of all": (lambda x: x - x.min(), "linear", {}, "hangs on more"),
    "shifted": (lambda x: x.roll(1, -1), "linear", {}, "hangs on more"),
    "noise": (lambda x: x + torch.rand_like(x), "linear", {}, "hangs on more than its own input, or on chance"),
    "a sum": (lambda x: x.sum(-1), "linear", {}, "gives .* for "),
    "a pair": (lambda x: (x, x), "linear", {}, "gives tuple for "),
    "no number": (lambda x: x.log(), "smooth", {}, "is not finite between -8 and 8"),
    "steep": (lambda x: 2 * F.relu(x), "piecewise linear", {"kinks": (0,), "nonexpansive": True}, "larger than 1"),
    "steep somewhere": (lambda x: F.silu(x), "smooth", {"nonexpansive": True}, "slope larger than 1"),
    "a jump": (lambda x: F.hardshrink(x), "piecewise linear", {"kinks": (-0.5, 0.5), "nonexpansive": True}, "slope"),
    "not zero at zero": (lambda x: F.sigmoid(x), "smooth", {"nonexpansive": True}, r"φ\(0\) other than 0"),
    "straight through": (_ste, "piecewise linear", {"kinks": (0,)}, "its gradient isn't its slope"),
}


class Needing(nn.Module):
    """It can't be made without a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", FALSE)
def test_a_false_claim_is_refused_at_once_or_where_it_is_first_used(name):
    function, kind, options, message = FALSE[name]
    with pytest.raises(ValueError, match=rf"^activation: .* is registered as {kind}.*{message}"):
        register_activation(function, kind, **options)

    class Made(Calling):
        def __init__(self):
            super().__init__(function)

    with pytest.raises(ValueError, match=rf"^activation: Made is registered as {kind}.*{message}"):
        register_activation(Made, kind, **options)
    assert not KINKS
    register_activation(Needing, kind, **options)
    module = network(Needing(function))
    x, y = data()
    if name not in ("a sum", "a pair", "noise"):  # whose forward pass isn't one in the first place
        with pytest.raises(ValueError, match=rf"^network: 1 is registered as {kind}.*{message}.*; mend what network\."):
            curvature.trace(module, x, y)
    with pytest.raises(ValueError, match=rf"the operation _1 \(registered as {kind}.*{message}"):
        norms.path_norm(module, input_shape=(4,))


def test_claims_are_tried_as_far_as_the_values_of_a_network_go():
    def capped(x):
        return x.clamp(0, 20)

    register_activation(capped, "piecewise linear", kinks=(0,))
    module, path = network(Calling(capped)), data()[0]
    sensitivity.transitions(module, path)
    with pytest.raises(ValueError, match=r"capped is registered as .* isn't affine between its kinks \[0\]"):
        sensitivity.transitions(network(Calling(capped)), 100 * path)


def test_what_cannot_be_tried_is_refused_where_it_is_used():
    class Stubborn(Needing):
        def forward(self, x):
            assert len(x) <= 12
            return self.function(x)

    register_activation(Stubborn, "piecewise linear", kinks=lambda layer: (layer.at,))
    module = network(Stubborn(F.relu))
    with pytest.raises(ValueError, match=r"1 is registered as .* fails on numbers of .* \(AttributeError: .*'at'"):
        sensitivity.transitions(module, data()[0])
    module[1].at = 0
    with pytest.raises(ValueError, match=r"1 is registered as .* fails on numbers of .* \(AssertionError"):
        sensitivity.transitions(module, data()[0])
    module[1].at = float("nan")
    with pytest.raises(ValueError, match=r"with kinks \(nan,\); of a"):
        sensitivity.transitions(module, data()[0])


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_claim_is_refused():
    bent = {"kind": "piecewise linear", "kinks": (0,)}
    for arguments, message in [
        ({"activation": Leaky(), **bent}, r"activation is Leaky\(\); give its class"),
        ({"activation": "leaky", **bent}, "activation is 'leaky'; give a class of torch.nn.Module, or a function"),
        ({"activation": Opaque, **bent}, "activation is .*Opaque.*; give a class of torch.nn.Module, or a function"),
        ({"activation": nn.ReLU, **bent}, "activation is ReLU, which genlib knows already"),
        ({"activation": torch.tanh, "kind": "smooth"}, "activation is tanh, which genlib knows already"),
        ({"activation": leaky, "kind": "bent"}, "kind is 'bent'; it must be one of 'linear', 'piecewise linear', 's"),
        ({"activation": leaky, "kind": "piecewise linear"}, r"kinks is \(\) of a piecewise linear .*; of a piec"),
        (
            {"activation": leaky, "kind": "piecewise linear", "kinks": 0},
            "kinks is 0 of a .*; of a piecewise linear one",
        ),
        (
            {"activation": leaky, "kind": "smooth", "kinks": (0,)},
            r"kinks is \(0,\) of a smooth activation; of a piecewise linear one, and",
        ),
        ({"activation": leaky, "kind": "piecewise linear", "kinks": (0, 0)}, r"kinks is \(0, 0\) of a .* each once"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            register_activation(**arguments)
    assert not KINKS
