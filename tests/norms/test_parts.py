"""Norms over part of a network: of what is included, and as if what is excluded were not there."""

import copy
import warnings

import pytest
import torch
from cases import drawn
from norms_cases import Block
from torch import nn
from torchvision.models import VisionTransformer

from genlib import norms

SHAPE = (3, 6, 6)
NORMS = {
    "frobenius": lambda n, s, **parts: norms.frobenius_norms(n, **parts),
    "group": lambda n, s, **parts: norms.group_norms(n, 2, 1, **parts),
    "spectral": lambda n, s, **parts: norms.spectral_norms(n, input_shape=SHAPE, **parts),
    "stable rank": lambda n, s, **parts: norms.stable_ranks(n, input_shape=SHAPE, **parts),
    "of the map": lambda n, s, **parts: norms.operator_frobenius_norms(n, input_shape=SHAPE, **parts),
    "shapes": lambda n, s, **parts: torch.tensor(norms.layer_shapes(n, **parts)),
    "distances": lambda n, s, **parts: norms.distances(n, s, **parts),
    "spectral distances": lambda n, s, **parts: norms.distances(n, s, norm="spectral", input_shape=SHAPE, **parts),
}
SUMS = {
    "spectral complexity": lambda n, s, **parts: norms.spectral_complexity(n, s, input_shape=SHAPE, **parts),
    "frobenius complexity": lambda n, s, **parts: norms.log_frobenius_complexity(n, s, input_shape=SHAPE, **parts),
}


