"""The matrices of recurrent layers, attention and embeddings, and what only looks like one of these."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Untraceable
from torch import nn

from genlib import norms
from genlib.network import Network
from genlib.network.blocks import by_layer
from genlib.network.weights import folded_weights


class Recurrent(nn.Module):
    """A recurrent layer or a cell in a loop, and a head."""

    def __init__(self, kind, seed=0, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.rnn, self.head = kind(3, 4, **options), nn.LazyLinear(2)
        self.double()(torch.zeros(1, 5, 3).double())
        self.eval()

    def forward(self, x):
        if isinstance(self.rnn, nn.RNNBase):
            return self.head(self.rnn(x.transpose(0, 1))[0][-1])
        state = None
        for t in range(5):
            state = self.rnn(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Attention(nn.Module):
    def __init__(self, seed=0, kdim=None, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.keys = nn.Linear(4, kdim or 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, kdim=kdim, **options)
        self.double().eval()

    def forward(self, x):
        return self.attention(x, self.keys(x), x, need_weights=False)[0]


class Words(nn.Module):
    def __init__(self, kind=nn.Embedding, seed=0, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.head = kind(7, 3, **options), nn.Linear(3, 2)
        self.double().eval()

    def forward(self, tokens):
        found = self.words(tokens)
        return self.head(found if isinstance(self.words, nn.EmbeddingBag) else found.mean(1))


def gates(module, prefix, parameter, names, size):
    whole = getattr(module, parameter).detach().numpy()
    return {f"{prefix}.{parameter}.{gate}": whole[i * size : (i + 1) * size] for i, gate in enumerate(names)}


def of_recurrent(network, names):
    found = {}
    for parameter, p in network.rnn.named_parameters():
        if p.dim() == 2:
            whole = {f"rnn.{parameter}": p.detach().numpy()}
            found |= gates(network.rnn, "rnn", parameter, names, 4) if names and "_hr" not in parameter else whole
    return found | {"head": network.head.weight.detach().numpy()}


def of_attention(network):
    attention = network.attention
    found = {"keys": network.keys.weight.detach().numpy()}
    if attention.in_proj_weight is not None:
        found |= gates(attention, "attention", "in_proj_weight", "qkv", 4)
    else:
        parts = [f"{part}_proj_weight" for part in "qkv"]
        found |= {f"attention.{part}": getattr(attention, part).detach().numpy() for part in parts}
    return found | {"attention.out_proj": attention.out_proj.weight.detach().numpy()}


def of_words(network):
    return {"words": network.words.weight.detach().numpy().T, "head": network.head.weight.detach().numpy()}


CASES = {
    "LSTM": (lambda s: Recurrent(nn.LSTM, s), lambda n: of_recurrent(n, "ifgo"), (5, 3)),
    "LSTM of two ways, two layers and a projection": (
        lambda s: Recurrent(nn.LSTM, s, num_layers=2, bidirectional=True, proj_size=2),
        lambda n: of_recurrent(n, "ifgo"),
        (5, 3),
    ),
    "GRU": (lambda s: Recurrent(nn.GRU, s, bias=False), lambda n: of_recurrent(n, "rzn"), (5, 3)),
    "RNN": (lambda s: Recurrent(nn.RNN, s, bidirectional=True), lambda n: of_recurrent(n, ""), (5, 3)),
    "LSTM cell": (lambda s: Recurrent(nn.LSTMCell, s), lambda n: of_recurrent(n, "ifgo"), (5, 3)),
    "GRU cell": (lambda s: Recurrent(nn.GRUCell, s, bias=False), lambda n: of_recurrent(n, "rzn"), (5, 3)),
    "RNN cell": (lambda s: Recurrent(nn.RNNCell, s), lambda n: of_recurrent(n, ""), (5, 3)),
    "attention": (Attention, of_attention, (5, 4)),
    "attention to other features": (lambda s: Attention(s, kdim=6), of_attention, (5, 4)),
    "attention with biases": (lambda s: Attention(s, bias=False, add_bias_kv=True), of_attention, (5, 4)),
    "embedding": (lambda s: Words(seed=s, padding_idx=0), of_words, (5,)),
    "bag": (lambda s: Words(nn.EmbeddingBag, s), of_words, (5,)),
}


@pytest.mark.parametrize("name", CASES)
def test_each_matrix_has_its_norms_and_its_name(name):
    make, by_hand, shape = CASES[name]
    network, start = make(0), make(1)
    matrices, before = by_hand(network), by_hand(start).values()
    assert norms.layer_names(network) == list(matrices)
    matrices = list(matrices.values())
    assert norms.layer_shapes(network) == [(*m.shape, 1) for m in matrices]
    frobenius, spectral = ([np.linalg.norm(m, order) for m in matrices] for order in (None, 2))
    rows = [np.linalg.norm(m, axis=1).sum() for m in matrices]
    moved = [np.linalg.norm(m - m0, 2) for m, m0 in zip(matrices, before, strict=True)]
    for module in (network, Untraceable(network)):
        np.testing.assert_allclose(norms.frobenius_norms(module), frobenius, rtol=1e-12)
        np.testing.assert_allclose(norms.spectral_norms(module, input_shape=shape), spectral, rtol=1e-12)
        np.testing.assert_allclose(norms.group_norms(module, 2, 1), rows, rtol=1e-12)
        ranks = norms.stable_ranks(module, input_shape=shape)
        np.testing.assert_allclose(ranks, np.square(frobenius) / np.square(spectral), rtol=1e-12)
    found = norms.distances(network, start, norm="spectral", input_shape=shape)
    np.testing.assert_allclose(found, moved, rtol=1e-12)
    stack = norms.frobenius_norms(Network.stack([start, network]))
    torch.testing.assert_close(stack, torch.stack([norms.frobenius_norms(one) for one in (start, network)]))
    with pytest.raises(ValueError, match="has no known paths"):
        norms.path_norm(network, input_shape=shape)


def test_the_matrices_of_a_recurrent_layer_are_what_it_does():
    """One step of an LSTM by the listed matrices."""
    torch.manual_seed(0)
    rnn, x = nn.LSTM(3, 4, bias=False).double(), torch.randn(1, 3).double()
    state = torch.randn(1, 4).double(), torch.randn(1, 4).double()
    m = dict(zip(norms.layer_names(rnn), _matrices(rnn), strict=True))
    i, f, g, o = (x @ m[f"weight_ih_l0.{gate}"].T + state[0] @ m[f"weight_hh_l0.{gate}"].T for gate in "ifgo")
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    torch.testing.assert_close(rnn(x, state)[0], o.sigmoid() * cell.tanh())
    tokens = torch.tensor([2, 0, 6, 2])
    words = nn.Embedding(7, 3).double()
    [matrix] = _matrices(words)
    torch.testing.assert_close(words(tokens), F.one_hot(tokens, 7).double() @ matrix.T)


def _matrices(module):
    return [weight.value[0] for weight in folded_weights(Network.of(module))]


def test_what_torch_fx_takes_as_one_is_looked_into():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval()
    encoder.norm1 = encoder.norm2 = nn.Identity()
    network = nn.Sequential(nn.Linear(3, 4), encoder, nn.Flatten(), nn.Linear(20, 2))
    attention = ["in_proj_weight.q", "in_proj_weight.k", "in_proj_weight.v", "out_proj"]
    inside = [*(f"1.self_attn.{name}" for name in attention), "1.linear1", "1.linear2"]
    assert norms.layer_names(network) == ["0", *inside, "3"]
    assert len(norms.spectral_norms(network, input_shape=(5, 3))) == 8
    with pytest.raises(ValueError, match=r"network: 1\.self_attn runs more than once"):
        norms.frobenius_norms(nn.Sequential(*network[:2], nn.Identity(), encoder))


def test_a_batch_norm_after_an_embedding_stands_alone():
    network = nn.Sequential(nn.Embedding(7, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    assert norms.layer_names(network) == ["0", "1", "2"]


class OwnLSTM(nn.LSTM):
    def forward(self, x):
        return 2 * super().forward(x)[0]


class OwnEmbedding(nn.Embedding):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


def without_weight():
    """As dropout of weights does it: the layer's own weight is set before each pass."""
    rnn = nn.LSTM(3, 4)
    weight = rnn.weight_hh_l0.detach()
    del rnn._parameters["weight_hh_l0"]
    rnn.weight_hh_l0 = weight
    return rnn


