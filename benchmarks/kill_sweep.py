"""SIGKILL `edgeml sweep` at 20 moments, one sweep gone on with after each, and count what was lost.

    python benchmarks/kill_sweep.py [--kills 20] [--seconds 150] [--work DIR]

Of every five kills two fall inside the process, at a random one of the next appends to the search's
journal: half of its bytes are written, or all and not synced. The others fall at a random moment. After
each: no process of the sweep is left, every trial that had finished is there byte for byte, and the next
run marks at most one as lost (one was in flight). Where a run ends before its kill, two more trials are
asked for. At last the sweep is run to its end: no two trials did the same work, and the journal has
every result once and none in flight. A call goes on where the last one stopped, for so many seconds
(what is begun is ended). Writes benchmarks/results/kill_sweep.json and .md. Nothing here is a timing.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
NETWORK = """import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.b(torch.relu(self.a(x))))


def build():
    torch.manual_seed(0)
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), Block(), Block(), Block(), *tail)
"""
# The driver: engines are timed for a blink, and where argv[1] > 0 that append kills it.
DRIVER = """
import os, signal, sys
import edgeml.compress.search as search
search.SCREEN_SECONDS, search.BENCH_SECONDS = 0.05, 0.05
target, share = int(sys.argv[1]), float(sys.argv[2])
if target:
    import json
    from optuna.storages.journal import JournalFileBackend
    whole, calls = JournalFileBackend.append_logs, 0
    def append(self, logs):
        global calls
        calls += 1
        if calls != target:
            return whole(self, logs)
        text = "".join(json.dumps(log, separators=(",", ":")) + "\\n" for log in logs).encode()
        with open(self._file_path, "ab") as file:
            file.write(text[: int(share * len(text))])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    JournalFileBackend.append_logs = append
