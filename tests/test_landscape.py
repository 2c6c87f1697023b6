import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, HostReads, data, dense, linear, rescaled, residual, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from genlib.landscape import basin_radius, filter_normalized_directions, line, plane, surface
from genlib.network import Network, chunks


def cross_entropy(module, inputs, labels):
    with torch.no_grad():
        return F.cross_entropy(module(inputs), labels)


def blended(modules, shares):
    """A copy whose every tensor of floats, BatchNorm's statistics too, is Σ share × that of the module."""
    blend = copy.deepcopy(modules[0])
    states = [module.state_dict() for module in modules]
    with torch.no_grad():
        for name, tensor in blend.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(sum(share * state[name] for share, state in zip(shares, states, strict=True)))
    return blend


def flat(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def moved(module, direction, by=1.0):
    module = copy.deepcopy(module)
    with torch.no_grad():
        for name, w in module.named_parameters():
            w += by * direction[name]
    return module


def first_logit(logits, labels):
    """A loss that is linear in the weights of a linear network."""
    return logits[:, 0] - logits[:, 1] + 0 * labels


# -------------------------------------------------------------------------------------------------------------- line


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [None, 12, 5, 40])  # side by side or not, one pass, several, side by side
def test_a_line_is_the_loss_of_blended_copies(name, chunk_size):
    start, inputs, labels = CASES[name]()
    end = CASES[name](seed=1)[0]
    found = line(start, end, inputs, labels, points=5, limits=(-0.25, 1.25), chunk_size=chunk_size)
    assert found.positions.tolist() == [-0.25, 0.125, 0.5, 0.875, 1.25]
    expected = [cross_entropy(blended((start, end), (1 - t, t)), inputs, labels) for t in found.positions]
    expected = torch.stack(expected).nan_to_num(nan=torch.inf)
    torch.testing.assert_close(found.losses, expected)


@pytest.mark.parametrize("name", CASES)
def test_a_line_ends_at_the_networks_themselves(name):
    start, inputs, labels = CASES[name]()
    end = CASES[name](seed=1)[0]
    found = line(start, end, inputs, labels, points=2).losses
    torch.testing.assert_close(found[0], cross_entropy(start, inputs, labels), rtol=1e-14, atol=0)
    torch.testing.assert_close(found[1], cross_entropy(end, inputs, labels), rtol=1e-14, atol=0)


def test_a_line_of_error_rates():
    (start, inputs, labels), end = CASES["dense"](), dense(seed=1)
    found = line(start, end, inputs, labels, points=3, loss="error")
    midway = blended((start, end), (0.5, 0.5))
    assert found.losses[1] == (midway(inputs).argmax(1) != labels).double().mean()


def test_a_line_of_squared_errors_of_a_linear_network_is_a_parabola():
    inputs, labels = data()
    found = line(linear(), linear(1), inputs, labels, points=6, loss="mse").losses
    third = found.diff(n=3)
    torch.testing.assert_close(third, torch.zeros_like(third), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_a_line_backwards_is_the_same_line(name):
    start, inputs, labels = CASES[name]()
    end = CASES[name](seed=1)[0]
    there, back = (line(*pair, inputs, labels, points=4).losses for pair in ((start, end), (end, start)))
    torch.testing.assert_close(there, back.flip(0))


@pytest.mark.parametrize("name", CASES)
def test_lines_between_two_stacks(name):
    starts, ends = ([CASES[name](seed=seed)[0] for seed in seeds] for seeds in ((0, 1), (2, 3)))
    _, inputs, labels = CASES[name]()
    found = line(Network.stack(starts), Network.stack(ends), inputs, labels, points=3).losses
    each = [line(a, b, inputs, labels, points=3).losses for a, b in zip(starts, ends, strict=True)]
    torch.testing.assert_close(found, torch.stack(each))


def test_each_line_of_a_stack_on_its_own_data():
    starts, ends, sets = [dense(0), dense(1)], [dense(2), dense(3)], [data(0), data(1)]
    inputs, labels = (torch.stack(tensors) for tensors in zip(*sets, strict=True))
    found = line(Network.stack(starts), Network.stack(ends), inputs, labels, points=3).losses
    each = [line(a, b, *own, points=3).losses for a, b, own in zip(starts, ends, sets, strict=True)]
    torch.testing.assert_close(found, torch.stack(each))


def test_a_variance_below_zero_makes_the_loss_infinite():
    inputs, labels = data(shape=(3, 4, 4))
    start, end = residual(0), residual(0)
    end.norm.running_var.mul_(0.5)
    found = line(start, end, inputs, labels, points=4, limits=(0.0, 3.0)).losses
    assert found[:2].isfinite().all() and found[3] == torch.inf


# ------------------------------------------------------------------------------------------------------------- plane


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [None, 40])
def test_a_plane_is_the_loss_of_blended_copies(name, chunk_size):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1, 2)]
    _, inputs, labels = CASES[name]()
    found = plane(*networks, inputs, labels, points=4, margin=0.1, chunk_size=chunk_size)
    origin, first, second = found.networks
    for row, y in enumerate(found.y):
        for column, x in enumerate(found.x):
            there = torch.stack([x, y])
            s, t = torch.linalg.solve(torch.stack([first - origin, second - origin], 1), there - origin)
            expected = cross_entropy(blended(networks, (1 - s - t, s, t)), inputs, labels).nan_to_num(nan=torch.inf)
            torch.testing.assert_close(found.losses[row, column], expected)


