"""Norms and distances of every layer, in the order in which they run, with BatchNorm folded."""

import copy
import math

import pytest
import torch
from cases import Untraceable, drawn
from norms_cases import Block, dense
from torch import nn

from genlib import norms
from genlib.network import Network, weights
from genlib.norms import operators


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.0])
def test_norms_scale_with_the_weights_however_large_or_small(mode, scale):
    network = drawn(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), nn.Flatten(), nn.Linear(48, 4)))
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(scale)
    for norm in (
        norms.frobenius_norms,
        lambda n: norms.group_norms(n, 2, 1),
        lambda n: norms.spectral_norms(n, input_shape=(2, 4, 4)),
    ):
        torch.testing.assert_close(norm(scaled).double(), norm(network).double() * scale, rtol=1e-5, atol=0)


def test_shapes_count_channels_and_taps_across_groups():
    network = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 8, 3, groups=2),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(288, 5),
    ).eval()
    assert norms.layer_shapes(drawn(network)) == [(6, 4, 6), (8, 6, 9), (8, 8, 1), (5, 288, 1)]


def test_layers_in_the_order_in_which_they_run_with_batch_norm_folded():
    block = drawn(Block())
    assert norms.layer_names(block) == ["first", "second", "last_norm", "head"]
    own = block.last_norm.weight.detach() / (block.last_norm.running_var + block.last_norm.eps).sqrt()
    spectral = norms.spectral_norms(block, input_shape=(3, 5, 5))
    for i, folded in enumerate([("first", "first_norm"), ("second", "second_norm")]):
        pair = nn.Sequential(*(getattr(block, name) for name in folded))
        largest = torch.linalg.svdvals(dense(pair, (3, 5, 5)))[0]
        assert spectral[i].item() == pytest.approx(largest.item(), rel=1e-5)
    torch.testing.assert_close(spectral[2], own.abs().max())
    torch.testing.assert_close(norms.frobenius_norms(block)[2], own.norm())


