"""An LSTM in ONNX Runtime: dynamic INT8 against its own float engine, through edgeml's commands alone.

    EDGEML_DATA=… python benchmarks/lstm_dynamic.py [--folder KEPT] [--epochs N]

Trains `rnn` (two LSTMs of 128, then of 256 units, on embeddings of as many) on BBC news, compresses it
with `edgeml compress RUN --int8 --threads 1`, and reads from its table: does dynamic quantization ship
by itself, how much faster it is than the fp32 engine of the same runtime (asked: 2.5 ×), and what it
loses (asked: at most 1 point). The gain grows with the network, so both sizes are told.

Writes benchmarks/results/lstm_dynamic.json and .md; run it on a quiet machine.
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
UNITS = (128, 256)
TRAIN = [
    "train", "rnn", "--data", f"text-csv:{DATA / 'text5-bbc'}", "--max-length", "200",
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


def measure(units: int, folder: Path, epochs: int | None) -> tuple[dict[str, Any], str]:
    """One size: what is recorded of it, and its page."""
    run, out = folder / f"lstm-{units}", folder / f"lstm-{units}-int8"
    words = [*TRAIN, "--option", f"hidden={units}", "--option", f"embedding={units}"]
    words += ["--epochs", str(epochs or 8)]
    if not run.is_dir():
        edgeml(*words, "-o", str(run))
    scores = json.loads((run / "scores.json").read_text())
    table = edgeml("compress", str(run), *COMPRESS, "-o", str(out))
    record = {
        "units": units,
        "train": shown(" ".join(words), folder),
        "training": scores["summary"],
        "test_accuracy": scores["test"]["accuracy"],
        **read(out),
    }
    line = (
        f"{units} units: dynamic INT8 is {record['ratio']:.2f} × as fast as fp32 in ONNX Runtime (asked "
        f"{ASKED_RATIO}), loses {record['drop_points']:.2f} points on validation (at most "
        f"{record['drop_points_at_most']:.2f}; asked {ASKED_DROP_POINTS:.0f}, n = {record['n']}), "
        f"and is {record['size_ratio']:.1f} × smaller; shipped: {record['shipped']}"
    )
    print(line)
    page = (
        f"`edgeml {record['train']}`, then `edgeml compress RUN {' '.join(COMPRESS)}`\n\n{line}\n\n"
        f"```\n{shown(table, folder)}```\n"
    )
    return record, page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="kept, so that a killed run goes on")
    parser.add_argument("--epochs", type=int, help="fewer, to try the script; writes no results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        found = [measure(units, folder, given.epochs) for units in UNITS]
    if given.epochs:
        return
    RESULTS.mkdir(exist_ok=True)
    records = [record for record, _ in found]
    (RESULTS / "lstm_dynamic.json").write_text(json.dumps(records, indent=1) + "\n")
    (RESULTS / "lstm_dynamic.md").write_text(
        "# An LSTM in dynamic INT8\n\n" + "\n".join(page for _, page in found)
    )


if __name__ == "__main__":
    main()
