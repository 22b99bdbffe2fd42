"""Whether `edgeml run` answers as torch does: EfficientNet-Lite0's top-5 on all 1,300 validation images.

    EDGEML_DATA=… python benchmarks/run_top5.py

1. The published weights as ONNX, in a bundle with Lite0's preprocessing, one engine a runtime.
2. torch in eager mode on the same files, cropped and scaled by numpy alone, as `benchmarks/lite0.py` does.
3. `edgeml.runtime.run_bundle` (what `edgeml run` prints) on every file, and the command itself on the first ten.

Two classes whose scores differ by less than float32's rounding may change places: the order counts as torch's
when every class's score is within 1e-3 of the one torch has at that place, and such images are counted apart.

Writes benchmarks/results/run_top5.json and run_top5.md.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from edgeml.artifact.bundle import write_manifest
from edgeml.artifact.machine import describe_machine, tool_versions
from edgeml.artifact.manifest import EngineEntry, Manifest
from edgeml.runtime.run_bundle import run_bundle
from lite0_model import PREPROCESS, data_root, export, torch_model
from PIL import Image

RESULTS = Path(__file__).parent / "results"
THREADS = len(os.sched_getaffinity(0))
TIE = 1e-3


def write_bundle(root: Path, runtime: str) -> Path:
    """A bundle of the float network as `edgeml compress` writes one."""
    root.mkdir()
    export(root / "model.onnx")
    files = ["model.onnx"]
    if runtime == "openvino":
        from edgeml.export import to_openvino

        xml = to_openvino(root / "model.onnx", root)
        files = [xml.name, xml.with_suffix(".bin").name]
    (root / "preprocess.json").write_text(json.dumps(PREPROCESS))
    entry = EngineEntry(
        id=runtime,
        runtime=runtime,
        precision="fp32",
        files=files,
        threads=THREADS,
        input_shapes={"input": [1, 3, 224, 224]},
    )
    manifest = Manifest(
        edgeml_version="0.1.0",
        created="",
        name="lite0",
        model={"kind": "onnx", "user_code": None},
        recipe={},
        data={},
        seed=0,
        tools=tool_versions(),
        machine=describe_machine(),
        inputs=[],
        outputs=[],
        engines=[entry],
        shipped=runtime,
    )
    write_manifest(root, manifest)
    return root


def torch_scores(files: list[Path]) -> np.ndarray:
    """float32 [n, 1000]."""
    import torch

    torch.set_num_threads(THREADS)
    module, rows = torch_model(), []
    for file in files:
        image = Image.open(file).convert("RGB")
        left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
        x = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        x = ((x - 127) / 128).transpose(2, 0, 1)[None]
        with torch.inference_mode():
            rows.append(module(torch.from_numpy(np.ascontiguousarray(x))).numpy()[0])
    return np.array(rows)


def compare(files: list[Path], expected: np.ndarray, bundle: Path) -> dict:
    """How many images have torch's five classes in torch's order."""
    answers = run_bundle(bundle, [str(file) for file in files])
    found = {"images": len(files), "same": 0, "ties": 0, "different": []}
    worst = 0.0
    for file, scores, answer in zip(files, expected, answers, strict=True):
        order = np.argsort(-scores, kind="stable")[:5]
        top = [row["index"] for row in answer.top]
        ours = next(iter(answer.outputs.values()))[0]
        worst = max(worst, float(np.abs(ours - scores).max()))
        if top == order.tolist():
            found["same"] += 1
        elif np.abs(scores[top] - scores[order]).max() < TIE:
            found["ties"] += 1
        else:
            found["different"].append(file.name)
    return {**found, "largest_difference": worst}


def command_agrees(files: list[Path], bundle: Path) -> bool:
    """The command's JSON holds what the function gives."""
    words = [word for file in files for word in ("--input", str(file))]
    line = [sys.executable, "-m", "edgeml", "run", str(bundle), *words, "--json", "-"]
    printed = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    answers = run_bundle(bundle, [str(file) for file in files])
    return [row["top"] for row in printed] == [answer.top for answer in answers]


def main() -> None:
    folder = data_root() / "imagenet1k-val1300"
    rows = list(csv.DictReader((folder / "labels.csv").open()))
    files = [folder / row["file"] for row in rows]
    labels = np.array([int(row["label"]) for row in rows])
    expected = torch_scores(files)
    top1 = float((expected.argmax(1) == labels).mean() * 100)
    result = {"torch_top1": top1, "machine": describe_machine(), "runtimes": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for runtime in ("openvino", "onnxruntime"):
            bundle = write_bundle(Path(scratch) / runtime, runtime)
            result["runtimes"][runtime] = {
                **compare(files, expected, bundle),
                "command_agrees": command_agrees(files[:10], bundle),
            }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "run_top5.json").write_text(json.dumps(result, indent=2) + "\n")
    lines = [
        "# `edgeml run` against torch: EfficientNet-Lite0, 1,300 ImageNet validation images",
        "",
        f"Made by `python benchmarks/run_top5.py`. torch's own top-1: {top1:.2f} %.",
        "",
        "| runtime | torch's top-5 in its order | but for ties below 1e-3 | other | largest difference | command too |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["runtimes"].items():
        agrees = "yes" if row["command_agrees"] else "NO"
        lines.append(
            f"| {name} fp32 | {row['same']} of {row['images']} | {row['ties']} | {len(row['different'])} "
            f"| {row['largest_difference']:.2g} | {agrees} |"
        )
    (RESULTS / "run_top5.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
