"""SIGKILL a `compress` run at 50 moments; the same command must always complete.

    python benchmarks/kill_resume.py [--timed 30] [--injected 20]

30 kills are uniform in time after the run's first stage began; 20 happen inside the process, before or
after an fsync or a rename, spread over all of those calls of a whole run. After each kill: OUT is
absent or a whole, verified bundle; the same command is run again and completes; no stage is logged as
done twice. Writes benchmarks/results/kill_resume.json and .md.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"

# Runs edgeml in this process and kills it at the N-th call of os.fsync, os.replace or os.rename,
# before the call or after it; with N = 0 it only counts the calls.
INJECTOR = """
import os, signal, sys
target, when, count_file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
calls = 0
def wrap(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == target and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if calls == target and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
for name in ("fsync", "replace", "rename"):
    setattr(os, name, wrap(getattr(os, name)))
import edgeml.compress.search as search
search.SCREEN_SECONDS, search.BENCH_SECONDS = 0.05, 0.1
from edgeml.cli import main
try:
    main(sys.argv[4:])
finally:
    with open(count_file, "w") as f:
        f.write(str(calls))
"""

# The same without a kill. Engines are timed for a blink: this is about what is on disk, and 50 runs
# of timing would take an hour.
RUNNER = """
import sys
import edgeml.compress.search as search
search.SCREEN_SECONDS, search.BENCH_SECONDS = 0.05, 0.1
from edgeml.cli import main
main(sys.argv[1:])
"""


def make_inputs(root: Path) -> list[str]:
    """A small convolutional network and 800 labelled arrays; returns the command's arguments."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    w1 = (rng.standard_normal((16, 3, 3, 3)) * 0.3).astype(np.float32)
    w2 = (rng.standard_normal((16, 16, 3, 3)) * 0.1).astype(np.float32)
    w3 = (rng.standard_normal((16, 4)) * 0.5).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(w, n) for n, w in (("w1", w1), ("w2", w2), ("w3", w3))],
    )
    model = root / "small.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), model
    )
    # An offset a channel: plain noise pools to the same features, and so to one class.
    x = rng.standard_normal((800, 3, 16, 16)) + 2 * rng.standard_normal((800, 3, 1, 1))
    x = x.astype(np.float32)
    # The network's own answers are the labels, so that its accuracy is 100 % and a drop means something.
    import onnxruntime as ort

    y = ort.InferenceSession(str(model)).run(None, {"x": x})[0].argmax(1)
    np.savez(root / "data.npz", x=x, y=y)
    return [
        "compress",
        str(model),
        "--data",
        f"npz:{root / 'data.npz'}",
        "--int8",
        "--max-drop",
        "5",
        "--calibration-samples",
        "50",
    ]


class Case:
    """One kill and what followed, in directories of its own."""

    def __init__(self, root: Path, arguments: list[str]) -> None:
        self.root = Path(tempfile.mkdtemp(dir=root))
        self.out = self.root / "out"
        self.arguments = [*arguments, "-o", str(self.out)]
        self.env = {**os.environ, "EDGEML_CACHE": str(self.root / "cache")}

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", RUNNER, *self.arguments],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_injected(self, target: int, when: str, count_file: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", INJECTOR, str(target), when, str(count_file), *self.arguments],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_first_stage(self, child: subprocess.Popen) -> None:
        while child.poll() is None and not Path(f"{self.out}.part").is_dir():
            time.sleep(0.01)

    def whole(self) -> bool:
        from edgeml.artifact.bundle import open_bundle

        open_bundle(self.out)
        return True

    def finish(self) -> str | None:
        """Run the same command again; what is wrong with the result, or None."""
        if self.out.exists():
            self.whole()  # killed after the rename: the bundle must be whole, and there is nothing to do
            return self.journal()
        again = self.start()
        _, stderr = again.communicate(timeout=300)
        if again.returncode not in (0, 3):
            return f"resumed run ended with {again.returncode}: {stderr.strip().splitlines()[-1]}"
        self.whole()
        return self.journal()

    def journal(self) -> str | None:
        lines = (self.out / "stages.jsonl").read_text().splitlines()
        done = collections.Counter(
            e["stage"] for e in map(json.loads, lines) if e["event"] == "done"
        )
        twice = [stage for stage, n in done.items() if n > 1]
        return f"done twice: {', '.join(twice)}" if twice else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timed", type=int, default=30)
    parser.add_argument("--injected", type=int, default=20)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="edgeml-kill-"))
    arguments = make_inputs(root)
    rng = random.Random(0)

    whole = Case(root, arguments)
    child = whole.start()
    whole.wait_first_stage(child)
    began = time.monotonic()
    _, stderr = child.communicate()
    if child.returncode not in (0, 3):
        sys.exit(f"the uninterrupted run failed: {stderr}")
    duration = time.monotonic() - began
    counted = Case(root, arguments)
    count_file = root / "calls"
    counted.start_injected(0, "before", count_file).communicate()
    calls = int(count_file.read_text())

    failures, landed = [], collections.Counter()
    plans = [("timed", rng.uniform(0, duration)) for _ in range(args.timed)]
    plans += [
        (
            "injected",
            (
                1 + round(i * (calls - 1) / max(1, args.injected - 1)),
                rng.choice(["before", "after"]),
            ),
        )
        for i in range(args.injected)
    ]
    waiting = plans[::-1]
    while waiting:
        kind, moment = waiting.pop()
        case = Case(root, arguments)
        if kind == "timed":
            child = case.start()
            case.wait_first_stage(child)
            try:
                child.wait(moment)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
            child.communicate()
        else:
            child = case.start_injected(*moment, root / "ignored")
            child.communicate()
        if child.returncode != -signal.SIGKILL:
            # The run was over before the moment came (or before that call): another moment for it.
            landed["had already ended"] += 1
            shutil.rmtree(case.root)
            if kind == "timed":
                waiting.append((kind, rng.uniform(0, duration)))
            else:
                waiting.append((kind, (rng.randint(1, calls), moment[1])))
            continue
        landed["killed"] += 1
        try:
            problem = case.finish()
        except Exception as e:
            problem = f"{type(e).__name__}: {e}"
        if problem:
            failures.append({"kind": kind, "moment": moment, "problem": problem})
        print(f"{landed['killed']}/{len(plans)} {kind} {moment}: {problem or 'ok'}", flush=True)
        shutil.rmtree(case.root)

    from edgeml.artifact.machine import describe_machine

    record = {
        "machine": describe_machine(),
        "run_s": duration,
        "fsync_and_rename_calls": calls,
        "timed": args.timed,
        "injected": args.injected,
        "landed": dict(landed),
        "failures": failures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kill_resume.json").write_text(json.dumps(record, indent=2) + "\n")
    text = (
        "# Killed and resumed\n\n"
        f"{record['machine']['cpu']}. Made by `python benchmarks/kill_resume.py`.\n\n"
        f"A run of {duration:.1f} s with {calls} calls of fsync and rename, killed {landed['killed']} times "
        f"({args.timed} uniform in time, {args.injected} at an fsync or rename): {len(failures)} failures.\n"
    )
    (RESULTS / "kill_resume.md").write_text(text)
    print(text)
    shutil.rmtree(root)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
