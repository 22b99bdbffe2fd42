"""How large the page of a sweep of 200 trials is, and how soon a browser has drawn it.

    python benchmarks/report_page.py [--trials 200] [--repeats 5] [--keep DIR] [--try]

The trials are MADE here, in the documented schema (docs/result-schema.md), from a seed: no network was
compressed and no figure in them means anything. What is measured is the page: its size, the time from
the navigation's start until the script says that everything is drawn (`data-drawn`), console messages
and requests, in Debian's chromium driven by Playwright, opened from disk, a new browser context each
time. Writes benchmarks/results/report_page.json and .md, with --try nothing; exits 1 where a bar
(8 MB, 2 s, no console message, no request) is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MOST_BYTES, MOST_S = 8_000_000, 2.0
BASELINES = {
    "fp32": ("openvino", "fp32", None, 0.42, -0.0),
    "bf16": ("openvino", "bf16", None, 0.30, -0.05),
    "NNCF INT8": ("openvino", "int8", "nncf performance", 0.20, -0.15),
    "ONNX Runtime INT8": ("onnxruntime", "int8", "onnxruntime minmax", 0.31, -0.1),
}
REFERENCE_MS, ACCURACY, N = 1.31, 0.912, 5000


def measured(value: float, half: float | None, unit: str, n: int, **more: Any) -> dict[str, Any]:
    ends = {} if half is None else {"low": value - half, "high": value + half}
    return {"value": value, "unit": unit, "n": n, **ends, **more}


def made_row(
    rng: random.Random, name: str, p50: float, change: float, **more: Any
) -> dict[str, Any]:
    """An engine row with every quantity that a sweep measures."""
    accuracy, half = ACCURACY + change / 100, 0.12 + abs(change) * 0.08
    wide = p50 * rng.uniform(0.008, 0.03)
    return {
        "id": name,
        "execution": "fp32",
        "metrics": {"accuracy": measured(accuracy, 0.008, "fraction", N, method="wilson")},
        "change_points": measured(change, half, "points", N, method="tango"),
        "drop_points": measured(-change, half * 0.84, "points", N, method="tango, one-sided"),
        "flips": measured(0.004 + abs(change) / 60, 0.002, "fraction", N, method="wilson"),
        "latency_p50_ms": measured(p50, wide, "ms", 2200),
        "latency_p90_ms": measured(p50 * 1.15, wide * 2, "ms", 2200),
        "latency_p99_ms": measured(p50 * 1.9, wide * 6, "ms", 2200),
        "speedup": measured(REFERENCE_MS / p50, REFERENCE_MS / p50 * 0.012, "ratio", 26),
        "size_bytes": int(3_400_000 * (0.25 + p50)),
        "int8_mac_share": measured(rng.uniform(0.9, 1.0), None, "fraction", 1),
        **more,
    }


def made_rows(trials: int, rng: random.Random) -> list[dict[str, Any]]:
    rows = [
        made_row(
            rng, "torch-fp32", REFERENCE_MS, 0.0, runtime="torch", precision="fp32",
            status="reference", baseline="fp32 reference", timed="together", change_points=None,
            drop_points=None, flips=None,
        )
    ]  # fmt: skip
    for k, (word, (runtime, precision, route, p50, change)) in enumerate(BASELINES.items()):
        rows.append(
            made_row(
                rng, f"base-{k}", p50, change, runtime=runtime, precision=precision, route=route,
                baseline=word, timed="together",
            )
        )  # fmt: skip
    for trial in range(trials):
        if trial % 17 == 16:
            rows.append(
                {"id": f"t{trial}", "runtime": "-", "precision": "int8", "status": "failed",
                 "trial": trial, "rung": 1, "reason": "out of memory: 3.1 GB of 3.0 allowed (made)"}
            )  # fmt: skip
            continue
        share = rng.choice([None, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
        runtime = rng.choice(["openvino", "openvino", "onnxruntime"])
        kinds = rng.choice(["channels", "block", "channels+block"]) if share else None
        rung = rng.choice([0, 0, 1, 2]) if share is None else rng.choice([1, 1, 2])
        p50 = (share or 1.0) * (0.2 if runtime == "openvino" else 0.31) * rng.uniform(0.97, 1.25)
        cost = (1 - (share or 1.0)) ** 2 * (9 if rung == 1 else 4.5)
        change = round(-cost * rng.uniform(0.7, 1.6) + rng.gauss(0, 0.12), 2)
        route = rng.choice(["nncf performance", "nncf mixed", "onnxruntime minmax"])
        rows.append(
            made_row(
                rng, f"t{trial}", p50, change, runtime=runtime, precision="int8", route=route,
                trial=trial, rung=rung, recipe_hash=f"{trial:064x}", timed="by trial",
                params={"latency": share, "kinds": kinds,
                        "precision": "int8", "runtime": runtime, "route": route, "distil": rung > 0,
                        "threads": 2, "epochs": (0, 2, 12)[rung]},
            )
        )  # fmt: skip
    judge(rows)
    return rows


def judge(rows: list[dict[str, Any]]) -> None:
    """Front, dominated or undecided, by the documented rule over accuracy and latency."""
    drawn = [row for row in rows if row.get("status") not in ("failed", "reference")]

    def change(row: dict[str, Any]) -> dict[str, Any]:
        return row["change_points"]

    for row in drawn:
        sure, maybe = [], []
        for other in drawn:
            if other is row:
                continue
            gain = change(other)["value"] - change(row)["value"]
            room = math.hypot(*(change(r)["value"] - change(r)["low"] for r in (row, other)))
            faster = other["speedup"]["low"] > row["speedup"]["high"]
            if faster and gain - room > -0.5:
                sure.append(other["id"])
            elif other["speedup"]["value"] > row["speedup"]["value"] and gain >= 0:
                maybe.append(other["id"])
        row["front"] = "no" if sure else "cannot tell" if maybe else "yes"
        row["front_against"] = (sure or maybe)[:6]
    for row in drawn:
        if row["front"] == "yes":
            row["timed"] = "together"
        if row["front"] == "yes" or row.get("baseline"):
            row["test"] = {
                "n": N, "split_hash": "ab" * 32,
                "metrics": {"accuracy": row["metrics"]["accuracy"]},
                "change_points": row["change_points"], "drop_points": row["drop_points"],
                "flips": row["flips"],
            }  # fmt: skip
    order = {"yes": 0}
    rows.sort(key=lambda r: (order.get(r.get("front") or "", 1), not r.get("baseline"),
                             r.get("status") == "failed", (r.get("latency_p50_ms") or {}).get("value", 9)))  # fmt: skip


def made_table(trials: int, seed: int) -> dict[str, Any]:
    """A sweep's results.json."""
    rng = random.Random(seed)
    return {
        "schema_version": 1,
        "command": "sweep",
        "primary": "accuracy",
        "rows": made_rows(trials, rng),
        "verdict_line": "made trials: no figure on this page was measured",
        "machine": {"cpu": "made up", "isa": ["avx2"], "cores": 2, "tools": {"made": "1"}},
        "settings": {
            "model": "made/network", "data": "made", "batch": 1, "threads": 2, "seed": seed,
            "objectives": ["accuracy", "latency", "size"], "trials": trials, "seconds": 7100.0,
            "workers": 1, "measure_on": "local", "state": "finished",
            "rungs": [{"rung": 0, "name": "PTQ only", "epochs": 0}, {"rung": 1, "name": "short", "epochs": 2},
                      {"rung": 2, "name": "long", "epochs": 12}],
            "hypervolume": {"value": 0.71, "reference": [1.0, -5.0], "ideal": [0.1, 0.2], "normalised": True},
            "counts": {"done": trials - trials // 17, "failed": trials // 17},
        },
        "warnings": ["made trials: every figure here comes from a random generator"],
    }  # fmt: skip


def made_sweep(root: Path, trials: int = 200, seed: int = 0, points: int = 6) -> Path:
    """A sweep's directory: results, trials, and the bundles of some points of its front."""
    from edgeml.artifact.bundle import write_manifest
    from edgeml.artifact.manifest import EngineEntry, Manifest

    table = made_table(trials, seed)
    root.mkdir(parents=True)
    for row in [row for row in table["rows"] if row.get("front") == "yes" and "trial" in row][
        :points
    ]:
        folder = root / "points" / row["id"]
        folder.mkdir(parents=True)
        (folder / "model.xml").write_text("<net/>", encoding="utf-8")
        own = {**row, "shipped": True}
        results = {
            **table, "command": "compress", "rows": [own], "verdict_line": f"ships {row['id']} (made)",
            **made_details(random.Random(row["id"]), row),
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        entry = EngineEntry(id=row["id"], runtime="openvino", precision="int8", files=["model.xml"])
        write_manifest(
            folder,
            Manifest(
                edgeml_version="0", created="2026-01-01", name="made", model={"kind": "onnx"}, recipe={},
                data={}, seed=seed, tools={}, machine={}, inputs=[], outputs=[], engines=[entry],
                shipped=entry.id,
            ),
        )  # fmt: skip
        row["bundle"] = f"points/{row['id']}"
    (root / "results.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    lines = [
        {"trial": row["trial"], "rung": row.get("rung"), "params": row.get("params", {}),
         "recipe_hash": row.get("recipe_hash"), "seconds": 20.0 + 7 * row["trial"] % 90, "rows": [row["id"]],
         "state": "out of memory" if row.get("status") == "failed" else "done",
         "reason": row.get("reason"), "promoted_from": None}
        for row in sorted((r for r in table["rows"] if "trial" in r), key=lambda r: r["trial"])
    ]  # fmt: skip
    (root / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def made_details(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """What one run tells beside its rows: steps, what was removed, classes."""
    classes = [f"class {k}" for k in range(10)]
    change = row["change_points"]["value"]
    by_class = sorted(
        (
            {"class": name, "n": 500, "significant": False,
             "change_points": measured(round(change + rng.gauss(0, 0.5), 1), 1.1, "points", 500)}
            for name in classes
        ),
        key=lambda entry: entry["change_points"]["value"],
    )  # fmt: skip
    share, metric = row["params"]["latency"] or 1.0, row["metrics"]["accuracy"]["value"]
    return {
        "steps": [
            {"step": "original", "metric": ACCURACY, "latency_p50_ms": REFERENCE_MS},
            {"step": "original, plain INT8", "metric": ACCURACY - 0.001, "latency_p50_ms": 0.2},
            {"step": "round 1: prune", "metric": ACCURACY - 0.05, "ratio": (1 + share) / 2, "seconds": 4.0},
            {"step": "round 1: distil", "metric": ACCURACY - 0.004, "ratio": (1 + share) / 2, "epochs": 2},
            {"step": "INT8", "metric": metric, "ratio": share, "size_bytes": row["size_bytes"]},
        ],
        "removed": [
            {"round": 1, "group": f"stage{k}.conv", "kind": "channels", "layers": [f"stage{k}.conv1"],
             "before": 16 * 2**k, "after": 8 * 2**k, "saved_us": 9.0 + k, "importance_lost": 0.02 * k}
            for k in range(3)
        ],
        "layers": [
            {"name": f"stage{k // 6}.block{k // 2 % 3}.conv{k % 2 + 1}", "kind": "Convolution", "executed": "I8",
             "precision": "int8" if k else "fp32", "time_ms": rng.uniform(0.003, 0.02), "macs": 10_000 * (k + 1)}
            for k in range(18)
        ],
        "final": {
            "n": N, "split_hash": "ab" * 32, "reads": 1, "by_class": by_class,
            "fairness": made_groups(rng, change), "confidences": made_confidences(rng),
            "flipped": {"lost": list(range(3, 120, 7)), "won": [5, 11], "samples": made_samples()},
            "drift": {
                "samples": 4, "method": "occlusion (made)", "features": 64, "calls": 520, "seconds": 3.25,
                "correlation": measured(0.93, 0.02, "correlation", 4),
                "floor": measured(0.9995, 0.0002, "correlation", 4, note="ONNX Runtime (made)"),
                "rows": [{"index": k, "target": "1", "correlation": 0.9 + k / 50, "floor": 0.999} for k in range(4)],
            },
        },
    }  # fmt: skip


def made_groups(rng: random.Random, change: float) -> dict[str, Any]:
    """Groups of which one is hurt most."""
    rows = []
    for k in range(8):
        value, n = round(-change + rng.gauss(0, 0.4) + (6 if k == 0 else 0), 2), 600 - 80 * k
        known = n >= 50
        verdict = "violated" if k == 0 else "met" if k < 4 else "cannot tell"
        rows.append(
            {"group": f"camera {k}", "n": n, "reference": 0.91, "engine": 0.91 - value / 100,
             "drop_points": measured(value, 1.4 if known else None, "points", n, confidence=0.99),
             "verdict": verdict if known else None, "stands_out": k == 0,
             "needed": 4000 if known and verdict == "cannot tell" else None,
             "reason": None if known else f"n = {n}: too few"}
        )  # fmt: skip
    rows.sort(key=lambda row: (row["reason"] is not None, -row["drop_points"]["value"]))
    return {
        "by": "meta.csv:camera", "limit_points": 4.0, "least_n": 50, "judged": 7, "unmatched": 3,
        "confidence": 0.95, "overall_points": -change, "verdict": "violated", "rows": rows,
    }  # fmt: skip


def made_confidences(rng: random.Random) -> dict[str, Any]:
    """Two lines of a reliability plot."""

    def one(off: float) -> dict[str, Any]:
        bins = []
        for k in range(15):
            confidence = 0.3 + 0.7 * (k + 0.5) / 15
            accuracy = min(1.0, max(0.0, confidence - off + rng.gauss(0, 0.02)))
            bins.append({"n": 333, "confidence": confidence, "accuracy": accuracy,
                         "low": max(0.0, accuracy - 0.05), "high": min(1.0, accuracy + 0.05)})  # fmt: skip
        return {"ece": measured(off, 0.004, "fraction", N), "by_chance": 0.011,
                "mean_confidence": 0.93, "accuracy": 0.91, "bins": bins}  # fmt: skip

    return {
        "bins": 15,
        "binning": "equal mass",
        "outputs": "logits",
        "reference": one(0.02),
        "engine": one(0.05),
    }


def made_samples() -> list[dict[str, Any]]:
    """A picture of one pixel, and a text."""
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGD4DwABBAEAX+XDSwAAAABJRU5ErkJggg=="
    same = {"place": "made/1.png", "target": "cat", "reference": "cat", "engine": "dog"}
    return [
        {
            "index": 3,
            "kind": "lost",
            "image": f"data:image/png;base64,{pixel}",
            "text": None,
            **same,
        },
        {"index": 5, "kind": "won", "image": None, "text": "a made text", **same},
    ]


def look(browser: Any, page_file: Path) -> dict[str, Any]:
    """One opening of the page: seconds until drawn, console messages, requests."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    messages: list[str] = []
    requests: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    # The moment at which the page says so, on its own clock: zero is the navigation's start.
    page.add_init_script(
        "new MutationObserver(() => { if (document.documentElement.dataset.drawn && !window.ready) "
        "window.ready = performance.now(); }).observe(document, {attributes: true, subtree: true});"
    )
    page.goto(page_file.as_uri(), wait_until="commit")
    # Not wait_for_function: the page's policy forbids eval, which that one uses.
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=120_000)
    seconds = page.evaluate("() => window.ready") / 1000
    points = page.locator("#pareto .scatterlayer .point").count()
    context.close()
    other = [url for url in requests if url != page_file.as_uri()]
    return {"seconds": seconds, "messages": messages, "requests": other, "points": points}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="leave the sweep and the page in this folder")
    parser.add_argument("--try", dest="trial", action="store_true", help="write no results")
    arguments = parser.parse_args()
    from edgeml.artifact.machine import describe_machine
    from edgeml.report.open_results import shown_of
    from edgeml.report.page_files import write_page
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        print("no chromium here: nothing measured", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        sweep = made_sweep(root / "sweep", arguments.trials)
        page_file = write_page([shown_of(sweep)], root / "page")[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            version = browser.version
            looks = [look(browser, page_file) for _ in range(arguments.repeats)]
            browser.close()
        size = page_file.stat().st_size
    machine = describe_machine()
    seconds = [one["seconds"] for one in looks]
    found = {
        "trials": arguments.trials,
        "made": "trials are made, not measured; only the page is",
        "page_bytes": size,
        "ready_s": seconds,
        "ready_median_s": statistics.median(seconds),
        "ready_worst_s": max(seconds),
        "points_drawn": looks[0]["points"],
        "console_messages": [text for one in looks for text in one["messages"]],
        "requests": [url for one in looks for url in one["requests"]],
        "chromium": version,
        "machine": {key: machine.get(key) for key in ("cpu", "cores", "os", "load_average")},
    }
    held = (
        size < MOST_BYTES and max(seconds) < MOST_S
        and not found["console_messages"] and not found["requests"]
    )  # fmt: skip
    found["bars_held"] = held
    print(json.dumps(found, indent=2))
    if not arguments.trial:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "report_page.json").write_text(json.dumps(found, indent=2) + "\n")
        (RESULTS / "report_page.md").write_text(told(found))
    return 0 if held else 1


def told(found: dict[str, Any]) -> str:
    rows = [
        ("size of the file", f"{found['page_bytes'] / 1e6:.2f} MB", "8 MB"),
        ("drawn, median", f"{found['ready_median_s']:.2f} s", "2 s"),
        ("drawn, worst", f"{found['ready_worst_s']:.2f} s", "2 s"),
        ("console messages", str(len(found["console_messages"])), "none"),
        ("requests", str(len(found["requests"])), "none"),
    ]
    lines = "".join(f"| {name} | {value} | {bar} |\n" for name, value, bar in rows)
    return (
        "# The page of a sweep\n\n"
        f"`python benchmarks/report_page.py`: {found['trials']} MADE trials (no figure in them was measured), "
        f"{len(found['ready_s'])} openings from disk in Chromium {found['chromium']} on {found['machine']['cpu']}, "
        f"{found['machine']['cores']} cores, load {found['machine']['load_average'][0]:.1f}; "
        f"{found['points_drawn']} points in the chart. Time runs from the navigation's start to the last chart.\n\n"
        "| | found | at most |\n|---|---|---|\n" + lines
    )


if __name__ == "__main__":
    sys.exit(main())
