"""`edgeml sweep` for two hours on a ResNet-56 teacher: what its front is worth on test (issue 8, bar 1).

    python benchmarks/sweep.py --teacher RUN [--time 2h] [--work DIR] [--more …]

--teacher RUN is what `edgeml train resnet56 …` left (benchmarks/trainings.py). The sweep lies in --work
(default sweep-run); a killed command goes on, a finished one is judged again only. Then every engine of the
front and of the baselines is timed once more, all together in one process, and each front point is paired
with each baseline on the test split (a reading of its own, after everything was chosen). A point dominates a
baseline where the interval of the ratio of their median latencies is below 1, the lower bound of the paired
change is above −0.5 points and its files are not larger. Of several engines of one baseline the fastest is
to be beaten. Writes benchmarks/results/sweep.json and .md, and the page beside the sweep. Timings: run it
alone. Exit 1 where a part of the bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from budget_runs import RESULTS, edgeml

BASELINES = ("NNCF INT8", "ONNX Runtime INT8", "bf16")
LEAST_POINTS = 4
SECONDS = 3.0


def judge(root: Path) -> dict[str, Any]:
    """What the front is, and which baselines a point of it dominates on test."""
    from edgeml.artifact.result_row import EngineRow
    from edgeml.compress.front import Versus
    from edgeml.compress.sweep_points import bundle_of
    from edgeml.runtime.bundle_engine import load_bundle
    from edgeml.runtime.latency import bench, compare
    from edgeml.train.evaluate import evaluate, score_rows

    table = json.loads((root / "results.json").read_text(encoding="utf-8"))
    rows = {row["id"]: EngineRow.model_validate(row) for row in table["rows"]}
    front = [row for row in rows.values() if row.front == "yes" and row.trial is not None]
    rivals = {name: fastest(rows.values(), name) for name in BASELINES}
    wanted = {row.id: row for row in (*front, *filter(None, rivals.values()))}
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(load_bundle(bundle_of(root, row)))
            for name, row in wanted.items()
        }
        task = open_task(root)
        sample = next(iter(task.samples("test")))[0]
        feed = {name: array[None] for name, array in sample.items()}
        timed = bench(engines, feed, duration_s=SECONDS)
        found = evaluate(engines, task, "test")
    told: dict[str, Any] = {}
    for name, rival in rivals.items():
        if rival is None:
            told[name] = {"rival": None, "points": []}
            continue
        scored = score_rows(found, task, rival.id)
        pairs = []
        for row in front:
            versus = Versus(
                compare(timed, row.id, rival.id).ratio,
                scored[row.id].change_points,
                row.size_bytes / rival.size_bytes,
            )
            pairs.append(
                {
                    "point": row.id,
                    "dominates": versus.dominates(),
                    "speedup": versus.speedup.model_dump(mode="json"),
                    "change_points": versus.change_points.model_dump(mode="json"),
                    "size_ratio": versus.size_ratio,
                }
            )
        told[name] = {"rival": rival.id, "p50_ms": timed[rival.id].p50_ms.value, "points": pairs}
    return {
        "machine": table["machine"],
        "settings": table["settings"],
        "front": [row.id for row in front],
        "params": {row.id: row.params for row in front},
        "n_test": found.n,
        "p50_ms": {row.id: timed[row.id].p50_ms.value for row in front},
        "against": told,
        "warnings": timed.warnings,
    }


def fastest(rows: Any, name: str) -> Any:
    there = [row for row in rows if row.baseline == name and row.timed == "together"]
    return min(there, key=lambda row: row.latency_p50_ms.value, default=None)


def open_task(root: Path) -> Any:
    from edgeml.artifact.recipe import build_recipe
    from edgeml.artifact.stage_cache import StageCache
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.job import open_job
    from edgeml.compress.stages import Stages

    recipe = build_recipe(json.loads((root / "sweep.json").read_text())["recipe"])
    with WorkDirectory(root.parent / "judging", recipe.hash) as work:
        return open_job(recipe, Stages(StageCache(), work, lambda line: None, None)).opened.task


def markdown(result: dict[str, Any]) -> str:
    settings, front = result["settings"], result["front"]
    lines = [
        "# A sweep's front on test",
        "",
        f"{result['machine']['cpu']}. Made by `python benchmarks/sweep.py`: {settings['seconds'] / 3600:.2f} hours, "
        f"trials {settings['counts']}, {len(front)} points on the front, hypervolume "
        f"{settings['hypervolume']['value']:.4f}; n = {result['n_test']:,} test samples.",
        "",
        "| baseline | its fastest engine | p50 ms | points that dominate it | best: × faster | change, points |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in result["against"].items():
        if one["rival"] is None:
            lines.append(f"| {name} | not measured | | | | |")
            continue
        above = [pair for pair in one["points"] if pair["dominates"]]
        best = max(above, key=lambda pair: pair["speedup"]["value"], default=None)
        told = ("", "")
        if best:
            speed, change = best["speedup"], best["change_points"]
            told = (
                f"{speed['value']:.2f} ({speed['low']:.2f} to {speed['high']:.2f})",
                f"{change['value']:+.2f} ({change['low']:+.2f} to {change['high']:+.2f})",
            )
        lines.append(
            f"| {name} | {one['rival']} | {one['p50_ms']:.4g} | {len(above)} of {len(front)} | {told[0]} | {told[1]} |"
        )
    return "\n".join([*lines, "", *(f"Warning: {line}" for line in result["warnings"]), ""])


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--time", default="2h")
    parser.add_argument("--work", type=Path, default=Path("sweep-run"))
    parser.add_argument("--more", nargs="*", default=[], help="further words of edgeml sweep")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    root = args.work / "sweep"
    words = ["--objectives", "accuracy,latency,size", "--time", args.time, *args.more]
    edgeml("sweep", str(args.teacher), *words, "-o", str(root))
    edgeml("report", str(root), "-o", str(args.work / "page"))
    result = judge(root)
    held = len(result["front"]) >= LEAST_POINTS and all(
        any(pair["dominates"] for pair in one["points"]) for one in result["against"].values()
    )
    text = markdown(result)
    (RESULTS / "sweep.json").write_text(json.dumps({**result, "bar": held}, indent=2) + "\n")
    (RESULTS / "sweep.md").write_text(text)
    print(text)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
