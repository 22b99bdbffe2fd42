"""What the budget benchmarks share: models, data, and records of one JSON line a run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("EDGEML_DATA", "data"))
IMAGENET_STYLE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
WIDTH32 = """from edgeml.train.zoo.resnet import resnet


def build():
    return resnet(56, width=32)
"""


def cifar_model(name: str) -> dict[str, Any]:
    """Recipe values of a CIFAR ResNet: published weights, or width 32 with drawn ones (for times)."""
    values: dict[str, Any] = {
        "data": f"imagefolder:{DATA / 'cifar10/cifar10.zip'}",
        "preprocess": IMAGENET_STYLE,
        "max_drop_points": None,
    }
    if name == "width32":
        file = Path(os.environ.get("TMPDIR", "/var/tmp")) / "edgeml_width32.py"
        file.write_text(WIDTH32)
        return {**values, "model": f"{file}:build"}
    weights = DATA / f"models/cifar10-resnet/{name}.safetensors"
    return {**values, "model": f"zoo:{name}", "weights": str(weights)}


def lite0_model() -> dict[str, Any]:
    """Recipe values of EfficientNet-Lite0 with its weights."""
    from lite0_model import PREPROCESS

    return {
        "model": f"{Path(__file__).parent / 'lite0_model.py'}:torch_model",
        "data": f"images:{DATA / 'imagenet1k-calib500/images'}",
        "preprocess": PREPROCESS,
        "max_drop_points": None,
    }


def records(file: Path) -> list[dict[str, Any]]:
    """What was recorded before."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def add_record(file: Path, record: dict[str, Any]) -> None:
    """Append one line, whole or not at all."""
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")
        out.flush()
        os.fsync(out.fileno())


def right_answers(task: Any, engine: Any) -> Any:
    """Right or wrong on all test images (both halves that edgeml cuts them into), [n] bool."""
    import numpy as np

    found = []
    for split in ("validation", "test"):
        for inputs, target in task.samples(split):
            (image,) = inputs.values()
            output = engine.run({engine.input_specs[0].name: image[None]})
            found.append(int(next(iter(output.values())).argmax()) == int(target))
    return np.array(found)


def paired(reference: Any, other: Any) -> dict[str, float]:
    """What `other` gains over `reference` on the same images, in points, with Tango's 95 % interval."""
    from edgeml.train.paired_interval import tango_interval

    losses, gains, n = int((reference & ~other).sum()), int((~reference & other).sum()), len(other)
    low, high = tango_interval(losses, gains, n)
    return {"gain": 100 * (gains - losses) / n, "low": -100 * high, "high": -100 * low, "n": n}


def edgeml(*words: str) -> int:
    """Run a command as a user would; its exit code, which may be 3 (budget missed).

    Raises:
        SystemExit: it failed otherwise.
    """
    import subprocess

    print("edgeml", *words, file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, "-m", "edgeml", *words]).returncode
    if code not in (0, 3):
        sys.exit(f"edgeml {' '.join(words)} ended with {code}")
    return code
