"""Small untrained networks of torchvision, timm and transformers: none raises, and some are right by brute force."""

import os
import warnings

import pandas as pd
import pytest
import torch
import twins
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from genlib.measures import evaluate

EVERY = os.environ.get("GENLIB_ALL") == "1"
CLASSES, SAMPLES = 3, 2
CHEAP = (
    *("parameters", "l2", "product_frobenius", "path", "cross_entropy", "negative_entropy", "inverse_margin"),
    *("input_margin", "input_gradient", "gradient_variance", "sam_sharpness"),
)
COMPARED = (
    *("parameters", "l2", "cross_entropy", "negative_entropy", "input_margin", "jacobian_norm", "input_gradient"),
    *("gradient_variance", "sam_sharpness", "top_eigenvalue"),
)


class Logits(nn.Module):
    """A model of transformers as a function from one tensor to the logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def vision(name, size=32, **options):
    return lambda: (getattr(models, name)(weights=None, num_classes=CLASSES, **options), size)


def of_timm(name, size=32, **options):
    def build():
        import timm  # here, for it takes seconds that no other test should wait for

        return timm.create_model(name, num_classes=CLASSES, **options), size

    return build


def mixing(block, mlp, size=32, **options):
    def build():
        from timm.layers import mlp as mlps
        from timm.models import mlp_mixer

        parts = {"block_layer": getattr(mlp_mixer, block), "mlp_layer": getattr(mlps, mlp), "num_blocks": 1}
        return mlp_mixer.MlpMixer(CLASSES, size, patch_size=size // 2, **parts, **options), size

    return build


def of_transformers(kind, size=None, **options):
    """One for sequences of tokens, or for images where a `size` is given."""

    def build():
        import transformers

        given = options if size else options | {"vocab_size": 20, "pad_token_id": 0}
        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **given)
        what = "Image" if size else "Sequence"
        return Logits(getattr(transformers, f"{kind}For{what}Classification")(config)), size

    return build


CONVNEXT = [CNBlockConfig(4, 8, 1), CNBlockConfig(8, None, 1)]
SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 12,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": [2, 2],
    "num_classes": CLASSES,
}
SWIN_V2 = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
TORCHVISION = {
    "alexnet": vision("alexnet", 63),
    "convnext": lambda: (models.ConvNeXt(CONVNEXT, num_classes=CLASSES), 16),
    "densenet": vision("densenet121"),
    "efficientnet": vision("efficientnet_b0"),
    "efficientnet_v2": vision("efficientnet_v2_s"),
    "googlenet": vision("googlenet", aux_logits=False, init_weights=False),
    "inception": vision("inception_v3", 75, aux_logits=False, init_weights=False),
    "maxvit": lambda: (
        models.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=CLASSES),
        32,
    ),
    "mnasnet": vision("mnasnet0_5"),
    "mobilenet_v2": vision("mobilenet_v2"),
    "mobilenet_v3": vision("mobilenet_v3_small"),
    "regnet": vision("regnet_x_400mf"),
    "resnet": vision("resnet18"),
    "resnext": lambda: (models.ResNet(Bottleneck, [1, 1, 1, 1], CLASSES, groups=32, width_per_group=4), 32),
    "shufflenet": vision("shufflenet_v2_x0_5"),
    "squeezenet": vision("squeezenet1_1"),
    "swin": lambda: (models.SwinTransformer(**SWIN), 16),
    "swin_v2": lambda: (
        models.SwinTransformer(**SWIN, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
        16,
    ),
    "vgg": vision("vgg11"),
    "vit": lambda: (models.VisionTransformer(16, 8, 1, 2, 16, 16, num_classes=CLASSES), 16),
    "wide_resnet": lambda: (models.ResNet(Bottleneck, [1, 1, 1, 1], CLASSES, width_per_group=128), 32),
}
TIMM = {
    "resnet": of_timm("resnet10t"),
    "vit": of_timm("vit_tiny_patch16_224", img_size=32, depth=1),
    "convnext": of_timm("convnext_atto"),
    "efficientnet": of_timm("efficientnet_lite0"),
    "mobilenetv3": of_timm("mobilenetv3_small_050"),
    "regnet": of_timm("regnetx_002"),
    "ghostnet": of_timm("ghostnet_050"),
    "mixer": mixing("MixerBlock", "Mlp", embed_dim=16),
    "resmlp": mixing("ResBlock", "Mlp", embed_dim=16, mlp_ratio=4),
    "gmlp": mixing("SpatialGatingBlock", "GatedMlp", mlp_ratio=4, embed_dim=16),
    "levit": of_timm("levit_128s", 224),
    "edgenext": of_timm("edgenext_xx_small"),
    "mobilevit": of_timm("mobilevit_xxs"),
    "poolformer": of_timm("poolformer_s12"),
    "xcit": of_timm("xcit_nano_12_p16_224", img_size=32, depth=1),
    "swin": of_timm("swin_tiny_patch4_window7_224", 56, img_size=56, depths=(1, 1), num_heads=(2, 2), embed_dim=16),
    "nf_resnet": of_timm("nf_resnet26"),
    "tinynet": of_timm("tinynet_e"),
    "lcnet": of_timm("lcnet_035"),
    "dla": of_timm("dla46x_c"),
    "hrnet": of_timm("hrnet_w18_small"),
    "repvgg": of_timm("repvgg_a0"),
    "fastvit": of_timm("fastvit_t8"),
    "res2net": of_timm("res2net50_14w_8s", layers=(1, 1, 1, 1)),
}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TRANSFORMERS = {
    "bert": of_transformers("Bert", **TEXT, max_position_embeddings=8),
    "distilbert": of_transformers("DistilBert", dim=8, n_layers=1, n_heads=2, hidden_dim=8, max_position_embeddings=8),
    "gpt2": of_transformers("GPT2", n_embd=8, n_layer=1, n_head=2, n_positions=8),
    "llama": of_transformers("Llama", **TEXT, num_key_value_heads=2, max_position_embeddings=8),
    "vit": of_transformers("ViT", 8, **TEXT, image_size=8, patch_size=4),
    "convnextv2": of_transformers("ConvNextV2", 8, patch_size=2, num_stages=2, hidden_sizes=[4, 8], depths=[1, 1]),
}
FAMILIES = {
    f"{package}.{name}": build
    for package, them in (("torchvision", TORCHVISION), ("timm", TIMM), ("transformers", TRANSFORMERS))
    for name, build in them.items()
}
FEW = ("torchvision.shufflenet", "torchvision.resnet", "torchvision.vit", "timm.lcnet", "transformers.bert")
SMALL = {
    "torchvision.shufflenet": lambda: (models.ShuffleNetV2([1, 1, 1], [4, 8, 8, 8, 8], num_classes=CLASSES), 32),
    "torchvision.densenet": lambda: (models.DenseNet(2, (1, 1), 4, num_classes=CLASSES), 32),
    "torchvision.convnext": TORCHVISION["convnext"],
    "torchvision.vit": lambda: (models.VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=CLASSES), 8),
    "timm.vit": of_timm("vit_tiny_patch16_224", 8, img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2),
    "timm.mixer": mixing("MixerBlock", "Mlp", 8, embed_dim=8),
    "timm.convnext": of_timm("convnext_atto", dims=(4, 4, 8, 8), depths=(1, 1, 1, 1)),
    "transformers.bert": TRANSFORMERS["bert"],
    "transformers.gpt2": TRANSFORMERS["gpt2"],
    "transformers.vit": TRANSFORMERS["vit"],
}


def _built(build, dtype=torch.float32):
    """The network in evaluation mode with a few samples, labelled as it labels them."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages
            module, size = build()
        module = module.to(dtype).eval()
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.05 * torch.randn_like(p))  # some begin at zero
        tokens = torch.randint(1, 20, (SAMPLES, 5))
        inputs = tokens if size is None else torch.randn(SAMPLES, 3, size, size, dtype=dtype)
        with torch.no_grad():
            return module, inputs, module(inputs.clone()).argmax(-1)
    finally:
        torch.set_rng_state(state)


