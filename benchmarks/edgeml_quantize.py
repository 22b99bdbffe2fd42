"""The same by edgeml: one route, one runtime, with its checks and hashes.

python benchmarks/edgeml_quantize.py lite0.onnx IMAGES_DIR OUT_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import edgeml.compress
import edgeml.runtime
from edgeml.runtime.engine import EngineOptions

onnx, images, out = sys.argv[1:4]
edgeml.compress.quantize(
    onnx,
    out,
    data=f"images:{images}",
    samples=300,
    preprocess={"crop": 224, "scale": 1.0, "mean": [127.0], "std": [128.0]},
)
edgeml.runtime.load(Path(out, "model.xml"), EngineOptions()).close()