@pytest.mark.parametrize("name", CASES)
def test_distances_on_a_plane_are_those_of_the_weights(name):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1, 2)]
    found = plane(*networks, *CASES[name]()[1:], points=2).networks
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(*[torch.stack([*map(flat, networks)])] * 2))
    assert found[0].tolist() == [0, 0] and found[1, 0] > 0 and found[1, 1] == 0 and found[2, 1] > 0


def test_a_plane_leaves_a_margin_around_its_networks():
    found = plane(dense(0), dense(1), dense(2), *data(), points=3, margin=0.5)
    for axis, places in zip((found.x, found.y), found.networks.T, strict=True):
        low, high = places.min(), places.max()
        torch.testing.assert_close(
            axis, torch.stack([1.5 * low - 0.5 * high, (low + high) / 2, 1.5 * high - 0.5 * low])
        )


def test_the_corner_of_a_plane_is_the_origin():
    weights = dense(0)
    right = moved(weights, {name: torch.eye(*w.shape) if w.dim() == 2 else 0 for name, w in weights.named_parameters()})
    up = moved(weights, {name: 0 if w.dim() == 2 else 1 for name, w in weights.named_parameters()})
    inputs, labels = data()
    found = plane(weights, right, up, inputs, labels, points=2, margin=0.0)
    for place, network in (((0, 0), weights), ((0, 1), right), ((1, 0), up)):
        torch.testing.assert_close(found.losses[place], cross_entropy(network, inputs, labels))


# ----------------------------------------------------------------------------------------------------------- surface


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_size", [None, 40])
def test_a_surface_is_the_loss_of_moved_copies(name, chunk_size):
    network, inputs, labels = CASES[name]()
    first, second = ({n: torch.randn_like(w) for n, w in network.named_parameters()} for _ in range(2))
    found = surface(network, inputs, labels, directions=[first, second], radius=0.5, points=3, chunk_size=chunk_size)
    assert found.x.tolist() == found.y.tolist() == [-0.5, 0, 0.5] and found.networks.tolist() == [[0, 0]]
    for row, y in enumerate(found.y):
        for column, x in enumerate(found.x):
            expected = cross_entropy(moved(moved(network, first, x), second, y), inputs, labels)
            torch.testing.assert_close(found.losses[row, column], expected)


@pytest.mark.parametrize("name", CASES)
def test_a_surface_goes_along_filter_normalized_directions(name):
    network, inputs, labels = CASES[name]()
    directions = filter_normalized_directions(network, generator=torch.Generator().manual_seed(4))
    found = surface(network, inputs, labels, points=3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(found.losses, surface(network, inputs, labels, points=3, directions=directions).losses)


def test_directions_in_another_precision_are_taken():
    network, inputs, labels = dense().float(), *data()
    directions = [{name: d.double() for name, d in one.items()} for one in filter_normalized_directions(network)]
    found = surface(network, inputs, labels, points=3, directions=directions).losses
    assert torch.equal(found, surface(network, inputs, labels, points=3).losses)


@pytest.mark.parametrize("name", CASES)
def test_a_surface_of_each_network_of_a_stack(name):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1)]
    _, inputs, labels = CASES[name]()
    found = surface(Network.stack(networks), inputs, labels, points=3).losses
    each = [surface(network, inputs, labels, points=3).losses for network in networks]
    torch.testing.assert_close(found, torch.stack(each))


