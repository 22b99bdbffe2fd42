"""An LSTM in ONNX Runtime: dynamic INT8 against its own float engine, through edgeml's commands alone.

    EDGEML_DATA=… python benchmarks/lstm_dynamic.py [--folder KEPT] [--epochs N]

Trains `rnn` (two LSTMs of 128 units on embeddings of 128) on BBC news, compresses it with
`edgeml compress RUN --int8 --threads 1`, and reads from its table: does dynamic quantization ship by
itself, how much faster it is than the fp32 engine of the same runtime (asked: 2.5 ×), and what it
loses (asked: at most 1 point). Writes benchmarks/results/lstm_dynamic.json and .md; run it on a quiet
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("EDGEML_DATA", "data"))
TRAIN = [
    "train", "rnn", "--option", "hidden=128", "--option", "embedding=128",
    "--data", f"text-csv:{DATA / 'text5-bbc'}", "--max-length", "200",
    "--lr", "0.003", "--clip", "1", "--batch", "32",
]  # fmt: skip
COMPRESS = ["--int8", "--threads", "1", "--max-drop", "1"]
DYNAMIC, FLOAT = "onnxruntime-int8-onnxruntime-dynamic", "onnxruntime-fp32"
ASKED_RATIO, ASKED_DROP_POINTS = 2.5, 1.0


def edgeml(*words: str) -> str:
    """Standard output of a command; 3 says that a budget was missed, which the table tells."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeml", *words], stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 3):
        sys.exit(f"edgeml {' '.join(words)} ended with {done.returncode}")
    return done.stdout


def shown(text: str, folder: Path) -> str:
    """Without the paths of the machine it ran on."""
    return text.replace(str(DATA), "$EDGEML_DATA").replace(str(folder), "runs")


def read(out: Path) -> dict[str, Any]:
    """What the bundle's results say of the two engines."""
    results = json.loads((out / "results.json").read_text())
    rows = {row["id"]: row for row in results["rows"]}
    missing = [name for name in (DYNAMIC, FLOAT) if rows[name]["latency_p50_ms"] is None]
    if missing:
        sys.exit(f"{missing[0]} has no latency: {rows[missing[0]]['reason']}")
    p50 = {name: rows[name]["latency_p50_ms"]["value"] for name in (DYNAMIC, FLOAT)}
    drop = rows[DYNAMIC]["drop_points"]
    return {
        "fp32_p50_ms": p50[FLOAT],
        "dynamic_int8_p50_ms": p50[DYNAMIC],
        "ratio": p50[FLOAT] / p50[DYNAMIC],
        "asked_ratio": ASKED_RATIO,
        "drop_points": drop["value"],
        "drop_points_at_most": drop["high"],
        "asked_drop_points": ASKED_DROP_POINTS,
        "n": drop["n"],
        "size_ratio": rows[FLOAT]["size_bytes"] / rows[DYNAMIC]["size_bytes"],
        "shipped": next(row["id"] for row in results["rows"] if row["shipped"] or row["mark"]),
        "test": results["final"],
        "machine": results["machine"],
        "warnings": results["warnings"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="kept, so that a killed run goes on")
    parser.add_argument("--epochs", type=int, help="fewer, to try the script; writes no results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        run, out = folder / "lstm", folder / "lstm-int8"
        if not run.is_dir():
            edgeml(*TRAIN, "--epochs", str(given.epochs or 8), "-o", str(run))
        scores = json.loads((run / "scores.json").read_text())
        table = edgeml("compress", str(run), *COMPRESS, "-o", str(out))
        record = {
            "train": shown(" ".join(TRAIN), folder),
            "training": scores["summary"],
            "test_accuracy": scores["test"]["accuracy"],
            **read(out),
        }
        table = shown(table, folder)
    print(table)
    line = (
        f"dynamic INT8 is {record['ratio']:.2f} × as fast as fp32 in ONNX Runtime (asked "
        f"{ASKED_RATIO}), loses {record['drop_points']:.2f} points on validation (at most "
        f"{record['drop_points_at_most']:.2f}; asked {ASKED_DROP_POINTS:.0f}, n = {record['n']}), "
        f"and is {record['size_ratio']:.1f} × smaller; shipped: {record['shipped']}"
    )
    print(line)
    if given.epochs:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lstm_dynamic.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "lstm_dynamic.md").write_text(
        f"# An LSTM in dynamic INT8\n\n`edgeml {record['train']} --epochs 8`, then "
        f"`edgeml compress RUN {' '.join(COMPRESS)}`\n\n{line}\n\n```\n{table}```\n"
    )


if __name__ == "__main__":
    main()
