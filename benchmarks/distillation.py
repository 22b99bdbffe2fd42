"""Logit and feature distillation, each against none (issue 7, bar 8).

    EDGEML_DATA=… python benchmarks/distillation.py --teacher RUN [--seeds 3] [--epochs 3]

One network is pruned to 40 % of the p50 of the teacher's plain INT8 engine, untrained. From there, for each
seed, the same 20,000 images and epochs, three ways:

none       cross-entropy with the labels
logits     alpha 0.9 of the teacher's logits at temperature 4 (edgeml's default)
features   the same and the outputs of all blocks that both networks have (`features: true`)

What is scored is the plain INT8 engine (NNCF) on the 10,000 test images. The gain over `none` is told a seed
by Tango's paired interval, over the seeds by Student's t. One JSON line a run in
benchmarks/results/distillation.jsonl, with the CPU's name; runs done before are left out, a killed training
goes on. --quick tries the script itself: 500 images, one epoch, two seeds, records in --work.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from budget_peers import Peers, subset
from budget_runs import RESULTS, add_record, edgeml, paired, records

FILE = RESULTS / "distillation.jsonl"
WAYS: dict[str, dict[str, Any]] = {
    "none": {"alpha": 0.0},
    "logits": {},
    "features": {"features": True},
}


def pruned(args: argparse.Namespace, data: str) -> Path:
    """The bundle of the pruned network, whose weights are the teacher's."""
    out = args.work / f"distillation-{args.teacher.name}-{args.budget}"
    words = [str(args.teacher), "--data", data, "--latency", f"{args.budget}%", "--max-drop", "100"]
    words += ["--preprocess", str(args.teacher / "preprocess.json"), "--epochs", "0"]
    words += ["--int8", "--route", "nncf", "--runtime", "openvino"]
    if not (out / "manifest.json").is_file():
        edgeml("compress", *words, "-o", str(out))
    return out


def run_seed(args: argparse.Namespace, data: str, folder: Path, seed: int, done: set[str]) -> None:
    from edgeml.artifact.machine import describe_machine
    from edgeml.artifact.recipe import FinetuneStep
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.steer import load_student

    left = [way for way in WAYS if key(args, seed, way) not in done]
    if not left:
        return
    machine = describe_machine()
    name = f"{folder.name}-{seed}-{args.epochs}"
    with WorkDirectory(args.work / f"{name}-training", f"{args.teacher}-{name}") as work:
        peers = Peers(args, data, work, seed)
        start = load_student(peers.job.module, folder)
        for way in left:
            peers.step = FinetuneStep(epochs=args.epochs, **WAYS[way])
            student, trial = peers.finish(copy.deepcopy(start), way)
            right = peers.right(trial.engine)
            np.save(answers_file(args, seed, way), right)
            row = {
                "run": key(args, seed, way),
                "cpu": machine["cpu"],
                "isa": machine["isa"],
                "way": way,
                "seed": seed,
                "epochs": args.epochs,
                "images": peers.data.batches.samples,
                "parameters": sum(p.numel() for p in student.module.parameters()),
                "accuracy": float(right.mean()),
                "n": len(right),
            }
            add_record(args.records, row)
            print(json.dumps(row), flush=True)


def differences(args: argparse.Namespace) -> None:
    """The gain of each way over `none`: a row a seed, and the mean of the seeds with its interval."""
    from edgeml.artifact.machine import describe_machine
    from edgeml.train.paired_interval import t_quantile

    for way in list(WAYS)[1:]:
        gains = []
        for seed in range(args.seeds):
            none, taught = (np.load(answers_file(args, seed, w)) for w in ("none", way))
            row = {"run": f"{way} - none, {key(args, seed, way)}", **paired(none, taught)}
            gains.append(row["gain"])
            add_record(args.records, row)
            print(json.dumps(row))
        row = {"run": f"{way} - none, mean", "cpu": describe_machine()["cpu"], "gains": gains}
        row["gain"] = float(np.mean(gains))
        if len(gains) > 1:
            reach = t_quantile(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5
            row |= {"low": row["gain"] - reach, "high": row["gain"] + reach}
        add_record(args.records, row)
        print(json.dumps(row))


def answers_file(args: argparse.Namespace, seed: int, way: str) -> Path:
    return args.work / f"answers-{key(args, seed, way).replace(' ', '-')}.npy"


def key(args: argparse.Namespace, seed: int, way: str) -> str:
    return f"{args.teacher.name} {args.budget} {way} {seed} {args.epochs}"


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--budget", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("budget-runs"))
    parser.add_argument("--quick", action="store_true", help="try this script, prove nothing")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    args.records = FILE
    if args.quick:
        args.budget, args.epochs, args.seeds = 60, 1, 2
        args.records = args.work / "distillation-quick.jsonl"
    data = f"imagefolder:{subset(args.work, args.quick)}"
    folder = pruned(args, data)
    for seed in range(args.seeds):
        # What was answered must be there, too: the differences need it.
        done = {
            row["run"]
            for row in records(args.records)
            if "way" in row and answers_file(args, row["seed"], row["way"]).is_file()
        }
        run_seed(args, data, folder, seed, done)
    differences(args)


if __name__ == "__main__":
    main()
