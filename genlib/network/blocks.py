"""Modules of several matrices: recurrent layers gate by gate, attention by its projections; and embeddings."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from genlib.network.functional import Params
from genlib.network.recognition import Block, WeightedLayer

__all__ = ["EMBEDDINGS", "blocks", "by_layer", "layer_blocks", "runs_step_by_step"]

_GATES = {nn.LSTM: "ifgo", nn.GRU: "rzn", nn.RNN: "", nn.LSTMCell: "ifgo", nn.GRUCell: "rzn", nn.RNNCell: ""}
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_ALL = slice(None)


class _Part(NamedTuple):
    layer: str
    rows: slice


def blocks(module: nn.Module) -> dict[str, list[_Part]]:
    """By parameter, the layers in the module that it belongs to, and its rows in each; empty for another module.

    A bias belongs to the layer whose matrix it stands beside. Gates are in torch's order.
    """
    if type(module) in _GATES:
        weights, found = _of_gates(module, _GATES[type(module)])
    elif type(module) is nn.MultiheadAttention and type(module.out_proj) is NonDynamicallyQuantizableLinear:
        weights, found = _of_projections(module)
    elif type(module) in EMBEDDINGS and module.max_norm is None:  # which would write into the weights
        weights, found = ["weight"], {"weight": [_Part("", _ALL)]}
    else:
        return {}
    held = [name for name, _ in module.named_parameters()]
    # Where a weight is missing, or another one there, something else makes or uses it.
    return {name: found[name] for name in held} if set(weights) <= set(held) <= found.keys() else {}


def _of_gates(module: nn.Module, gates: str) -> tuple[list[str], dict[str, list[_Part]]]:
    names = getattr(module, "_flat_weights_names", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
    found = {}
    for name in names:
        weight = name.replace("bias", "weight")
        by_gates = _parted([f"{weight}.{gate}" for gate in gates], module.hidden_size)
        found[name] = by_gates if gates and "_hr" not in name else [_Part(weight, _ALL)]
    return [name for name in names if name.startswith("weight")], found


def _of_projections(module: nn.MultiheadAttention) -> tuple[list[str], dict[str, list[_Part]]]:
    if module.in_proj_weight is None:
        weights = names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    else:
        weights, names = ["in_proj_weight"], [f"in_proj_weight.{part}" for part in "qkv"]
    parted, whole = _parted(names, module.embed_dim), {name: [_Part(name, _ALL)] for name in (*names, "out_proj")}
    found = whole | {"in_proj_weight": parted, "in_proj_bias": parted}
    found |= {"bias_k": whole[names[1]], "bias_v": whole[names[2]]}
    found |= {f"out_proj.{part}": whole["out_proj"] for part in ("weight", "bias")}
    return [*weights, "out_proj.weight"], found


def _parted(names: list[str], size: int) -> list[_Part]:
    return [_Part(name, slice(i * size, (i + 1) * size)) for i, name in enumerate(names)]


def layer_blocks(name: str, module: nn.Module) -> list[WeightedLayer]:
    """The matrices of such a module as dense layers, in the order of its parameters."""
    found, lookup = [], isinstance(module, EMBEDDINGS)
    held = dict(module.named_parameters())
    for parameter, parts in blocks(module).items():
        for layer, rows in parts if held[parameter].dim() == 2 else []:
            shape = held[parameter][rows].shape
            linear = nn.Linear(*(shape if lookup else shape[::-1]), bias=False, device="meta")
            block = Block(name, parameter, rows, transposed=lookup)
            found.append(WeightedLayer(_joined(name, layer), linear, block=block))
    return found


def by_layer(module: nn.Module, tensors: Params) -> dict[str, list[Tensor]]:
    """Tensors that are shaped like the module's parameters, by the layer that each belongs to, gate by gate.

    A layer is a module, but for the blocks of those that are known here; bare parameters are those of their module.
    """
    found: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        holder, _, parameter = name.rpartition(".")
        for layer, rows in blocks(module.get_submodule(holder)).get(parameter, [_Part("", _ALL)]):
            found.setdefault(_joined(holder, layer), []).append(tensor if rows == _ALL else tensor[rows])
    return found


def _joined(name: str, layer: str) -> str:
    return ".".join(filter(None, (name, layer)))


def runs_step_by_step(module: nn.Module) -> bool:
    """Whether the module is one that runs once for each step of a sequence."""
    return isinstance(module, nn.RNNCellBase)