# ------------------------------------------------------------------------------------- filter-normalized directions


@pytest.mark.parametrize("name", CASES)
def test_each_filter_of_a_direction_has_the_norm_of_the_weights(name):
    network = CASES[name]()[0]
    for direction in filter_normalized_directions(network, 3):
        for key, w in network.named_parameters():
            if w.dim() > 1:
                for row, filter_ in zip(direction[key], w.detach(), strict=True):
                    torch.testing.assert_close(row.norm(), filter_.norm())


@pytest.mark.parametrize("name", CASES)
def test_biases_and_batch_norm_do_not_move(name):
    # A known fault: biases normalized element by element, which makes every direction ± the bias itself.
    network = CASES[name]()[0]
    vectors = [key for key, w in network.named_parameters() if w.dim() == 1]
    assert vectors
    for direction in filter_normalized_directions(network):
        assert all(direction[key].count_nonzero() == 0 for key in vectors)


def test_directions_are_gaussian_up_to_their_length():
    network = nn.Sequential(nn.Linear(400, 50)).double()
    direction = filter_normalized_directions(network, 1)[0]["0.weight"]
    values = (direction / network[0].weight.norm(dim=1, keepdim=True)).flatten() * 400**0.5
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.02 and abs((values**4).mean() - 3) < 0.15


