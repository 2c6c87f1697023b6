"""Paths through the data: ellipses through samples, and translations."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from sensitivity_cases import dense, normal

from genlib.sensitivity import breakpoints, ellipse, random_ellipses, translation_loop


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_an_ellipse_passes_through_its_points_and_solves_their_equations(seed, sixths):
    abc = normal(3, 4, seed=seed)
    points = 6 * sixths
    path = ellipse(*abc, points=points)
    torch.testing.assert_close(path[[points // 6, points // 2, 5 * points // 6]], abc)
    at = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64) * math.pi / 3
    matrix = torch.stack([torch.ones(3), at.cos(), at.sin()], 1).double()
    p = torch.linalg.solve(matrix, abc)
    angles = 2 * math.pi * torch.arange(points, dtype=torch.float64).unsqueeze(1) / points
    torch.testing.assert_close(path, p[0] + p[1] * angles.cos() + p[2] * angles.sin())


def test_the_points_of_a_circle_give_the_circle():
    abc = [torch.tensor([math.cos(angle), math.sin(angle)]) for angle in (math.pi / 3, math.pi, 5 * math.pi / 3)]
    path = ellipse(*abc, points=50)
    torch.testing.assert_close(path.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(path[0], torch.tensor([1.0, 0.0]))


def test_many_ellipses_are_each_ones_own():
    a, b, c = normal(3, 5, 2, 4)
    paths = ellipse(a, b, c, points=12, dim=1)
    assert paths.shape == (5, 12, 2, 4)
    torch.testing.assert_close(paths[3], ellipse(a[3], b[3], c[3], points=12))


def test_random_ellipses_have_the_scale_of_the_data_and_repeat():
    inputs = 5 + 2 * normal(100, 30)
    paths = random_ellipses(inputs, 200, points=6)
    assert paths.shape == (200, 6, 30)
    through = paths[:, [1, 3, 5]]
    assert through.mean().item() == pytest.approx(inputs.mean().item(), abs=0.1)
    assert through.std().item() == pytest.approx(inputs.std().item(), rel=0.03)
    assert torch.equal(random_ellipses(inputs, 200, points=6), paths)
    assert not torch.equal(random_ellipses(inputs, 200, points=6, generator=torch.Generator().manual_seed(1)), paths)


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8)])
def test_a_translation_rolls_whole_pixels_and_interpolates_between(shape):
    image = normal(*shape)
    path = translation_loop(image, points=16)
    assert path.shape == (16, *shape)
    for i in range(8):
        torch.testing.assert_close(path[2 * i], image.roll(i, -1))
        torch.testing.assert_close(path[2 * i + 1], (image.roll(i, -1) + image.roll(i + 1, -1)) / 2)
    both = translation_loop(torch.stack([image, -image]), points=16, dim=1)
    torch.testing.assert_close(both, torch.stack([path, -path]))


def test_steps_of_a_translation_are_equal_however_many():
    image = torch.arange(5.0).double()
    path = translation_loop(image, points=7)
    torch.testing.assert_close(path[1], image - (image - image.roll(1)) * 5 / 7)
    torch.testing.assert_close(path.mean(0), image.mean().expand(5), rtol=0.2, atol=0)


def test_paths_and_breakpoints_are_made_where_the_data_are():
    module, x = dense(), 4 * normal(3, 3)
    calls = [
        lambda: ellipse(*x, points=5),
        lambda: random_ellipses(x, 2, points=5),
        lambda: translation_loop(x, points=5),
        lambda: breakpoints(module, x[0], x[1]),
    ]
    for call in calls:
        with torch.device("meta"):
            found = call()
        assert torch.equal(found, call())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ellipse(x, x, x[:1], points=5), "^a, b and c have the shapes"),
        (lambda x: ellipse(x, x, x, points=1), "^points is 1; a path has at least 2"),
        (lambda x: ellipse(x, x, x, points=5, dim=3), "^dim is 3"),
        (lambda x: translation_loop(x, points=0), "^points is 0"),
        (lambda x: translation_loop(x, points=5, dim=-1), "^dim is -1"),
        (lambda x: random_ellipses(x, 0, points=5), "^count is 0"),
        (lambda x: random_ellipses(x[:0], 2, points=5), "^count is 2 for 0 inputs"),
    ],
)
def test_bad_paths_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(4, 3))
