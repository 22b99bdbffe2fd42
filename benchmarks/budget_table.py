"""The latency table against engines it has not seen, and a prediction by FLOPs beside it (bar 3).

    EDGEML_DATA=… python benchmarks/budget_table.py [resnet56] [width32] [lite0]

Of each network ten pruned ones, spread evenly from 30 to 90 % of the whole by the table, with random
importances so that they differ. The table is built before and not corrected; each engine (NNCF INT8)
is timed in a process of its own against the whole network's, in interleaved blocks. Timings: run it
alone. One JSON line a network in benchmarks/results/budget_table.jsonl, with the CPU's name. --quick
before the names tries the script itself: three pruned ones each, nothing recorded.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from budget_runs import RESULTS, add_record, cifar_model, lite0_model

SHARES = np.linspace(0.3, 0.9, 10)
SECONDS = 1.5


def time_pair(whole: str, pruned: str, shape: list[int], threads: int) -> None:
    """In a process of its own: p50 of two engine files, in ms, and their ratio."""
    from edgeml.runtime.engine import EngineOptions, load_file
    from edgeml.runtime.latency import bench

    options = EngineOptions(threads=threads)
    engines = {n: load_file(Path(f), "openvino", options) for n, f in (("a", whole), ("b", pruned))}
    name = engines["a"].input_specs[0].name
    feed = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    feeds = {"a": feed, "b": {engines["b"].input_specs[0].name: feed[name]}}
    result = bench(engines, feeds, duration_s=SECONDS, reference="a")
    print(
        json.dumps(
            {
                "whole_ms": result["a"].p50_ms.value,
                "pruned_ms": result["b"].p50_ms.value,
                "ratio": 1 / result["b"].speedup.value,
            }
        )
    )


def measure(name: str, recipe_values: dict[str, Any], shares: np.ndarray) -> dict[str, Any]:
    """Predictions and measurements of one network, pruned to so many shares of its time."""
    import torch
    from edgeml.artifact.machine import describe_machine
    from edgeml.artifact.recipe import build_recipe
    from edgeml.artifact.stage_cache import StageCache
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.build_engines import build
    from edgeml.compress.candidates import Candidate
    from edgeml.compress.job import batched, open_job, student_job
    from edgeml.compress.latency_table import flops_table
    from edgeml.compress.prune_groups import find_groups
    from edgeml.compress.quantize_nncf import QuantizeNncf
    from edgeml.compress.stages import Stages
    from edgeml.compress.steer_solve import Worth, solve_to
    from edgeml.compress.steer_structure import entries
    from edgeml.compress.steer_table import open_table
    from edgeml.train.prune_history import replay
    from scipy.stats import spearmanr

    quantize = {"step": "quantize", "routes": ["nncf"], "calibration_samples": 16}
    recipe = build_recipe({**recipe_values, "steps": [quantize], "runtimes": ["openvino"]})
    candidate = Candidate("openvino", "int8", "fp32", QuantizeNncf("performance"))
    with (
        tempfile.TemporaryDirectory() as folder,
        WorkDirectory(Path(folder) / "out", recipe.hash) as work,
    ):
        stages = Stages(StageCache(), work, lambda line: None, None)
        job = open_job(recipe, stages)
        (whole,) = build(job, [candidate], stages)
        inputs = {n: torch.as_tensor(a) for n, a in batched(job.sample, 2).items()}
        groups = find_groups(job.module, inputs, importance="magnitude")
        table = open_table(job, job.module, groups, {}, stages)
        flops = flops_table(table)
        (shape,) = [[1, *a.shape] for a in job.sample.values()]
        threads = job.options.threads

        def fresh(file: Path) -> dict[str, float]:
            words = [str(whole.file), str(file), json.dumps(shape), str(threads)]
            done = subprocess.run(
                [sys.executable, __file__, "--time", *words], check=True, stdout=subprocess.PIPE
            )
            return json.loads(done.stdout.splitlines()[-1])

        base_ms = fresh(whole.file)["whole_ms"]
        table.correct({}, base_ms)
        flops.correct({}, base_ms)
        rows = []
        for index, share in enumerate(shares):
            rng = np.random.default_rng(index)
            worth = Worth({g.name: rng.random(g.size) * rng.random() for g in groups})
            kept = solve_to(table, worth, share * base_ms)
            if kept is None:
                rows.append({"share": float(share), "reached": False})
                continue
            module = replay(copy.deepcopy(job.module), entries(groups, kept, worth)).eval()
            student = student_job(job, module, f"{name}-{index}-{sorted(kept.items())}", stages)
            (trial,) = build(student, [candidate], stages)
            timed = fresh(trial.file)
            rows.append(
                {
                    "share": float(share),
                    "predicted": table.predict(kept) / base_ms,
                    "by_flops": flops.predict(kept) / base_ms,
                    "measured": timed["ratio"],
                    "measured_ms": timed["pruned_ms"],
                    "blocks_removed": sum(
                        kept.get(g.name) == 0 for g in groups if g.kind == "block"
                    ),
                }
            )
            print(name, json.dumps(rows[-1]), file=sys.stderr, flush=True)
            trial.engine.close()
        reached = [row for row in rows if "measured" in row]
        measured = np.array([row["measured"] for row in reached])

        def judged(column: str) -> dict[str, float]:
            predicted = np.array([row[column] for row in reached])
            errors = np.abs(predicted / measured - 1)
            return {
                "median_error": float(np.median(errors)),
                "largest_error": float(errors.max()),
                "rank_correlation": float(spearmanr(predicted, measured).statistic),
            }

        machine = describe_machine()
        return {
            "network": name,
            "cpu": machine["cpu"],
            "isa": machine["isa"],
            "threads": threads,
            "whole_ms": base_ms,
            "shapes_timed": len(table.times),
            "table": judged("predicted"),
            "flops": judged("by_flops"),
            "rows": rows,
        }


def main() -> None:
    if sys.argv[1:2] == ["--time"]:
        whole, pruned, shape, threads = sys.argv[2:]
        return time_pair(whole, pruned, json.loads(shape), int(threads))
    known = {
        "resnet20": lambda: cifar_model("resnet20"),
        "resnet56": lambda: cifar_model("resnet56"),
        "width32": lambda: cifar_model("width32"),
        "lite0": lite0_model,
    }
    quick = sys.argv[1:2] == ["--quick"]
    for name in sys.argv[1 + quick :] or ["resnet56", "width32", "lite0"]:
        if name not in known:
            sys.exit(f"unknown network {name}; known: {', '.join(known)}")
        record = measure(name, known[name](), SHARES[::4] if quick else SHARES)
        if not quick:
            add_record(RESULTS / "budget_table.jsonl", record)
        print(json.dumps({k: record[k] for k in ("network", "cpu", "table", "flops")}))
    return None


if __name__ == "__main__":
    main()
