"""SIGKILL `edgeml train` at random moments; resumed, it must end in the weights of a run left alone.

    python benchmarks/kill_train.py [--kills 10] [--epochs 30] [--seed 0] [--try]

Each kill is of a run of its own, at a moment uniform between its first epoch's begin and the end of
the whole command, the writing of the run's directory included. After it OUT is absent or whole; then
`edgeml train --resume OUT` completes it, and its weights must equal those of the unkilled run bit for
bit, its losses number for number. Precision, memory format and threads are pinned, as docs/training.md
says. Writes benchmarks/results/kill_train.json and .md, with --try nothing. Exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
# With BatchNorm: running statistics must come back too, not only weights and momenta.
TRAIN = ["resnet20", "--width", "8", "--blocks", "1", "--data", "digits",
         "--precision", "fp32", "--no-channels-last", "--threads", "1"]  # fmt: skip
PATIENCE_S = 600


def edgeml(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "edgeml", "train", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen, word: str) -> None:
    """Read standard error until a line holds `word`."""
    line = ""
    for line in process.stderr:
        if word in line:
            return
    sys.exit(f"edgeml train ended with {process.wait()}: {line}")


def finish(process: subprocess.Popen) -> None:
    _, told = process.communicate(timeout=PATIENCE_S)
    if process.returncode:
        sys.exit(f"edgeml train ended with {process.returncode}: {told[-1000:]}")


def losses(run: Path) -> list[tuple[float, float]]:
    curves = json.loads((run / "curves.json").read_text())
    return [(epoch["loss"], epoch["validation"]["loss"]) for epoch in curves]


def kill_and_resume(words: list[str], out: Path, delay_s: float) -> dict | None:
    """One case; None when the run ended before the kill."""
    process = edgeml(*words, "-o", str(out))
    wait_for(process, "training resnet20")
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode == 0:
        return None
    whole = (out / "manifest.json").is_file()
    if out.exists() and not whole:
        sys.exit(f"killed after {delay_s:.2f} s, {out} is there but not whole")
    resumed_after = None
    if not whole:
        process = edgeml("--resume", str(out))
        _, told = process.communicate(timeout=PATIENCE_S)
        if process.returncode:
            sys.exit(f"killed after {delay_s:.2f} s, --resume ended with {told[-1000:]}")
        found = [line for line in told.splitlines() if "going on after epoch" in line]
        resumed_after = int(found[0].rpartition(" ")[2]) if found else 0
    return {"killed_after_s": round(delay_s, 3), "resumed_after_epoch": resumed_after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--try", dest="trial", action="store_true")
    given = parser.parse_args()
    words = [*TRAIN, "--epochs", str(given.epochs)]
    moments, cases = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        process = edgeml(*words, "-o", str(folder / "alone"))
        wait_for(process, "training resnet20")
        begin = time.monotonic()
        finish(process)
        whole_s = time.monotonic() - begin
        weights = (folder / "alone" / "weights.safetensors").read_bytes()
        while len(cases) < given.kills:
            out = folder / f"killed-{len(cases)}-{moments.random()}"
            case = kill_and_resume(words, out, moments.uniform(0, whole_s))
            if case is None:
                continue
            same = (out / "weights.safetensors").read_bytes() == weights
            case["same"] = same and losses(out) == losses(folder / "alone")
            cases.append(case)
            print(json.dumps(case), flush=True)
    if not given.trial:
        write(words, whole_s, cases)
    same = sum(case["same"] for case in cases)
    print(f"{same} of {len(cases)} killed runs ended in the same weights and losses, bit for bit")
    sys.exit(same < len(cases))


def write(words: list[str], whole_s: float, cases: list[dict]) -> None:
    from edgeml.artifact.machine import describe_machine

    RESULTS.mkdir(exist_ok=True)
    found = {
        "command": " ".join(["edgeml train", *words]),
        "seconds": round(whole_s, 1),
        "machine": describe_machine()["cpu"],
        "cases": cases,
    }
    (RESULTS / "kill_train.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = [
        f"| {c['killed_after_s']:.2f} | {c['resumed_after_epoch']} | {'yes' if c['same'] else 'NO'} |"
        for c in cases
    ]
    text = [
        "# `edgeml train`, killed and resumed\n",
        f"`{found['command']}`, {whole_s:.1f} s when left alone, {found['machine']}.",
        "SIGKILL at a random moment, then `edgeml train --resume`. Same: weights bit for bit, losses",
        "number for number.\n",
        "| killed after, s | went on after epoch | same |",
        "|---|---|---|",
        *rows,
    ]
    (RESULTS / "kill_train.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
