"""What a user writes without edgeml: NNCF's post-training quantization by hand, one script.

    python benchmarks/bare_nncf.py lite0.onnx IMAGES_DIR OUT_DIR

The other side of the cost comparison in benchmarks/lite0_cost.py: the same 300 images decoded, the same
quantization, saved and compiled, nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from PIL import Image

onnx, images, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
files = sorted(images.iterdir())[:300]


def transform(file: Path) -> np.ndarray:
    image = Image.open(file).convert("RGB")
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    x = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
    return ((x - 127) / 128).transpose(2, 0, 1)[None]


model = ov.convert_model(onnx)
quantized = nncf.quantize(model, nncf.Dataset(files, transform), subset_size=300)
out.mkdir(parents=True, exist_ok=True)
ov.save_model(quantized, out / "model.xml", compress_to_fp16=False)
quantized.reshape([1, 3, 224, 224])
ov.Core().compile_model(
    quantized, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
)