def _table(module, inputs, labels, names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(module, (inputs, labels), names=names)


@pytest.mark.parametrize("name", FAMILIES if EVERY else FEW)
def test_no_family_raises(name):
    table = _table(*_built(FAMILIES[name]), CHEAP)
    assert not table["reason"].str.startswith("unexpected").any(), table["reason"].to_dict()
    assert table.loc[["parameters", "l2", "cross_entropy"], "value"].notna().all()


@pytest.mark.parametrize("name", SMALL if EVERY else list(SMALL)[:2])
def test_ten_families_equal_brute_force(name):
    module, x, y = _built(SMALL[name], torch.float64)
    table = _table(module, x, y, COMPARED)
    g = twins.gradient(module, x, y)
    true = twins.of_weights(module, module) | twins.of_outputs(module, x, y)
    true["gradient_variance"] = twins.gradient_variance(module, x, y)
    true["sam_sharpness"] = twins.rise(module, x, y, 0.05 * g / g.norm())
    true["top_eigenvalue"] = _top_eigenvalue(module, x, y)
    wrong = [twins.wrong(name, table.loc[name], true[name]) for name in COMPARED]
    assert not any(wrong), "\n".join(filter(None, wrong))
    assert table["value"].notna().sum() >= len(COMPARED) - 3


def _top_eigenvalue(module, x, y):
    """From differences of gradients alone."""

    def product(v):
        v = torch.from_numpy(v.ravel())
        found = []
        for sign in (1, -1):
            found.append(twins.gradient(twins.moved(module, sign * 1e-6 * v), x, y))
            twins.moved(module, -sign * 1e-6 * v)
        return ((found[0] - found[1]) / 2e-6).numpy()

    size = sum(p.numel() for p in module.parameters())
    found = eigsh(LinearOperator((size, size), product, dtype="float64"), 1, which="LA", tol=1e-5, v0=[1.0] * size)
    return found[0][0], 2e-4 * abs(found[0][0])


def test_a_model_of_transformers_takes_tokens_and_their_mask_by_name():
    model, tokens, labels = _built(TRANSFORMERS["bert"], torch.float64)
    mask = torch.ones_like(tokens)
    mask[0, 3:] = 0

    class Both(Logits):
        def forward(self, x):
            tokens, mask = x.chunk(2, 1)
            return self.model(input_ids=tokens, attention_mask=mask).logits

    expected = _table(Both(model.model), torch.cat([tokens, mask], 1), labels, CHEAP)
    found = evaluate(model.model, {"attention_mask": mask, "input_ids": tokens, "labels": labels}, names=CHEAP)
    known = ["parameters", "l2", "cross_entropy", "negative_entropy", "gradient_variance", "sam_sharpness"]
    assert (found.loc[known, "reason"] == "").all()
    pd.testing.assert_frame_equal(found.loc[known], expected.loc[known])
