"""Seven architectures with weights that are sane, and inputs for them: what the NVIDIA benchmarks quantize.

EfficientNet-Lite0 has its published weights where EDGEML_BENCH_MODELS names their folder (see lite0_model.py) and
real images where EDGEML_DATA is set; the others are random: their BatchNormalization has seen some inputs, without
which activations vanish (MobileNetV2's logits are 1e-21 then).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from edgeml.train.zoo.catalogue import build_zoo
from torch import nn

SAMPLES = 16
CONVOLUTIONAL = ("resnet50", "mobilenetv2", "lite0", "resnet20")
ARCHITECTURES = (*CONVOLUTIONAL, "bert", "vit", "llama")


class Logits(nn.Module):
    """A transformers model as one function of one array."""

    def __init__(self, model: nn.Module, key: str) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(**{self.key: x}).logits


def build(name: str) -> tuple[nn.Module, np.ndarray]:
    """The module in eval mode, and inputs [`SAMPLES`, …]; its one parameter is ``x`` or ``inputs``."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if name == "lite0":
        from lite0_model import torch_model

        return torch_model(), _images()
    if name in ("bert", "vit", "llama", "resnet50"):
        module, x = _transformers(name, rng)
    else:
        size = 64 if name == "mobilenetv2" else 32
        module = build_zoo(name, {"size": size} if name == "mobilenetv2" else {})
        x = rng.standard_normal((SAMPLES, 3, size, size)).astype(np.float32)
    if name == "resnet50":
        tame(module)
    if any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        module.train()
        with torch.no_grad():
            for _ in range(20):
                module(torch.from_numpy(x))
    return module.eval(), x


def tame(module: nn.Module) -> None:
    """Residual branches of a fifth: 50 random layers in full strength multiply every rounding until two runs of one
    quantized network have nothing in common; trained ones do not."""
    with torch.no_grad():
        for part in module.modules():
            if type(part).__name__ == "ResNetBottleNeckLayer":
                part.layer[-1].normalization.weight.fill_(0.2)


def _transformers(name: str, rng: np.random.Generator) -> tuple[nn.Module, np.ndarray]:
    import transformers as tf

    images = rng.standard_normal((SAMPLES, 3, 64, 64)).astype(np.float32)
    tokens = rng.integers(1, 1000, (SAMPLES, 32))
    if name == "resnet50":  # the real widths and depths, on 64×64
        return Logits(
            tf.ResNetForImageClassification(tf.ResNetConfig(num_labels=100)), "pixel_values"
        ), images
    if name == "vit":
        config = tf.ViTConfig(
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=384,
            image_size=64,
            patch_size=8,
            num_labels=100,
        )
        return Logits(tf.ViTForImageClassification(config), "pixel_values"), images
    if name == "bert":
        config = tf.BertConfig(
            vocab_size=1000,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=64,
            num_labels=20,
        )
        return Logits(tf.BertForSequenceClassification(config), "input_ids"), tokens
    config = tf.LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=384,
        max_position_embeddings=64,
        use_cache=False,
    )
    return Logits(tf.LlamaForCausalLM(config), "input_ids"), tokens


def _images() -> np.ndarray:
    """Real ones for Lite0, from the calibration set."""
    from lite0 import load_images

    folder = Path(os.environ.get("EDGEML_DATA", ""), "imagenet1k-calib500")
    if not folder.is_dir():
        return np.random.default_rng(0).standard_normal((SAMPLES, 3, 224, 224)).astype(np.float32)
    return load_images(next(folder.glob("*.csv")), draw=SAMPLES)[0]