@pytest.mark.parametrize(
    "layers, shape",
    [
        ((nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 5, 5)),
        ((nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6, affine=False)), (4, 3, 3)),
        ((nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3)), (5,)),
    ],
)
def test_folding_is_exact(layers, shape):
    module = drawn(nn.Sequential(*layers))
    largest = torch.linalg.svdvals(dense(module, shape))[0].item()
    assert norms.spectral_norms(module, input_shape=shape).tolist() == [pytest.approx(largest, rel=1e-5)]
    [weight] = weights.folded_weights(Network.of(module))
    assert weight.rows.shape == (1, layers[1].num_features, weight.value[0].numel() // layers[1].num_features)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    y = operators.apply_linear(layers[0], weight.value[0], x)
    y = y + weight.bias[0].view(1, -1, *[1] * (y.ndim - 2))
    torch.testing.assert_close(y, module(x).detach(), rtol=1e-4, atol=1e-5)


def test_group_norms_by_hand():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    assert norms.group_norms(layer, 2, 1).tolist() == [7.0]
    assert norms.group_norms(layer, 1, math.inf).tolist() == [7.0]
    assert norms.group_norms(layer, math.inf, 2).tolist() == pytest.approx([math.sqrt(20)])
    assert norms.frobenius_norms(layer).tolist() == pytest.approx([math.sqrt(29)])
    transposed = drawn(nn.ConvTranspose1d(4, 6, 3, groups=2))
    columns = [transposed.weight[g * 2 : g * 2 + 2, o].norm() for g in range(2) for o in range(3)]
    torch.testing.assert_close(norms.group_norms(transposed, 2, 1)[0], sum(columns).detach())


def test_distances_fold_each_network_with_its_own_statistics_and_change_neither():
    start, end = drawn(Block(), 1), drawn(Block(), 2)
    before = copy.deepcopy(start.state_dict())

    def folded(block):
        scale = block.first_norm.weight / (block.first_norm.running_var + block.first_norm.eps).sqrt()
        return (block.first.weight * scale[:, None, None, None]).detach()

    difference = folded(end) - folded(start)
    for _ in range(2):
        torch.testing.assert_close(norms.distances(end, start)[0], difference.norm())
    torch.testing.assert_close(norms.distances(end, start, norm=(2, 1))[0], difference.flatten(1).norm(dim=1).sum())
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    convolution.weight.data = difference
    largest = torch.linalg.svdvals(dense(convolution, (3, 5, 5)))[0].item()
    assert norms.distances(end, start, norm="spectral", input_shape=(3, 5, 5))[0] == pytest.approx(largest, rel=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert not norms.distances(end, end).any()


def test_distances_of_a_stack():
    stacked, starts = ([drawn(Block(), seed) for seed in seeds] for seeds in (range(3), range(5, 8)))
    together = norms.distances(Network.stack(stacked), Network.stack(starts))
    each = [norms.distances(end, start) for end, start in zip(stacked, starts, strict=True)]
    torch.testing.assert_close(together, torch.stack(each))


def test_a_stack_of_circular_convolutions():
    stacked = [drawn(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), seed) for seed in range(3)]
    together = norms.spectral_norms(Network.stack(stacked), input_shape=(4, 12, 12))
    each = [norms.spectral_norms(convolution, input_shape=(4, 12, 12)) for convolution in stacked]
    torch.testing.assert_close(together, torch.stack(each))


def test_a_network_that_cannot_be_traced():
    module = Untraceable(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert norms.layer_names(module) == ["layers.0", "layers.2"]
    torch.testing.assert_close(norms.frobenius_norms(module), norms.frobenius_norms(module.layers))
    with pytest.raises(ValueError, match="can't trace this module, and a path norm needs its graph"):
        norms.path_norm(module, input_shape=(4,))
    with pytest.raises(ValueError, match=r"what layers\.1 normalizes is unknown; fold"):
        norms.frobenius_norms(Untraceable(nn.Linear(4, 5), nn.BatchNorm1d(5)).eval())


class Diagonal(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, width + 1))

    def forward(self, x):
        return x * self.scale


def test_a_type_is_registered_by_its_matrix(monkeypatch):
    registry = {}
    monkeypatch.setattr("genlib.network.weights.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.layers.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.paths.REGISTERED", registry)
    module = nn.Sequential(nn.Linear(2, 3), Diagonal(3), nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"1 is of type Diagonal, no dense layer.*out its scale; measure its curvature"
    ):
        norms.frobenius_norms(module)
    norms.register_norm(Diagonal, lambda layer, tensors: torch.diag(tensors["scale"]))
    assert norms.layer_names(module) == ["0", "1", "2"]
    assert norms.spectral_norms(module, input_shape=(2,))[1] == pytest.approx(3.0)
    assert norms.frobenius_norms(Network.stack([module, module]))[1, 1] == pytest.approx(math.sqrt(14))
    with pytest.raises(ValueError, match="1 is of a registered type"):
        norms.path_norm(module, input_shape=(2,))


def test_a_matrix_that_is_not_the_layers_own_is_refused(monkeypatch):
    registry = {}
    monkeypatch.setattr("genlib.network.weights.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.layers.REGISTERED", registry)
    for kind, matrix in ((nn.LayerNorm, "weight"), (nn.PReLU, "weight"), (Diagonal, "scale")):
        norms.register_norm(kind, lambda layer, tensors, name=matrix: torch.diag(tensors[name] ** 2))
        network = nn.Sequential(nn.Linear(2, 3), kind(3), nn.Linear(3, 2))
        with pytest.raises(ValueError, match=rf"1 \({kind.__name__}\) isn't the linear map whose matrix is registered"):
            norms.frobenius_norms(network)
    norms.register_norm(Diagonal, lambda layer, tensors: tensors["gain"])
    with pytest.raises(ValueError, match=r"matrix registered for Diagonal fails for 1 \(KeyError: 'gain'\); mend"):
        norms.frobenius_norms(network)
    norms.register_norm(Diagonal, lambda layer, tensors: tensors["scale"])
    with pytest.raises(ValueError, match=r"registered for 1 has shape \(3,\)"):
        norms.frobenius_norms(network)


class Pair(nn.Module):
    """Two dense layers in a row, which run as often as `times` says."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.pair = Diagonals()

    def forward(self, x):
        for _ in range(self.times):
            x = torch.relu(self.pair(x))
        return x


class Diagonals(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.left(x) + self.right(x)


def test_a_registered_module_is_one_layer_whatever_it_holds(monkeypatch):
    registry = {}
    monkeypatch.setattr("genlib.network.weights.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.layers.REGISTERED", registry)
    monkeypatch.setattr("genlib.norms.paths.REGISTERED", registry)
    once, twice = Pair(1), Pair(2)
    assert norms.layer_names(once) == ["pair.left", "pair.right"]
    norms.register_norm(Diagonals, lambda layer, tensors: tensors["left.weight"] + tensors["right.weight"])
    assert norms.layer_names(once) == ["pair"]
    total = once.pair.left.weight + once.pair.right.weight
    torch.testing.assert_close(norms.frobenius_norms(once)[0], total.detach().norm())
    with pytest.raises(ValueError, match="pair runs more than once"):
        norms.layer_names(twice)
