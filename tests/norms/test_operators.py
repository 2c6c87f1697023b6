"""Norms of convolutions and dense layers are those of their matrices."""

import numpy as np
import pytest
import torch
from cases import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from norms_cases import dense
from torch import nn

from genlib import norms
from genlib.norms import operators

GEOMETRIES = {
    "one axis": (nn.Conv1d(3, 5, 3, padding=1), (3, 9)),
    "two axes": (nn.Conv2d(3, 5, 3, padding=1), (3, 7, 6)),
    "three axes": (nn.Conv3d(2, 3, 3, padding=1), (2, 4, 5, 4)),
    "stride": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 7, 8)),
    "dilation": (nn.Conv2d(3, 5, 3, dilation=2, padding=2), (3, 7, 6)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 6, 6)),
    "all of them": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2, padding=(2, 0)), (4, 7, 7)),
    "no padding": (nn.Conv2d(3, 5, 3), (3, 6, 6)),
    "same": (nn.Conv2d(3, 5, (3, 5), padding="same"), (3, 6, 6)),
    "one pixel": (nn.Conv2d(4, 6, 1, stride=2, groups=2), (4, 5, 5)),
    "circular": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 7, 6)),
    "circular, one axis": (nn.Conv1d(3, 5, 5, padding=2, padding_mode="circular"), (3, 9)),
    "circular, three axes": (nn.Conv3d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 5, 3)),
    "circular, many frequencies": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), (3, 16, 15)),
    "circular, groups, dilation": (
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, padding_mode="circular"),
        (4, 11, 12),
    ),
    "circular, wrapped": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 2, 2)),
    "circular, stride": (nn.Conv2d(3, 5, 3, padding=1, stride=2, padding_mode="circular"), (3, 6, 7)),
    "circular, larger output": (nn.Conv2d(3, 5, 3, padding=2, padding_mode="circular"), (3, 5, 5)),
    "reflect": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (3, 6, 7)),
    "replicate": (nn.Conv2d(3, 5, 3, padding=1, stride=2, padding_mode="replicate"), (3, 6, 7)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 4)),
    "transposed, one axis": (nn.ConvTranspose1d(3, 2, 3, stride=2, dilation=2), (3, 5)),
    "transposed, three axes": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 2, 3)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_conv_norm_and_stable_rank_are_those_of_the_dense_matrix(name):
    convolution, shape = GEOMETRIES[name]
    matrix = dense(drawn(convolution), shape)
    largest = torch.linalg.svdvals(matrix)[0]
    norm = norms.conv_norm(convolution, shape)
    torch.testing.assert_close(norm.value.double(), largest, rtol=1e-5, atol=0)
    assert norm.residual <= 1e-4 * norm.value
    torch.testing.assert_close(norms.spectral_norms(convolution, input_shape=shape)[0], norm.value)
    ranks = norms.stable_ranks(convolution, input_shape=shape)
    torch.testing.assert_close(ranks[0].double(), matrix.square().sum() / largest**2, rtol=1e-4, atol=0)


@settings(max_examples=15)
@given(
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
    seed=st.integers(0, 99),
)
def test_conv_norm_in_float64_is_as_exact_as_asked(inputs, outputs, kernel, stride, padding, mode, seed):
    geometry = {"stride": stride, "padding": padding, "padding_mode": mode}
    convolution = drawn(nn.Conv2d(inputs, outputs, kernel, **geometry), seed).double()
    norm = norms.conv_norm(convolution, (inputs, 6, 5), rtol=1e-8)
    largest = torch.linalg.svdvals(dense(convolution, (inputs, 6, 5)))[0]
    torch.testing.assert_close(norm.value, largest, rtol=1e-8, atol=0)


@pytest.mark.parametrize("stride, channels", [(1, 32), (2, 64)])
def test_the_hard_case_in_sixty_passes(stride, channels):
    convolution, shape = drawn(nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)), (channels, 8, 8)
    matrix = dense(convolution, shape)
    largest = torch.linalg.eigvalsh(matrix @ matrix.T)[-1].sqrt().item()
    norm = norms.conv_norm(convolution, shape, rtol=1e-9, max_passes=60)
    assert norm.passes == 60
    assert (1 - 2e-3) * largest < norm.value <= (1 + 1e-6) * largest
    assert largest - norm.value <= norm.residual
    assert norms.conv_norm(convolution, shape, rtol=1e-5).value == pytest.approx(largest, rel=1e-5)


def test_lanczos_reads_from_the_device_once_in_eight_steps(monkeypatch):
    reads = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: reads.append(tensor.shape) or cpu(tensor))
    norm = norms.conv_norm(drawn(nn.Conv2d(8, 8, 3, padding=1)), (8, 8, 8), rtol=1e-5)
    assert norm.passes == 16 * len(reads)


@pytest.mark.parametrize("chunk", [2**23, 5000])
@pytest.mark.parametrize("sizes", [(12, 13), (13, 12)])
def test_circular_norm_is_the_largest_of_all_frequencies(monkeypatch, sizes, chunk):
    monkeypatch.setattr(operators, "_SPECTRUM_CHUNK", chunk)
    convolution = drawn(nn.Conv2d(9, 7, 3, padding=1, padding_mode="circular"))
    transform = np.fft.fft2(convolution.weight.detach().double().numpy(), sizes)
    largest = np.linalg.svd(transform.transpose(2, 3, 0, 1), compute_uv=False).max()
    assert norms.conv_norm(convolution, (9, *sizes)).value.item() == pytest.approx(largest, rel=1e-5)


def test_padding_and_stride_count_and_the_reshaped_kernel_is_too_small():
    kinds = [{"padding_mode": "circular"}, {}, {"stride": 2}]
    convolutions = [nn.Conv2d(16, 16, 3, padding=1, **kind) for kind in kinds]
    for convolution in convolutions:
        convolution.weight = drawn(convolutions[0]).weight
    circular, zeros, stride = (norms.conv_norm(c, (16, 16, 16)).value.item() for c in convolutions)
    reshaped = torch.linalg.svdvals(convolutions[0].weight.detach().flatten(1))[0].item()
    assert reshaped < 0.8 * circular
    assert stride < 0.9 * zeros < 0.9 * circular


@pytest.mark.parametrize("limit", [1024, 4])
@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (12, 12), (1, 9)])
def test_dense_norms_by_gram_matrix_and_by_lanczos(monkeypatch, shape, limit):
    monkeypatch.setattr(operators, "_GRAM_LIMIT", limit)
    layer = drawn(nn.Linear(*shape))
    largest = torch.linalg.svdvals(layer.weight.detach().double())[0]
    measured = norms.spectral_norms(layer, input_shape=(shape[0],))[0]
    torch.testing.assert_close(measured.double(), largest, rtol=1e-5, atol=0)


def test_a_tolerance_out_of_reach_is_refused(monkeypatch):
    monkeypatch.setattr(operators, "MAX_PASSES", 16)
    with pytest.raises(ValueError, match=r"rtol 1e-09 is not reached for 0 in 16 passes"):
        norms.spectral_norms(nn.Sequential(drawn(nn.Conv2d(4, 4, 3, padding=1))), input_shape=(4, 9, 9), rtol=1e-9)
