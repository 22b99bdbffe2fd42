"""`edgeml compress` to a budget: what issue 7 asks of it, each part by its name.

    EDGEML_DATA=… python benchmarks/budget.py --teacher RUN [PART …]

students   ResNet-56: 60 % at 0.5 points, 45 % at 1.5, and 50 and 35 %; one command each (bar 1)
controls   the unpruned teacher given the same epochs, then INT8; ResNet-20 and ResNet-32 taught by the
           same teacher for the same epochs, then INT8 (bar 1)
compare    all of those, the teacher's plain INT8 too, in one process: p50 over five builds, the whole
           test set paired with the teacher (bar 1)
text       a transformer and an LSTM at 60 and 70 %: `--minilm RUN`, `--lstm RUN` (bar 5)
show       the table of what was compared, and its plot, docs/images/budget.png

--teacher RUN is what `edgeml train resnet56 …` left (benchmarks/trainings.py). Bundles lie in --work
(default budget-runs); what is there is not made again, and a killed command goes on. One JSON line a
run in benchmarks/results/budget.jsonl, with the CPU's name. Timings: run it alone.
Bars 2 and 3: budget_peers.py, budget_table.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from budget_runs import RESULTS, add_record, edgeml, records

FILE = RESULTS / "budget.jsonl"
STUDENTS = {"60": ("60%", "0.5"), "45": ("45%", "1.5"), "50": ("50%", "1"), "35": ("35%", "3")}
SIBLINGS = (20, 32)
SIBLING_LR = 0.1  # of a first training: He et al. 2016, section 4.2
EPOCHS = 30
SIBLING = """from edgeml.train.zoo.resnet import resnet


def build():
    return resnet({depth})
"""
BUILDS, SECONDS = 5, 1.5


def compress(name: str, work: Path, *words: str) -> dict[str, Any]:
    """One command, resumed where it was killed; its result as JSON."""
    out = work / name
    if not (out / "manifest.json").is_file():
        edgeml("compress", *words, "--json", str(work / f"{name}.json"), "-o", str(out))
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def told(name: str, table: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a run."""
    final = table["final"] or {}
    shipped = next((row for row in table["rows"] if row["shipped"]), table["rows"][0])
    return {
        "run": name,
        "cpu": table["machine"]["cpu"],
        "isa": table["machine"]["isa"],
        "shipped": shipped["id"],
        "p50_ms": (shipped["latency_p50_ms"] or {}).get("value"),
        "size_bytes": shipped["size_bytes"],
        "drop_validation": shipped["drop_points"],
        "drop_test": final.get("drop_points"),
        "budget": table["budget"],
        "steps": table["steps"],
        "removed": len(table["removed"]),
        "verdict": table["verdict_line"],
    }


def students(args: argparse.Namespace) -> None:
    for name, (latency, drop) in STUDENTS.items():
        if args.only and name not in args.only:
            continue
        words = [str(args.teacher), "--latency", latency, "--max-drop", drop, *args.more]
        table = compress(f"student-{name}", args.work, *words, "--epochs", str(args.epochs))
        record(told(f"student-{name}", table))


def controls(args: argparse.Namespace) -> None:
    if not args.only or "longer" in args.only:
        words = [str(args.teacher), "--int8", "--epochs", str(args.epochs), *args.more]
        record(told("teacher-longer", compress("teacher-longer", args.work, *words)))
    for depth in SIBLINGS:
        if args.only and str(depth) not in args.only:
            continue
        code, weights = args.work / f"resnet{depth}.py", args.work / f"resnet{depth}.safetensors"
        code.write_text(SIBLING.format(depth=depth))
        if not weights.is_file():
            teach(args, f"{code}:build", weights)
        data = json.loads((args.teacher / "manifest.json").read_text())["data"]["source"]
        words = [f"{code}:build", "--weights", str(weights), "--data", data, "--int8"]
        words += ["--preprocess", str(args.teacher / "preprocess.json"), "--max-drop", "5"]
        record(told(f"resnet{depth}", compress(f"resnet{depth}", args.work, *words)))


