"""The record of networks that people have: of a small member of each family, which rows of the catalogue have a value.

`python -m genlib.book.networks` measures every family anew and writes chapters/networks.json.
"""

import json
import warnings
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torchvision import models

from genlib.book.families import ROWS
from genlib.margins import margins_of_logits
from genlib.measures import evaluate
from genlib.progress import progress
from genlib.train import Run

__all__ = ["ATTENTION", "FAMILIES", "GATED", "RECORD", "RECURRENT", "Family", "Recurrent", "Residual", "measured"]

RECORD = Path(__file__).parents[2] / "chapters/networks.json"
SAMPLES, POOL = 12, 100


class Recurrent(nn.Module):
    """A recurrent layer, and a dense one that reads its outputs at the last step."""

    def __init__(self, layer: nn.RNNBase, classes: int):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(layer.hidden_size, classes)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Residual(nn.Module):
    """Two dense layers around which the input skips."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


class Family(NamedTuple):
    """The line that builds its small member, and the shape of a sample; without one, tokens and their mask by name."""

    kind: str
    package: str
    code: str
    shape: tuple[int, ...] | None = None


DENSE, CONVOLUTIONAL, RECURRENT = "Dense", "Convolutional", "Recurrent"
GATED = "Convolutional with SiLU, squeeze-and-excitation or GroupNorm"
ATTENTION = "Transformers and MLP-mixers"
_TEXT = (
    "num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, max_position_embeddings=8, "
    "vocab_size=20, num_labels=3"
)


def _of_transformers(name: str, options: str = _TEXT, shape: tuple[int, ...] | None = None) -> Family:
    code = (
        f"transformers.{name}For{'Image' if shape else 'Sequence'}Classification(transformers.{name}Config({options}))"
    )
    return Family(ATTENTION, "transformers", code, shape)


def _mixer(options: str = "") -> Family:
    return Family(
        ATTENTION,
        "timm",
        f"timm.models.MlpMixer(3, 16, patch_size=8, num_blocks=1, embed_dim=16{options})",
        (3, 16, 16),
    )


_BLOCK = "models.efficientnet.MBConvConfig"
_STAGE = "models.convnext.CNBlockConfig"
_IMAGE, _SMALL, _SEQUENCE = (3, 32, 32), (3, 16, 16), (5, 4)
FAMILIES = {
    "MLP": Family(DENSE, "torch", "nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))", (8,)),
    "Residual MLP": Family(DENSE, "torch", "nn.Sequential(nn.Linear(8, 16), Residual(16), nn.Linear(16, 3))", (8,)),
    "CNN": Family(
        CONVOLUTIONAL,
        "torch",
        "nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), "
        "nn.Linear(392, 3))",
        _SMALL,
    ),
    "VGG with BatchNorm": Family(
        CONVOLUTIONAL,
        "torchvision",
        "nn.Sequential(models.vgg.make_layers([8, 'M', 16, 'M'], batch_norm=True), nn.Flatten(), nn.Linear(256, 3))",
        _SMALL,
    ),
    "ResNet": Family(CONVOLUTIONAL, "torchvision", "models.resnet18(num_classes=3)", _IMAGE),
    "Inception": Family(
        CONVOLUTIONAL,
        "torchvision",
        "nn.Sequential(models.inception.InceptionA(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(228, 3))",
        _SMALL,
    ),
    "DenseNet": Family(CONVOLUTIONAL, "torchvision", "models.DenseNet(4, (2, 2), 8, num_classes=3)", _IMAGE),
    "MobileNetV2": Family(CONVOLUTIONAL, "torchvision", "models.mobilenet_v2(num_classes=3, width_mult=0.1)", _IMAGE),
    "ShuffleNetV2": Family(
        CONVOLUTIONAL,
        "torchvision",
        "models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 16, 16], num_classes=3)",
        _IMAGE,
    ),
    "ConvNeXt": Family(
        CONVOLUTIONAL,
        "torchvision",
        f"models.ConvNeXt([{_STAGE}(8, 16, 1), {_STAGE}(16, None, 1)], num_classes=3)",
        _SMALL,
    ),
    "EfficientNet": Family(
        GATED,
        "torchvision",
        f"models.EfficientNet([{_BLOCK}(2, 3, 1, 8, 8, 1), {_BLOCK}(2, 3, 2, 8, 16, 1)], 0.1, num_classes=3)",
        _SMALL,
    ),
    "MobileNetV3": Family(GATED, "torchvision", "models.mobilenet_v3_small(num_classes=3, width_mult=0.1)", _IMAGE),
    "SE-ResNet": Family(GATED, "timm", "timm.create_model('seresnet18', num_classes=3, channels=(8, 8, 8, 8))", _IMAGE),
    "ResNet with GroupNorm and SiLU": Family(
        GATED,
        "timm",
        "timm.create_model('resnet10t', num_classes=3, channels=(8, 8, 8, 8), stem_width=8, act_layer=nn.SiLU, "
        "norm_layer=timm.layers.GroupNorm1)",
        _IMAGE,
    ),
    "Vision transformer": Family(
        ATTENTION, "torchvision", "models.VisionTransformer(16, 8, 1, 2, 16, 16, num_classes=3)", _SMALL
    ),
    "Swin transformer": Family(
        ATTENTION,
        "torchvision",
        "models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=3)",
        _SMALL,
    ),
    "ViT of timm": Family(
        ATTENTION,
        "timm",
        "timm.create_model('vit_tiny_patch16_224', num_classes=3, img_size=16, patch_size=8, embed_dim=16, depth=1, "
        "num_heads=2)",
        _SMALL,
    ),
    "MLP-mixer": _mixer(),
    "ResMLP": _mixer(", mlp_ratio=4, block_layer=timm.models.mlp_mixer.ResBlock"),
    "gMLP": _mixer(
        ", mlp_ratio=4, block_layer=timm.models.mlp_mixer.SpatialGatingBlock, mlp_layer=timm.layers.GatedMlp"
    ),
    "ViT of transformers": _of_transformers(
        "ViT",
        "num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4, "
        "num_labels=3",
        (3, 8, 8),
    ),
    "BERT": _of_transformers("Bert"),
    "RoBERTa": _of_transformers("Roberta", _TEXT + ", pad_token_id=0"),
    "ALBERT": _of_transformers("Albert", _TEXT + ", embedding_size=8"),
    "ELECTRA": _of_transformers("Electra", _TEXT + ", embedding_size=8"),
    "DistilBERT": _of_transformers(
        "DistilBert",
        "n_layers=1, dim=8, n_heads=2, hidden_dim=8, max_position_embeddings=8, vocab_size=20, num_labels=3",
    ),
    "GPT-2": _of_transformers(
        "GPT2",
        "n_layer=1, n_embd=8, n_head=2, n_positions=8, vocab_size=20, num_labels=3, pad_token_id=0, bos_token_id=0, "
        "eos_token_id=0",
    ),
    "Llama": _of_transformers("Llama", _TEXT + ", num_key_value_heads=2, pad_token_id=0"),
    "RNN": Family(RECURRENT, "torch", "Recurrent(nn.RNN(4, 8, batch_first=True), 3)", _SEQUENCE),
    "GRU": Family(RECURRENT, "torch", "Recurrent(nn.GRU(4, 8, batch_first=True), 3)", _SEQUENCE),
    "LSTM": Family(RECURRENT, "torch", "Recurrent(nn.LSTM(4, 8, batch_first=True), 3)", _SEQUENCE),
}


def measured(name: str) -> dict:
    """The entry of a family's member: how it was built, and which rows apply, are over a part, or are refused and why.

    Weights that begin at zero are drawn, too. The labels are the network's own: the samples are those of a hundred
    about which it is surest. It stands for its first epoch, too, and another one for its start.
    """
    family = FAMILIES[name]
    package = import_module(family.package)
    names = {family.package: package, "models": models, "nn": nn, "Recurrent": Recurrent, "Residual": Residual}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages
        torch.manual_seed(0)
        network, initial = (_drawn(eval(family.code, names)) for _ in range(2))
        inputs, labels = _surest(network, family.shape)
        data = {**inputs, "labels": labels} if isinstance(inputs, dict) else (inputs, labels)
        history = pd.DataFrame({"step": [1, 2], "loss": [0.1, 0.01]})
        run = Run(network, initial, history, True, 2, 1.0)
        found = evaluate(network, data, initial=initial, first_epoch=network, run=run, names=ROWS)
    there, partly = found["value"].notna(), found["reason"].str.startswith("over part of the network")
    return {
        "kind": family.kind,
        "package": f"{family.package} {metadata.version(family.package)}",
        "code": family.code,
        "parameters": sum(p.numel() for p in network.parameters()),
        "applies": found.index[there & ~partly].tolist(),
        "part": _by_reason(found[there & partly]),
        "refused": _by_reason(found[~there]),
    }


@torch.no_grad()
def _drawn(network: nn.Module) -> nn.Module:
    for p in network.parameters():
        if not p.any():
            p.normal_(0, 0.05)
    return network.eval()


@torch.no_grad()
def _surest(network: nn.Module, shape: tuple[int, ...] | None) -> tuple[Tensor | dict[str, Tensor], Tensor]:
    """The samples with the largest margins, and their labels."""
    if shape is None:
        pool = {"input_ids": torch.randint(1, 20, (POOL, 5)), "attention_mask": torch.ones(POOL, 5, dtype=torch.long)}
        logits = network(**pool).logits
    else:
        pool = torch.randn(POOL, *shape)
        logits = network(pool)
        logits = getattr(logits, "logits", logits)
    labels = logits.argmax(1)
    best = margins_of_logits(logits, labels).topk(SAMPLES).indices
    return {key: x[best] for key, x in pool.items()} if shape is None else pool[best], labels[best]


def _by_reason(rows: pd.DataFrame) -> dict[str, list[str]]:
    return {reason: of.index.tolist() for reason, of in rows.groupby("reason", sort=False)}


def main() -> None:
    missing = sorted({of.package for of in FAMILIES.values() if find_spec(of.package) is None})
    if missing:
        raise SystemExit(f"{' and '.join(missing)} missing, of which the record has families: install requirements.txt")
    record = {name: measured(name) for name in progress(FAMILIES, what="networks")}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