@pytest.mark.parametrize("groups", [1, 2])
def test_a_filter_of_a_transposed_convolution_leads_to_one_output_channel(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()
    inner = nn.Sequential(layer)
    direction = filter_normalized_directions(inner, 1)[0]["0.weight"]
    for channel in range(6):
        group, place = divmod(channel, 6 // groups)
        rows = slice(group * 4 // groups, (group + 1) * 4 // groups)
        torch.testing.assert_close(direction[rows, place].norm(), layer.weight[rows, place].detach().norm())


@pytest.mark.parametrize("name", CASES)
def test_directions_of_a_stack_are_those_of_its_networks(name):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1)]
    found = filter_normalized_directions(Network.stack(networks))
    for i, network in enumerate(networks):
        for direction, expected in zip(found, filter_normalized_directions(network), strict=True):
            for key, tensor in expected.items():
                torch.testing.assert_close(direction[key][i], tensor)


def test_two_directions_differ_and_come_again_for_the_same_generator():
    network = dense()
    first, second = filter_normalized_directions(network)
    again, _ = filter_normalized_directions(network, generator=None)
    other, _ = filter_normalized_directions(network, generator=torch.Generator().manual_seed(1))
    key = next(iter(first))
    assert torch.equal(first[key], again[key])
    assert not torch.allclose(first[key], second[key]) and not torch.allclose(first[key], other[key])


def test_a_filter_of_zeros_does_not_move():
    network = dense()
    with torch.no_grad():
        network[1].weight[0] = 0
    assert isinstance(network[1], nn.Linear)
    direction = filter_normalized_directions(network, 1)[0]["1.weight"]
    assert direction[0].count_nonzero() == 0 and direction[1:].norm() > 0


# ------------------------------------------------------------------------------------------------------ basin radius


def unit_directions(network, count, seed):
    """Gaussian directions of unit length, drawn parameter by parameter."""
    generator, directions = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        draw = {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in network.named_parameters()}
        length = torch.cat([d.flatten() for d in draw.values()]).norm()
        directions.append({name: d / length for name, d in draw.items()})
    return directions


def test_the_radius_of_a_parabola_is_its_root():
    network, (inputs, labels) = linear(), data()
    found = basin_radius(
        network, inputs, labels, increase=0.3, directions=20, loss="mse", generator=torch.Generator().manual_seed(2)
    )

    def squares(params):
        return (functional_call(network, params, (inputs,)) - F.one_hot(labels, 4)).square().mean()

    at_rest = squares(dict(network.named_parameters()))
    for radius, direction in zip(found.radii, unit_directions(network, 20, 2), strict=True):
        plus, minus = (
            squares(dict(moved(network, direction).named_parameters())),
            squares(dict(moved(network, direction, -1).named_parameters())),
        )
        a, b = (plus + minus) / 2 - at_rest, (plus - minus) / 2
        root = (-b + (b**2 + 4 * a * 0.3).sqrt()) / (2 * a)
        assert abs(radius / root - 1) < 0.01
    assert found.unbounded == 0


@settings(max_examples=10)
@given(st.floats(1e-3, 10), st.floats(0.1, 100), st.integers(0, 5))
def test_the_radius_along_a_slope_or_none(increase, largest, seed):
    network, (inputs, labels) = linear(), data()
    found = basin_radius(
        network, inputs, labels, increase=increase, directions=8, largest=largest, loss=first_logit,
        generator=torch.Generator().manual_seed(seed), tolerance=1e-3,
    )  # fmt: skip
    at_rest = first_logit(network(inputs), labels).mean()
    for radius, direction in zip(found.radii, unit_directions(network, 8, seed), strict=True):
        slope = first_logit(moved(network, direction)(inputs), labels).mean() - at_rest
        expected = increase / slope if slope > 0 else math.inf
        if expected < 0.999 * largest:
            assert abs(radius / expected - 1) < 1e-3
        elif expected > 1.001 * largest:
            assert radius == torch.inf
    assert found.unbounded == found.radii.isinf().sum() and found.largest == largest


@pytest.mark.parametrize("filter_normalized", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_has_risen_by_the_increase_at_the_radius(name, filter_normalized):
    network, inputs, labels = CASES[name]()
    found = basin_radius(
        network, inputs, labels, increase=0.05, directions=6, tolerance=1e-6, filter_normalized=filter_normalized,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    if filter_normalized:
        directions = filter_normalized_directions(network, 6, generator=torch.Generator().manual_seed(1))
    else:
        directions = unit_directions(network, 6, 1)
    assert found.radii.isfinite().all()
    for radius, direction in zip(found.radii, directions, strict=True):
        rise = cross_entropy(moved(network, direction, radius), inputs, labels) - cross_entropy(network, inputs, labels)
        torch.testing.assert_close(rise, torch.full_like(rise, 0.05), rtol=1e-4, atol=0)


def test_the_radius_of_errors_brackets_the_jump():
    network, inputs, labels = CASES["dense"]()
    labels = network(inputs).argmax(1)
    found = basin_radius(network, inputs, labels, increase=0.2, directions=6, loss="error", tolerance=1e-3)
    again = torch.Generator().manual_seed(int.from_bytes(b"noise"))
    for radius in found.radii:
        draw = {n: torch.randn(w.shape, generator=again, dtype=w.dtype) for n, w in network.named_parameters()}
        length = torch.cat([d.flatten() for d in draw.values()]).norm()
        below, above = (
            (moved(network, draw, radius * factor / length)(inputs).argmax(1) != labels).double().mean()
            for factor in (0.999, 1.001)
        )
        assert below < 0.2 <= above


@pytest.mark.parametrize("filter_normalized", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_radii_of_a_stack_side_by_side_and_in_parts(name, filter_normalized, monkeypatch):
    networks = [CASES[name](seed=seed)[0] for seed in (0, 1)]
    _, inputs, labels = CASES[name]()

    def radii(network, **options):
        return basin_radius(
            network, inputs, labels, increase=0.1, directions=5, largest=20.0, filter_normalized=filter_normalized,
            **options,
        )  # fmt: skip

    each = torch.stack([radii(network).radii for network in networks])
    stacked = radii(Network.stack(networks))
    torch.testing.assert_close(stacked.radii, each)
    assert stacked.unbounded.shape == stacked.largest.shape == (2,)
    for chunk_size in (25, 12, 5):
        torch.testing.assert_close(radii(networks[0], chunk_size=chunk_size).radii, each[0])
    numbers = sum(w.numel() for w in networks[0].parameters())
    monkeypatch.setattr(chunks, "_NUMBERS", 2 * numbers)  # two directions at a time
    parts = radii(networks[0])
    torch.testing.assert_close(parts.radii, each[0])


@settings(max_examples=10)
@given(st.lists(st.floats(0.2, 5), min_size=1, max_size=2))
def test_the_filter_normalized_radius_does_not_see_the_scale_of_layers(factors):
    network, inputs, labels = CASES["dense"]()
    other = rescaled(network, [torch.full((6,), c, dtype=torch.float64) for c in factors])
    options = {"increase": 0.1, "directions": 5, "filter_normalized": True}
    before, after = (basin_radius(n, inputs, labels, **options).radii for n in (network, other))
    torch.testing.assert_close(before, after)


def test_the_radius_sees_the_scale_of_layers():
    network, inputs, labels = CASES["dense"]()
    other = rescaled(network, [torch.full((6,), 20.0, dtype=torch.float64)])
    before, after = (basin_radius(n, inputs, labels, increase=0.1, directions=20).radii for n in (network, other))
    assert after.median() < before.median() / 2


def test_a_loss_that_never_rises_is_unbounded():
    network, inputs, labels = CASES["dense"]()
    found = basin_radius(
        network, inputs, labels, increase=1.0, directions=3, loss=lambda logits, labels: 0 * logits[:, 0]
    )
    torch.testing.assert_close(found.largest, 10 * flat(network).norm())
    assert found.radii.isinf().all() and found.unbounded == 3


def test_a_loss_that_is_not_finite_has_risen():
    network, inputs, labels = linear(), *data()
    edge = first_logit(network(inputs), labels).max().item() + 0.1

    def walled(logits, labels):
        value = first_logit(logits, labels)
        return torch.where(value < edge, 0 * value, torch.nan)

    found = basin_radius(network, inputs, labels, increase=1e6, directions=10, loss=walled, tolerance=1e-3)
    assert found.radii.isfinite().any()
    for radius, direction in zip(found.radii, unit_directions(network, 10, int.from_bytes(b"noise")), strict=True):
        if radius.isfinite():
            below, above = (
                first_logit(moved(network, direction, radius * f)(inputs), labels).max() for f in (0.999, 1.001)
            )
            assert below < edge <= above


def test_the_cost_is_counted():
    network, inputs, labels = CASES["residual"]()
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    found = basin_radius(network, inputs, labels, increase=0.1, directions=7)
    assert found.passes == len(passes) - 1  # one sample passed before, to see the classes
    assert 7 * 4 < found.passes < 7 * 15


def test_a_search_reads_once_a_step():
    network, inputs, labels = CASES["dense"]()

    def reads(directions):
        with HostReads() as mode:
            found = basin_radius(network, inputs, labels, increase=0.1, directions=directions)
        return mode.count - (found.passes - 1) / directions

    assert reads(4) == reads(12)


# ------------------------------------------------------------------------------------------------------ every kernel


def everything(network, other, third, inputs, labels):
    return {
        "line": lambda: line(network, other, inputs, labels, points=4),
        "plane": lambda: plane(network, other, third, inputs, labels, points=4),
        "surface": lambda: surface(network, inputs, labels, points=4),
        "basin_radius": lambda: basin_radius(network, inputs, labels, increase=0.1, directions=4),
    }


KERNELS = list(everything(*[None] * 5))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", CASES)
def test_all_is_left_as_it_was(kernel, name):
    network, inputs, labels = CASES[name]()
    other, third = (CASES[name](seed=seed)[0] for seed in (1, 2))
    with unchanged(network, inputs, labels), unchanged(other), unchanged(third):
        everything(network, other, third, inputs, labels)[kernel]()


@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_is_measured_in_single(kernel):
    networks = [residual(seed).bfloat16() for seed in range(3)]
    inputs, labels = data(shape=(3, 4, 4))
    inputs = inputs.bfloat16()
    found = everything(*networks, inputs, labels)[kernel]()
    single = everything(*[network.float() for network in networks], inputs.float(), labels)[kernel]()
    assert repr(found) == repr(single)
    assert (found.radii if kernel == "basin_radius" else found.losses).dtype == torch.float32


@pytest.mark.parametrize("kernel", KERNELS)
def test_data_that_are_not_finite_are_refused(kernel):
    inputs, labels = data()
    inputs[3, 2] = torch.nan
    with pytest.raises(ValueError, match="loss on these data is not finite; check inputs"):
        everything(dense(0), dense(1), dense(2), inputs, labels)[kernel]()


@pytest.mark.parametrize("kernel", KERNELS)
def test_batch_norm_in_training_mode_is_refused(kernel):
    inputs, labels = data(shape=(3, 4, 4))
    with pytest.raises(ValueError, match=r"norm is BatchNorm in training mode; call module.eval\(\)"):
        everything(residual(0).train(), residual(1), residual(2), inputs, labels)[kernel]()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda n, x, y: line(n, dense(1), x, y, points=1), "points is 1; give at least 2"),
        (lambda n, x, y: line(n, dense(1), x, y, limits=(1.0, 1.0)), "limits are .*the smaller first"),
        (lambda n, x, y: line(n, dense(1), x, y, limits=(0.0, torch.inf)), "limits are .*finite"),
        (lambda n, x, y: line(n, dense(1, width=7), x, y), "end differs from the first network in .*same layers"),
        (lambda n, x, y: line(n, dense(1, depth=3), x, y), "end differs from the first network in"),
        (lambda n, x, y: line(n, dense(1, activation="tanh"), x, y), r"end differs .*Tanh\(\) against ReLU\(\)"),
        (lambda n, x, y: line(Network.stack([n, n]), dense(1), x, y), "a stack beside a stack"),
        (lambda n, x, y: line(n, dense(1), x, y, loss="hinge"), "loss is 'hinge'"),
        (lambda n, x, y: line(n, dense(1), x, y + 4), "labels has values outside"),
        (lambda n, x, y: line(n, dense(1), x[:0], y[:0]), "inputs is empty"),
        (lambda n, x, y: line(n, dense(1), x, y, chunk_size=0), "chunk_size is 0"),
        (lambda n, x, y: plane(n, dense(1), dense(1), x, y), "lie on one line"),
        (lambda n, x, y: plane(n, n, dense(1), x, y), "lie on one line"),
        (lambda n, x, y: plane(n, dense(1), n, x, y), "lie on one line"),
        (lambda n, x, y: plane(n, dense(1), blended((n, dense(1)), (-0.7, 1.7)), x, y), "use line"),
        (lambda n, x, y: plane(n, dense(1), dense(2, width=7), x, y), "second differs from the first network"),
        (lambda n, x, y: plane(n, dense(1), dense(2), x, y, points=1), "points is 1"),
        (lambda n, x, y: plane(n, dense(1), dense(2), x, y, margin=-0.1), "margin is -0.1"),
        (lambda n, x, y: plane(*[Network.stack([n, dense(1)])] * 3, x, y), "origin is a stack; .*stack.each"),
        (lambda n, x, y: surface(n, x, y, points=1), "points is 1"),
        (lambda n, x, y: surface(n, x, y, radius=0.0), "radius is 0.0; it must be positive"),
        (lambda n, x, y: surface(n, x, y, directions=[{}, {}]), "directions are not two of the network's shape"),
        (lambda n, x, y: surface(n, x, y, directions=filter_normalized_directions(n, 1)), "directions are not two"),
        (lambda n, x, y: filter_normalized_directions(n, 0), "count is 0"),
        (lambda n, x, y: filter_normalized_directions(nn.BatchNorm1d(5).eval()), "no weights of two axes"),
        (lambda n, x, y: basin_radius(n, x, y, increase=0.0), "increase is 0.0; it must be positive"),
        (lambda n, x, y: basin_radius(n, x, y, increase=math.nan), "increase is nan"),
        (lambda n, x, y: basin_radius(n, x, y, increase=1e-15), "lost in the rounding of the loss"),
        (lambda n, x, y: basin_radius(n, x, y, increase=1.0, directions=0), "directions is 0"),
        (lambda n, x, y: basin_radius(n, x, y, increase=1.0, largest=-1.0), "largest is -1.0"),
        (lambda n, x, y: basin_radius(n, x, y, increase=1.0, tolerance=0.0), "tolerance is 0.0"),
        (lambda n, x, y: basin_radius(blended((n,), (0,)), x, y, increase=1.0), "largest is not given.*all zero"),
    ],
)
def test_what_can_not_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(dense(), *data())