from edgeml.cli import main
main(sys.argv[3:])
"""


class Sweep:
    """The one sweep that is killed, and what is known of it."""

    def __init__(self, work: Path) -> None:
        self.work, self.root, self.state_file = work, work / "sweep", work / "state.json"
        work.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] = {"kills": [], "faults": [], "trials": 2, "whole": False}
        if self.state_file.is_file():
            self.state = json.loads(self.state_file.read_text())
        (work / "net.py").write_text(NETWORK)
        rng = np.random.default_rng(0)
        y = rng.integers(0, 3, 400)
        x = rng.standard_normal((400, 3, 8, 8)).astype(np.float32)
        if not (work / "data.npz").is_file():
            shift = np.eye(3, dtype=np.float32)[y][:, :, None, None]
            np.savez(work / "data.npz", x=x + shift, y=y)

    def save(self) -> None:
        part = self.state_file.with_suffix(".part")
        part.write_text(json.dumps(self.state, indent=2))
        part.replace(self.state_file)

    def start(self, append: int = 0, share: float = 1.0) -> subprocess.Popen:
        words = ["sweep", f"{self.work}/net.py:build", "--data", f"npz:{self.work}/data.npz"]
        words += ["--runtime", "openvino", "--route", "nncf", "--calibration-samples", "16"]
        words += ["--threads", "1", "--epochs", "2", "--max-drop", "100"]
        words += ["--trials", str(self.state["trials"]), "-o", str(self.root)]
        with (self.work / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(append), str(share), *words],
                env={**os.environ, "EDGEML_CACHE": str(self.work / "cache")},
                stdout=log,
                stderr=log,
            )

    def processes(self) -> list[str]:
        done = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if f"{self.root}" in line]

    def results(self) -> dict[str, str]:
        """Trials that finished → hash of their result."""
        found = {}
        for file in sorted((self.root / "trials").glob("*/result.json")):
            if json.loads(file.read_text())["state"] != "lost":
                found[file.parent.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        return found

    def lost(self) -> int:
        files = (self.root / "trials").glob("*/result.json")
        return sum(json.loads(file.read_text())["state"] == "lost" for file in files)

    def fault(self, text: str) -> None:
        self.state["faults"].append(text)
        print(f"FAULT: {text}", flush=True)


def kill_once(sweep: Sweep, rng: random.Random) -> None:
    """One run that is killed, or ends before."""
    before, number = sweep.results(), len(sweep.state["kills"])
    lost = sweep.lost()
    inside = number >= 2 and number % 5 in (1, 3)
    share = rng.choice([0.5, 1.0])
    if inside:
        child = sweep.start(rng.randint(1, 6), share)
        moment = f"journal append, {share:.0%} written"
    else:
        child, seconds = sweep.start(), rng.uniform(3, 25)
        moment = f"after {seconds:.1f} s"
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
    code = child.wait()
    if sweep.lost() - lost > 1:
        sweep.fault(f"{moment}: {sweep.lost() - lost} trials lost by the kill before")
    there = sweep.results()
    changed = [name for name in before if before[name] != there.get(name)]
    # The last work is another one where other engines are timed; no result of it is overwritten.
    if changed:
        sweep.fault(f"{moment}: results of {', '.join(changed)} changed or went")
    if code != -signal.SIGKILL:
        if code not in (0, 3):
            sweep.fault(f"{moment}: the run ended with {code}")
        sweep.state["trials"] += 2
        return
    deadline = time.monotonic() + 20
    while sweep.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    if left := sweep.processes():
        sweep.fault(f"{moment}: left behind: {left[0]}")
    running = sorted(
        path.parent.name
        for path in (sweep.root / "trials").glob("*/request.json")
        if not (path.parent / "result.json").is_file()
    )
    sweep.state["kills"].append({"moment": moment, "in flight": running})
    print(f"kill {number + 1}: {moment}, in flight {', '.join(running) or 'none'}", flush=True)


def end(sweep: Sweep) -> None:
    """The whole sweep at last, and what must hold of it."""
    before, lost = sweep.results(), sweep.lost()
    code = sweep.start().wait()
    if code not in (0, 3):
        sweep.fault(f"the last run ended with {code}")
        return
    there = sweep.results()
    if any(there.get(name) != digest for name, digest in before.items()):
        sweep.fault("the last run changed a result")
    if sweep.lost() - lost > 1:
        sweep.fault("the last run lost more than was in flight")
    trials = [json.loads(x) for x in (sweep.root / "trials.jsonl").read_text().splitlines()]
    done = [t for t in trials if t["state"] == "done"]
    again = collections.Counter(json.dumps([t["params"], t["rung"]], sort_keys=True) for t in done)
    if twice := [key for key, count in again.items() if count > 1]:
        sweep.fault(f"done twice: {twice[0]}")
    sweep.state |= {
        "whole": True,
        "states": dict(collections.Counter(t["state"] for t in trials)),
        "lost in flight": sweep.lost(),
        "test reads": json.loads((sweep.root / "tested.json").read_text())["reads"],
        "torn copies": len(list(sweep.root.glob("journal.log.torn-*"))),
        **journal(sweep, {t["trial"] for t in done}),
    }


def journal(sweep: Sweep, done: set[int]) -> dict[str, Any]:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(sweep.root / "journal.log")))
    (study,) = storage.get_all_studies()
    trials = storage.get_all_trials(study._study_id)
    states = collections.Counter(t.state.name for t in trials)
    told = [
        t.user_attrs["trial"]
        for t in trials
        if t.state.name == "COMPLETE" and "trial" in t.user_attrs
    ]
    if states.get("RUNNING"):
        sweep.fault(f"{states['RUNNING']} trials of the journal are in flight for ever")
    if sorted(told) != sorted(done):
        sweep.fault(f"the journal knows {sorted(told)}, finished are {sorted(done)}")
    return {"journal": dict(states)}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--work", type=Path, default=Path("kill-sweep"))
    args = parser.parse_args()
    sweep, began = Sweep(args.work.resolve()), time.monotonic()
    while len(sweep.state["kills"]) < args.kills:
        if time.monotonic() - began > args.seconds:
            sys.exit(f"{len(sweep.state['kills'])} kills so far; the same command goes on")
        # Drawn anew a call, so that a slice does not repeat the last one's moments.
        kill_once(sweep, random.Random(len(sweep.state["kills"]) * 1000 + sweep.state["trials"]))
        sweep.save()
    if not sweep.state["whole"]:
        end(sweep)
        sweep.save()
    state = sweep.state
    inside = sum(kill["moment"].startswith("journal") for kill in state["kills"])
    flights = sum(bool(kill["in flight"]) for kill in state["kills"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kill_sweep.json").write_text(json.dumps(state, indent=2) + "\n")
    text = (
        "# A sweep killed and gone on with\n\n"
        "Made by `python benchmarks/kill_sweep.py`.\n\n"
        f"One sweep of a tiny network, {len(state['kills'])} kills by SIGKILL ({inside} inside an append to the "
        f"search's journal), something in flight at {flights} of them. Trials at the end: "
        f"{', '.join(f'{n} {name}' for name, n in state['states'].items())}; torn journals mended: "
        f"{state['torn copies']}; the test split was read {state['test reads']} times (runs that ended between the "
        f"kills were asked for more trials), each engine scored once. Faults: {len(state['faults'])}"
        f"{''.join(f'; {fault}' for fault in state['faults'])}.\n"
    )
    (RESULTS / "kill_sweep.md").write_text(text)
    print(text)
    sys.exit(1 if state["faults"] else 0)


if __name__ == "__main__":
    main()