def teach(args: argparse.Namespace, model: str, weights: Path) -> None:
    """A sibling from its first weights, by the teacher's logits, for the students' epochs."""
    from edgeml.artifact.recipe import FinetuneStep, build_recipe
    from edgeml.artifact.stage_cache import StageCache
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.job import open_job
    from edgeml.compress.recipe_from_flags import recipe_values
    from edgeml.compress.stages import Stages
    from edgeml.compress.steer_data import finetune_settings, open_finetune_data
    from edgeml.compress.steer_train import finetune
    from edgeml.train.checkpoint import weights_of
    from edgeml.train.model_source import open_model
    from safetensors.torch import save_file

    recipe = build_recipe(recipe_values({}, {"model": str(args.teacher)}))
    step = FinetuneStep(epochs=args.epochs)
    with WorkDirectory(args.work / f"{weights.stem}-training", recipe.hash) as work:
        stages = Stages(StageCache(), work, lambda line: print(line, file=sys.stderr), None)
        job = open_job(recipe, stages)
        settings, augment = finetune_settings(job, step)
        settings = settings.model_copy(update={"lr": SIBLING_LR})
        data = open_finetune_data(job, settings, augment)
        module = open_model(model).module
        finetune(
            module,
            job.module,
            data,
            step,
            settings,
            args.epochs,
            work.part / "sibling.safetensors",
            {"sibling": model},
            stages,
        )
    save_file({n: t.contiguous() for n, t in weights_of(module).items()}, weights)


def compare(args: argparse.Namespace) -> None:
    """Every bundle against the teacher's plain INT8 engine, in one process, and on the test set."""
    from edgeml.artifact.machine import describe_machine
    from edgeml.compress.budget_parts import upper_bound
    from edgeml.runtime.bundle_engine import load_bundle
    from edgeml.runtime.latency import bench
    from edgeml.train.paired_interval import tango_interval

    plain = "teacher-int8"
    compress(plain, args.work, str(args.teacher), "--int8", "--max-drop", "1")
    names = [p.name for p in sorted(args.work.iterdir()) if (p / "manifest.json").is_file()]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    p50: dict[str, list[float]] = {name: [] for name in names}
    for build in range(BUILDS):
        engines = {name: load_bundle(args.work / name) for name in names}
        spec = next(iter(engines.values())).input_specs[0]
        image = np.random.default_rng(0).standard_normal((1, *spec.shape[1:])).astype(np.float32)
        feeds = {n: {e.input_specs[0].name: image} for n, e in engines.items()}
        result = bench(engines, feeds, duration_s=SECONDS, reference=plain, seed=build)
        for name in names:
            ratios[name].append(1 / result[name].speedup.value)
            p50[name].append(result[name].p50_ms.value)
            engines[name].close()
    right = answers(args, names)
    machine = describe_machine()
    for name in names:
        losses = int((right["teacher"] & ~right[name]).sum())
        gains = int((~right["teacher"] & right[name]).sum())
        n = len(right["teacher"])
        low, high = tango_interval(losses, gains, n)
        record(
            {
                "run": f"compare {name}",
                "cpu": machine["cpu"],
                "isa": machine["isa"],
                "p50_ms": float(np.median(p50[name])),
                "ratio": float(np.exp(np.log(ratios[name]).mean())),
                "ratio_bound": upper_bound(ratios[name]),
                "builds": ratios[name],
                "accuracy": float(right[name].mean()),
                "teacher_accuracy": float(right["teacher"].mean()),
                "drop_points": 100 * (losses - gains) / n,
                "drop_low": 100 * low,
                "drop_high": 100 * high,
                "n": n,
            }
        )


