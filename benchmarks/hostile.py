"""A network hostile to INT8: what plain quantization loses, what `edgeml compress` makes of it, and QAT
(issue 7, bars 6 and 7).

    EDGEML_DATA=… python benchmarks/hostile.py --teacher RUN [PART …]

The output channels of each block's conv1+bn1 times 2^u, u uniform in [−k, k], seed 0, and conv2's inputs
divided by the same: ReLU is positively homogeneous, so that the function is unchanged, which is checked on real
images. k is the smallest integer at which plain NNCF loses 5 points or more.

find       that network
compress   `edgeml compress --int8 --max-drop 0.5`, told nothing of it: what ships, and the cause it names
control    `nncf.quantize_with_accuracy_control` at the same drop
qat        quantization-aware training from its plain PTQ, no layer put back
compare    all of them in one process: p50 over five builds, and the 10,000 test images paired with fp32

RUN is what `edgeml train resnet56 …` left (benchmarks/trainings.py). What trains or calibrates sees 20,000
training images. One JSON line a result in benchmarks/results/hostile.jsonl, with the CPU's name; files lie in
--work, and what is there is not made again. Timings: run it alone. --quick tries the script itself:
500 images, one epoch, loose limits, records in --work.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from budget_peers import subset
from budget_runs import RESULTS, add_record, edgeml, paired, records, right_answers

FILE = RESULTS / "hostile.jsonl"
LOSES, MAX_K, MAX_DROP = 5.0, 12, 0.5
CODE = """from edgeml.train.zoo.resnet import resnet


def build():
    return resnet({depth})
"""
BUILDS, SECONDS = 5, 1.5


def hostile(teacher: Any, k: int) -> Any:
    """A copy of a zoo ResNet with its channel ranges spread by 2^±k."""
    import copy

    import torch

    module, random = copy.deepcopy(teacher).eval(), np.random.default_rng(0)
    with torch.no_grad():
        for layer in (module.layer1, module.layer2, module.layer3):
            for block in layer:
                u = random.uniform(-k, k, block.conv1.out_channels)
                scale = torch.tensor(2.0**u, dtype=torch.float32)
                # The scale of conv1+bn1 as one layer; BatchNorm would undo one of conv1's weights alone.
                block.bn1.weight *= scale
                block.bn1.bias *= scale
                block.conv2.weight /= scale[None, :, None, None]
    return module


class Bench:
    """The teacher, its data, and files in `--work`."""

    def __init__(self, args: argparse.Namespace) -> None:
        from edgeml.artifact.machine import describe_machine
        from edgeml.train.model_source import open_model

        self.args = args
        self.teacher = open_model(str(args.teacher)).module.eval()
        self.data = f"imagefolder:{subset(args.work, args.quick)}"
        self.code = args.work / "hostile_network.py"
        self.code.write_text(CODE.format(depth=6 * len(self.teacher.layer1) + 2))
        machine = describe_machine()
        self.machine = {"cpu": machine["cpu"], "isa": machine["isa"]}

    def record(self, run: str, **values: Any) -> None:
        row = {"run": f"{self.args.teacher.name} {run}", **self.machine, **values}
        add_record(self.args.records, row)
        print(json.dumps(row), flush=True)

    def recorded(self, run: str) -> dict[str, Any]:
        """The last row of a run; {} where there is none."""
        name = f"{self.args.teacher.name} {run}"
        return next((r for r in reversed(records(self.args.records)) if r["run"] == name), {})

    def weights(self, k: int) -> Path:
        from safetensors.torch import save_file

        file = self.args.work / f"hostile-{self.args.teacher.name}-{k}.safetensors"
        if not file.is_file():
            save_file(hostile(self.teacher, k).state_dict(), file)
        return file

    @property
    def k(self) -> int:
        found = self.recorded("find")
        if not found:
            sys.exit("the network is not found yet: run the part `find` first")
        return found["k"]

    @contextlib.contextmanager
    def job(self, k: int, seed: int = 0) -> Iterator[tuple[Any, Any]]:
        """The hostile network's job and the stages it was opened in."""
        from edgeml.artifact.recipe import build_recipe
        from edgeml.artifact.stage_cache import StageCache
        from edgeml.artifact.work_directory import WorkDirectory
        from edgeml.compress.job import open_job
        from edgeml.compress.recipe_from_flags import recipe_values
        from edgeml.compress.stages import Stages

        preprocess = json.loads((self.args.teacher / "preprocess.json").read_text())
        flags = {"model": f"{self.code}:build", "weights": str(self.weights(k)), "data": self.data}
        flags |= {"preprocess": preprocess, "routes": ("nncf",)}
        recipe = build_recipe(recipe_values({}, flags))
        with WorkDirectory(self.args.work / f"hostile-{k}-job", recipe.hash) as work:
            stages = Stages(StageCache(), work, lambda line: print(line, file=sys.stderr), None)
            yield open_job(recipe, stages), stages


