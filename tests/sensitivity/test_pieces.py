"""Every way to write an activation or a pool has its linear pieces."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import Residual, drawn
from idioms import BENT, CONSTANT, LINEAR, MEETING, NEITHER, Between
from sensitivity_cases import Functional, normal
from torch import nn

from genlib.network import kinds
from genlib.sensitivity import ellipse, pieces, transitions


class Written(nn.Module):
    """One operation on the input itself."""

    def __init__(self, function):
        super().__init__()
        self.function, self.head = function, nn.Linear(1, 2).double()

    def forward(self, x):
        return self.head(self.function(x))


@pytest.mark.parametrize(
    ("function", "kinks"),
    [
        (lambda x: F.relu(x), [0]),
        (lambda x: torch.relu(input=x), [0]),
        (lambda x: x.relu(), [0]),
        (lambda x: F.relu6(x), [0, 6]),
        (lambda x: F.leaky_relu(x, 0.3), [0]),
        (lambda x: F.hardtanh(x), [-1, 1]),
        (lambda x: F.hardtanh(x, -2, 3), [-2, 3]),
        (lambda x: F.hardtanh(x, max_val=5), [-1, 5]),
        (lambda x: F.hardsigmoid(x), [-3, 3]),
        (lambda x: x.clamp(0.5), [0.5]),
        (lambda x: x.clamp(max=-0.5), [-0.5]),
        (lambda x: x.clamp(-2, 4), [-2, 4]),
        (lambda x: x.abs(), [0]),
        (lambda x: torch.abs(x), [0]),
    ],
)
def test_every_way_to_write_an_activation_has_its_kinks(function, kinks):
    path = torch.arange(-7.9, 8, 0.1, dtype=torch.float64).unsqueeze(1)
    found = transitions(Written(function), path)
    assert path[:-1][found[:-1] > 0].flatten().tolist() == pytest.approx(kinks, abs=0.11)
    assert found[-1] == len(kinks)


@pytest.mark.parametrize(
    "layer", [nn.PReLU(), nn.LeakyReLU(0.1), nn.ReLU(inplace=True), nn.Hardtanh(-2, 2, inplace=True)]
)
def test_layers_with_a_slope_or_in_place(layer):
    path = torch.tensor([[-1.0], [0.5], [1.5]])
    module = nn.Sequential(nn.Identity(), layer, nn.Linear(1, 2))
    kept = path.clone()
    assert transitions(module, path).sum() == (0 if isinstance(layer, nn.Hardtanh) else 2)
    assert torch.equal(path, kept)


@pytest.mark.parametrize(("pool", "shape"), [(nn.MaxPool1d(2), (2, 6)), (nn.MaxPool3d(2), (1, 4, 4, 4)),
                                             (nn.AdaptiveMaxPool1d(2), (2, 6)), (nn.AdaptiveMaxPool3d(2), (1, 4, 4, 4)),
                                             (nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), (2, 5, 5))])  # fmt: skip
def test_a_pool_changes_where_its_argmax_does(pool, shape):
    path = normal(10, *shape)
    with_indices = copy.deepcopy(pool)
    with_indices.return_indices = True
    at = with_indices(path)[1].flatten(1)
    expected = (at != at.roll(-1, 0)).sum(1)
    module = nn.Sequential(pool, nn.Flatten())
    assert torch.equal(transitions(module, path), expected)


def test_functions_methods_skips_and_layers_in_place():
    module, path = drawn(Functional().double()), 2 * ellipse(*normal(3, 2, 4), points=25)
    expected = torch.zeros(25, dtype=torch.long)
    with torch.no_grad():
        x = module.first(path)
        seen = [x > -0.3, x > 0.4]
        x = x.clamp(-0.3, 0.4)
        y = module.second(x)
        seen += [y > -0.2, y.clamp(min=-0.2) > 0]
        x = x + y.relu()
        seen += [x > 0]
        x, at = F.max_pool1d(F.leaky_relu(x, 0.2), 2, return_indices=True)
        seen += [at, x > 0, x.abs() > 0.05, x.abs() > 0.9]
    for code in seen:
        expected += (code != code.roll(-1, 0)).flatten(1).sum(1)
    assert torch.equal(transitions(module, path), expected)
    residual = drawn(Residual().double())
    assert transitions(residual, ellipse(*normal(3, 3, 4, 4), points=25)).sum() > 0


def test_every_operation_that_the_network_calls_piecewise_linear_has_its_pieces():
    bent = {operation for operation, (kind, *_) in kinds.TABLE.items() if kind == "piecewise linear"}
    bent |= {layer for layer, kind in kinds.MODULES.items() if kind == "piecewise linear"}
    assert {*pieces._KINKS, *pieces._POOLS, *pieces._CHOICES} == bent


def flips(codes):
    """How many of the units' codes [points, …] change at each step of a closed path."""
    return sum((code != code.roll(-1, 0)).flatten(1).sum(1) for code in codes)


def images(points=30, seed=0):
    return 2 * ellipse(*normal(3, 2, 5, 4, seed=seed), points=points)


@pytest.mark.parametrize("name", BENT)
def test_what_bends_changes_its_pieces_where_its_numbers_say(name):
    function, codes = BENT[name]
    network, path = drawn(Between(function).double()), images()
    with torch.no_grad():
        x = network.conv(path)
        expected = flips(codes(x)) + flips([function(x.clone()) > 0])
    assert torch.equal(transitions(network, path), expected) and flips(codes(x)).sum() > 0


@pytest.mark.parametrize("name", {**LINEAR, **CONSTANT, **MEETING})
def test_what_is_affine_has_no_pieces_of_its_own(name):
    network, path = drawn(Between({**LINEAR, **CONSTANT, **MEETING}[name]).double()), images()
    with torch.no_grad():
        y = network.function(network.conv(path))
        zero, units = torch.zeros(1, 48).double(), torch.eye(48).double()
        shift = network.function(zero.view(-1, 4, 4, 3)).flatten(1)
        affine = nn.Linear(48, shift.numel()).double()
        affine.weight.copy_((network.function(units.view(-1, 4, 4, 3)).flatten(1) - shift).T)
        affine.bias.copy_(shift[0])
    twin = nn.Sequential(network.conv, nn.Flatten(), affine, nn.ReLU(), network.head)
    assert torch.equal(transitions(network, path), transitions(twin, path))
    assert torch.equal(transitions(network, path, chunk_size=7), flips([y > 0])) and flips([y > 0]).sum() > 0


@pytest.mark.parametrize("name", NEITHER)
def test_what_is_neither_has_no_pieces(name):
    with pytest.raises(ValueError, match=r"^network: .* (are unknown|is not piecewise linear)"):
        transitions(Written(NEITHER[name][0]), images()[:, 0])