def answers(args: argparse.Namespace, names: list[str]) -> dict[str, np.ndarray]:
    """Right or wrong on all 10,000 test images (both halves that edgeml cuts them into)."""
    from edgeml.artifact.recipe import build_recipe
    from edgeml.artifact.stage_cache import StageCache
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.job import open_job
    from edgeml.compress.recipe_from_flags import recipe_values
    from edgeml.compress.stages import Stages
    from edgeml.runtime.bundle_engine import load_bundle

    recipe = build_recipe(recipe_values({}, {"model": str(args.teacher)}))
    with WorkDirectory(args.work / "answers", recipe.hash) as work:
        job = open_job(recipe, Stages(StageCache(), work, lambda line: None, None))
        _, teacher = job.reference_engine()
        engines = {"teacher": teacher, **{name: load_bundle(args.work / name) for name in names}}
        found: dict[str, list[bool]] = {name: [] for name in engines}
        for split in ("validation", "test"):
            for inputs, target in job.opened.task.samples(split):
                (image,) = inputs.values()
                for name, engine in engines.items():
                    feed = {engine.input_specs[0].name: image[None]}
                    output = next(iter(engine.run(feed).values()))
                    found[name].append(int(output.argmax()) == int(target))
    return {name: np.array(values) for name, values in found.items()}


def text(args: argparse.Namespace) -> None:
    for name, run, latency in (("minilm", args.minilm, "60%"), ("lstm", args.lstm, "70%")):
        if run is None:
            print(f"{name}: left out, no --{name} RUN", file=sys.stderr)
            continue
        words = [str(run), "--latency", latency, "--max-drop", "1", "--epochs", "6", *args.more]
        record(told(name, compress(name, args.work, *words)))


def record(row: dict[str, Any]) -> None:
    add_record(FILE, row)
    print(json.dumps(row))


def show(args: argparse.Namespace) -> None:
    latest = {row["run"]: row for row in records(FILE) if row["run"].startswith("compare ")}
    if latest:
        plot(list(latest.values()))
    print("| engine | p50 / plain INT8 | 95 % bound | accuracy | drop, points | 95 % |")
    print("|---|---|---|---|---|---|")
    for row in sorted(latest.values(), key=lambda row: row["ratio"]):
        print(
            f"| {row['run'].removeprefix('compare ')} | {row['ratio']:.3f} | {row['ratio_bound']:.3f} "
            f"| {100 * row['accuracy']:.2f} % | {row['drop_points']:+.2f} "
            f"| {row['drop_low']:+.2f} to {row['drop_high']:+.2f} |"
        )


def plot(rows: list[dict[str, Any]]) -> None:
    """Accuracy lost over the p50, both with their intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for kind, marker in (("student", "o"), ("resnet", "s"), ("teacher", "^")):
        some = [row for row in rows if row["run"].removeprefix("compare ").startswith(kind)]
        if not some:
            continue
        drops = [row["drop_points"] for row in some]
        sides = [
            [row["drop_points"] - row["drop_low"] for row in some],
            [row["drop_high"] - row["drop_points"] for row in some],
        ]
        axes.errorbar(
            [row["ratio"] for row in some],
            drops,
            yerr=sides,
            fmt=marker,
            capsize=3,
            label={"student": "edgeml compress", "resnet": "smaller siblings, distilled"}.get(
                kind, "the whole network, INT8"
            ),
        )
        for row in some:
            name = row["run"].removeprefix("compare ")
            where = (row["ratio"], row["drop_points"])
            axes.annotate(name, where, textcoords="offset points", xytext=(6, 6), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("p50 / p50 of the teacher's plain INT8 engine")
    axes.set_ylabel(f"points lost to the fp32 teacher (n = {rows[0]['n']:,}, 95 %)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(RESULTS.parents[1] / "docs/images/budget.png", dpi=110)


PARTS = {f.__name__: f for f in (students, controls, compare, text, show)}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("parts", nargs="*", default=["students", "controls", "compare", "show"])
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--lstm", type=Path)
    parser.add_argument("--work", type=Path, default=Path("budget-runs"))
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="of students 60, 45, 50, 35; of controls longer, 20, 32",
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--more", nargs="*", default=[], help="further words of edgeml compress")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part}; known: {', '.join(PARTS)}")
        if part in ("students", "controls", "compare") and args.teacher is None:
            parser.error(f"{part} needs --teacher RUN")
        PARTS[part](args)


if __name__ == "__main__":
    main()