def plain(job: Any, stages: Any) -> Any:
    """The trial of plain NNCF."""
    from edgeml.compress.build_engines import build
    from edgeml.compress.candidates import Candidate
    from edgeml.compress.quantize_nncf import QuantizeNncf

    (trial,) = build(
        job, [Candidate("openvino", "int8", "fp32", QuantizeNncf("performance"))], stages
    )
    return trial


def find(bench: Bench) -> None:
    for k in range(1, MAX_K + 1):
        with bench.job(k) as (job, stages):
            _, reference = job.reference_engine()
            task = job.opened.task
            same = unchanged(bench.teacher, job.module, task)
            trial = plain(job, stages)
            float_right = right_answers(task, reference)
            told = paired(float_right, right_answers(task, trial.engine))
        bench.record(f"k {k}", accuracy=float(float_right.mean()), plain_int8=told, error=same)
        if told["gain"] <= -bench.args.loses:
            bench.record(
                "find", k=k, accuracy=float(float_right.mean()), plain_int8=told, error=same
            )
            return
    sys.exit(f"failed: plain NNCF loses less than {bench.args.loses} points up to k = {MAX_K}")


def unchanged(teacher: Any, module: Any, task: Any) -> float:
    """The largest difference of the logits, relative to their largest, on 64 real images.

    Raises:
        SystemExit: the function is another.
    """
    import torch

    images = [
        next(iter(i.values()))
        for i, _ in (x for x, _ in zip(task.samples("test"), range(64), strict=False))
    ]
    with torch.no_grad():
        a, b = (net(torch.from_numpy(np.stack(images))) for net in (teacher, module))
    error = float((a - b).abs().max() / a.abs().max())
    if error > 1e-3:
        sys.exit(f"failed: the function is not unchanged, logits differ by {error:.1e}")
    return error


def compress(bench: Bench) -> None:
    args, k = bench.args, bench.k
    out = args.work / f"hostile-{args.teacher.name}-{k}"
    words = [
        f"{bench.code}:build",
        "--weights",
        str(bench.weights(k)),
        "--data",
        bench.data,
        "--int8",
    ]
    words += ["--preprocess", str(args.teacher / "preprocess.json"), "--max-drop", str(args.drop)]
    if not (out / "manifest.json").is_file():
        edgeml("compress", *words, "-o", str(out))
    table = json.loads((out / "results.json").read_text(encoding="utf-8"))
    shipped = next((r for r in table["rows"] if r["shipped"]), table["rows"][0])
    floats = [
        r["latency_p50_ms"]["value"]
        for r in table["rows"]
        if r["precision"] != "int8" and r["runtime"] != "torch" and r["latency_p50_ms"]
    ]
    p50 = (shipped["latency_p50_ms"] or {}).get("value")
    causes = {w for r in table["rows"] for w in r["warnings"] if w.startswith("cause:")}
    bench.record(
        "compress",
        shipped=shipped["id"],
        p50_ms=p50,
        of_fastest_float=p50 / min(floats) if p50 and floats else None,
        int8_mac_share=(shipped["int8_mac_share"] or {}).get("value"),
        put_back=shipped["put_back"],
        causes=sorted(causes),
        drop_validation=shipped["drop_points"],
        drop_test=(table["final"] or {}).get("drop_points"),
        verdict=table["verdict_line"],
    )