def network(seed, *, normalized):
    """A network with or without parts that no norm knows."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(64), nn.PReLU()]
    layers += [nn.Linear(64, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)]
    kept = [layer if normalized or i not in (2, 4, 5) else nn.Identity() for i, layer in enumerate(layers)]
    return drawn(nn.Sequential(*kept), seed)


@pytest.mark.parametrize("name", NORMS | SUMS)
def test_to_exclude_a_part_is_to_take_it_away(name):
    norm = (NORMS | SUMS)[name]
    odd, start = (network(seed, normalized=True) for seed in range(2))
    plain = norm(*(network(seed, normalized=False) for seed in range(2)))
    for exclude in (norms.unknown_parts(odd), ["2", "4", "5"], ["[245]"], {"2": 0, "[45]": 1}):
        torch.testing.assert_close(norm(odd, start, exclude=exclude), plain, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"2 is of type GroupNorm.*; exclude=norms\.unknown_parts\(network\) gives"):
        norm(odd, start)


@pytest.mark.parametrize("name", NORMS)
def test_what_is_included_is_what_the_whole_list_says_of_it(name):
    block, start = drawn(Block(), 1), drawn(Block(), 2)
    whole = NORMS[name](block, start)
    for include, places in {
        "second": [1],
        ("head", "first"): [0, 3],
        "*s*": [0, 1, 2],
        "*_norm": [2],
        "*": [0, 1, 2, 3],
    }.items():
        include = include if isinstance(include, str) else list(include)
        assert norms.layer_names(block, include=include) == [norms.layer_names(block)[i] for i in places]
        torch.testing.assert_close(NORMS[name](block, start, include=include), whole[places], rtol=0, atol=0)
    torch.testing.assert_close(NORMS[name](block, start, include="*s*", exclude="first"), whole[1:3], rtol=0, atol=0)


def test_an_excluded_batch_norm_is_not_folded():
    block = drawn(Block())
    found = norms.frobenius_norms(block, exclude="*_norm")
    weights = [block.first.weight, block.second.weight, block.head.weight]
    torch.testing.assert_close(found, torch.stack([w.detach().norm() for w in weights]))


def test_what_is_not_asked_for_may_be_unknown_tied_or_run_twice():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.loop, self.norm, self.head = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3)
            self.tied = nn.Linear(3, 3)
            self.tied.weight = self.head.weight

        def forward(self, x):
            return self.head(self.norm(self.loop(self.loop(self.tied(x)))))

    odd = Odd()
    for parts in ({"include": "head"}, {"exclude": ["norm", "loop", "tied"]}):
        assert norms.layer_names(odd, **parts) == ["head"]
        assert norms.frobenius_norms(odd, **parts).item() == pytest.approx(odd.head.weight.norm().item())
    for name, patterns, said in (
        ("include", "norm", "norm is of type LayerNorm"),
        ("include", ["head", "tied"], r"head\.weight and tied\.weight are one tied weight"),
        ("exclude", ["norm", "loop"], r"head\.weight and tied\.weight are one tied weight"),
        ("exclude", ["norm", "tied"], "loop runs more than once"),
        ("exclude", "*", r"no layer with weights that is listed, but loop \(Linear\), norm \(LayerNorm\), head"),
    ):
        with pytest.raises(ValueError, match=f"^network: .*{said}"):
            norms.frobenius_norms(odd, **{name: patterns})


def test_a_batch_norm_that_runs_twice_is_refused_with_the_layers_that_it_follows():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = (nn.Linear(3, 3) for _ in range(3))
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.head(torch.relu(self.norm(self.two(torch.relu(self.norm(self.one(x)))))))

    shared = Shared().eval()
    for parts in ({}, {"include": "one"}, {"include": "two"}, {"exclude": "one"}):
        with pytest.raises(ValueError, match="norm runs more than once"):
            norms.frobenius_norms(shared, **parts)
    assert norms.layer_names(shared, include="head") == ["head"]
    assert norms.layer_names(shared, exclude="norm") == ["one", "two", "head"]


def test_modules_within_modules_and_gates_are_matched():
    torch.manual_seed(0)
    rnn = nn.LSTM(3, 4)
    module = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))), "rnn": rnn})
    names = [f"rnn.weight_{part}_l0.{gate}" for part in ("ih", "hh") for gate in "ifgo"]
    assert norms.layer_names(module) == ["body.0", "body.1.0", *names]
    assert norms.layer_names(module, include="body") == ["body.0", "body.1.0"]
    assert norms.layer_names(module, include=["body.1", "rnn.*hh*"]) == ["body.1.0", *names[4:]]
    assert norms.layer_names(module, exclude=["body", "body.0", "*.[ifg]"]) == [names[3], names[7]]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_patterns_that_nothing_matches_or_that_are_none_are_refused(argument, unchecked):
    for patterns, said in {
        "missing": "holds 'missing', which is no part of the network",
        ("head", "fir?"): r"holds 'fir\?', which is no part",
        3: "is 3; give the name of a module",
        (3,): r"is \(3,\); give the name of a module",
    }.items():
        with pytest.raises(ValueError, match=f"^{argument} {said}"):
            norms.frobenius_norms(Block().eval(), **{argument: patterns})
    with pytest.raises(ValueError, match=f"^{argument} is <generator"):
        norms.frobenius_norms(Block().eval(), **{argument: (name for name in ["head"])})


def test_the_parts_of_a_vision_transformer():
    torch.manual_seed(0)
    vit = VisionTransformer(8, 4, 1, 2, 8, 12, num_classes=3).eval()
    layer = "encoder.layers.encoder_layer_0"
    assert norms.unknown_parts(vit) == {
        "class_token": "Parameter",
        "encoder.pos_embedding": "Parameter",
        f"{layer}.ln_1": "LayerNorm",
        f"{layer}.ln_2": "LayerNorm",
        "encoder.ln": "LayerNorm",
    }
    attention = [f"{layer}.self_attention.{name}" for name in (*(f"in_proj_weight.{c}" for c in "qkv"), "out_proj")]
    names = ["conv_proj", *attention, f"{layer}.mlp.0", f"{layer}.mlp.3", "heads.head"]
    assert norms.layer_names(vit, exclude=norms.unknown_parts(vit)) == names
    assert len(norms.spectral_norms(vit, input_shape=(3, 8, 8), exclude=norms.unknown_parts(vit))) == len(names)


class Gated(nn.Module):
    """A norm that torch.fx can't follow."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.gain * x if float(x.detach().abs().max()) > 0 else x


def test_an_excluded_part_is_not_looked_into():
    odd = drawn(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Gated(4), nn.Linear(4, 2)))
    plain = copy.deepcopy(odd)
    plain[2] = nn.Identity()
    torch.testing.assert_close(norms.frobenius_norms(odd, exclude="2"), norms.frobenius_norms(plain))


def test_a_weight_of_a_layer_that_stands_by_itself_too_is_refused():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.layer = nn.Parameter(torch.randn(3, 3)), nn.Linear(3, 3)
            self.layer.weight = self.own

        def forward(self, x):
            return self.layer(torch.relu(x @ self.own))

    with pytest.raises(ValueError, match="own is used outside its layer"):
        norms.frobenius_norms(Loose(), exclude="own")


def test_a_scripted_part_is_refused_as_one_with_hooks_is():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    network = nn.Sequential(scripted, nn.Linear(4, 2))
    assert norms.unknown_parts(network) == {"0.0": "RecursiveScriptModule"}
    for exclude, said in ((None, r"0\.0 is of type RecursiveScriptModule"), ("0", "0 has been given another forward")):
        with pytest.raises(ValueError, match=said):
            norms.frobenius_norms(network, exclude=exclude)