def with_another():
    cell = nn.GRUCell(3, 4)
    cell.gain = nn.Parameter(torch.ones(4))
    return cell


def of_other_output():
    attention = nn.MultiheadAttention(4, 2)
    attention.out_proj = nn.utils.parametrizations.weight_norm(attention.out_proj)
    return attention


REFUSED = {
    "LSTM subclass": (lambda: OwnLSTM(3, 4), "0 is of type OwnLSTM"),
    "embedding subclass": (lambda: OwnEmbedding(7, 3), "0 is of type OwnEmbedding"),
    "embedding that writes its weights": (lambda: nn.Embedding(7, 3, max_norm=1.0), "0 is of type Embedding"),
    "weight that is none": (without_weight, "0 is of type LSTM"),
    "weight besides": (with_another, "0 is of type GRUCell"),
    "projection that is computed": (of_other_output, "0 is of type MultiheadAttention"),
    "bilinear": (lambda: nn.Bilinear(3, 4, 2), "0 is of type Bilinear"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_looks_like_one_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^network: {message}, no dense layer"):
        norms.frobenius_norms(nn.Sequential(make()))


def test_a_tied_weight_and_a_layer_that_runs_twice_are_refused():
    words = Words()
    words.head = nn.Linear(3, 7).double()
    words.head.weight = words.words.weight
    with pytest.raises(ValueError, match=r"words\.weight and head\.weight are one tied weight"):
        norms.frobenius_norms(words)
    lstm = nn.LSTM(3, 3)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = lstm

        def forward(self, x):
            return self.rnn(self.rnn(x)[0])[0]

    with pytest.raises(ValueError, match="rnn runs more than once"):
        norms.frobenius_norms(Twice())


def test_tensors_by_layer_are_cut_as_the_matrices_are():
    network = nn.ModuleDict(
        {"rnn": nn.LSTM(2, 3, proj_size=1), "attention": nn.MultiheadAttention(4, 1, add_bias_kv=True)}
    )
    network["words"], network.own = nn.Embedding(5, 2), nn.Parameter(torch.ones(()))
    tensors = dict(network.named_parameters())
    found = by_layer(network, tensors)
    assert sum(one.numel() for parts in found.values() for one in parts) == sum(p.numel() for p in tensors.values())
    rnn, attention = network["rnn"], network["attention"]
    expected = {
        "": [network.own],
        "rnn.weight_ih_l0.f": [rnn.weight_ih_l0[3:6], rnn.bias_ih_l0[3:6]],
        "rnn.weight_hh_l0.o": [rnn.weight_hh_l0[9:], rnn.bias_hh_l0[9:]],
        "rnn.weight_hr_l0": [rnn.weight_hr_l0],
        "attention.in_proj_weight.q": [attention.in_proj_weight[:4], attention.in_proj_bias[:4]],
        "attention.in_proj_weight.k": [attention.in_proj_weight[4:8], attention.in_proj_bias[4:8], attention.bias_k],
        "attention.out_proj": [attention.out_proj.weight, attention.out_proj.bias],
        "words": [network["words"].weight],
    }
    for name, parts in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(found[name], parts, strict=True))
    assert [*found][1:] == norms.layer_names(network, exclude="own")