def control(bench: Bench) -> None:
    """NNCF's own way, as its documentation has it; layers go back by its ranking."""
    args, k = bench.args, bench.k
    path = args.work / f"control-{args.teacher.name}-{k}" / "model.xml"
    if path.is_file():
        return
    import nncf
    import openvino as ov

    with bench.job(k) as (job, _):
        calibration = nncf.Dataset(job.calibration())
        samples = [
            (next(iter(i.values()))[None], int(t)) for i, t in job.opened.task.samples("validation")
        ]

        def validate(model: Any, items: Any) -> tuple[float, list[float]]:
            right = [float(model([x])[0].argmax() == target) for x, target in items]
            return float(np.mean(right)), right

        began = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            quantized = nncf.quantize_with_accuracy_control(
                ov.convert_model(job.onnx),
                calibration,
                nncf.Dataset(samples, lambda pair: pair[0]),
                validate,
                max_drop=args.drop / 100,
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=300,
            )
    path.parent.mkdir(exist_ok=True)
    ov.save_model(quantized, path, compress_to_fp16=False)
    bench.record("control", seconds=round(time.monotonic() - began, 1), drop=args.drop)


def qat(bench: Bench) -> None:
    from edgeml.artifact.recipe import QatStep
    from edgeml.compress.build_engines import build
    from edgeml.compress.candidates import Candidate
    from edgeml.compress.quantize_qat import QuantizeQat

    args = bench.args
    with bench.job(bench.k) as (job, stages):
        step = QuantizeQat(job, QatStep(when="always", epochs=args.epochs), stages)
        (trained,) = build(job, [Candidate("openvino", "int8", "fp32", step)], stages)
        if trained.engine is None:
            sys.exit(f"failed: {trained.row.reason}")
        task = job.opened.task
        _, reference = job.reference_engine()
        right = [
            right_answers(task, e) for e in (reference, plain(job, stages).engine, trained.engine)
        ]
    bench.record(
        "qat",
        epochs=args.epochs,
        accuracy=[float(r.mean()) for r in right],
        drop=paired(right[0], right[2]),
        gain_over_ptq=paired(right[1], right[2]),
    )


def compare(bench: Bench) -> None:
    from edgeml.compress.budget_parts import upper_bound
    from edgeml.runtime.bundle_engine import load_bundle
    from edgeml.runtime.engine import load_file
    from edgeml.runtime.latency import bench as time_engines

    args, k = bench.args, bench.k
    folder, xml = (
        args.work / f"hostile-{args.teacher.name}-{k}",
        args.work / f"control-{args.teacher.name}-{k}",
    )
    with bench.job(k) as (job, stages):
        image = {name: array[None] for name, array in job.sample.items()}
        opened = {
            "edgeml": lambda: load_bundle(folder),
            "accuracy control": lambda: load_file(xml / "model.xml", "openvino", job.options),
            "plain int8": lambda: plain(job, stages).engine,
        }
        ratios: dict[str, list[float]] = {name: [] for name in opened}
        for build in range(BUILDS):
            engines = {name: load() for name, load in opened.items()}
            feeds = {
                n: {e.input_specs[0].name: next(iter(image.values()))} for n, e in engines.items()
            }
            result = time_engines(
                engines, feeds, duration_s=args.seconds, reference="accuracy control", seed=build
            )
            for name, engine in engines.items():
                ratios[name].append(1 / result[name].speedup.value)
                engine.close()
        task = job.opened.task
        _, reference = job.reference_engine()
        right = right_answers(task, reference)
        for name, load in opened.items():
            with load() as engine:
                told = paired(right, right_answers(task, engine))
            bench.record(
                f"compare {name}",
                drop={
                    "points": -told["gain"],
                    "low": -told["high"],
                    "high": -told["low"],
                    "n": told["n"],
                },
                ratio_to_control=float(np.exp(np.log(ratios[name]).mean())),
                bound=upper_bound(ratios[name]),
                builds=ratios[name],
            )


PARTS = {f.__name__: f for f in (find, compress, control, qat, compare)}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2, help="of QAT")
    parser.add_argument("--work", type=Path, default=Path("budget-runs"))
    parser.add_argument("--quick", action="store_true", help="try this script, prove nothing")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    args.records, args.loses, args.drop, args.seconds = FILE, LOSES, MAX_DROP, SECONDS
    if args.quick:
        args.records = args.work / "hostile-quick.jsonl"
        args.epochs, args.drop, args.seconds = 1, 2.0, 0.2
    bench = Bench(args)
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part}; known: {', '.join(PARTS)}")
        if part in ("find", "qat", "compress") and bench.recorded(part):
            continue
        PARTS[part](bench)


if __name__ == "__main__":
    main()
