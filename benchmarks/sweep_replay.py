"""Whether a sweep's search beats random choice: configurations measured once, searches replayed on them.

    python benchmarks/sweep_replay.py record [--quick] [--work DIR]   # resumable; timings: run it alone
    python benchmarks/sweep_replay.py replay [--seeds 50] [--trials 30]

record measures every configuration of a space of a small network (eight residual blocks on noisy
digits): 6 shares × 3 kinds of pruning × (no, short, long fine-tuning; the latter two with and without
the teacher) × every engine of this machine, by the functions that a trial of `edgeml sweep` calls. A
JSON line a network in benchmarks/results/sweep_replay.jsonl. --quick: two shares and one epoch, to
another file.

replay runs the sweep's own search (`compress.sweep_search`) and a random one on that table, from the
same baselines, with the same number of trials. A random trial is drawn uniformly from all measured
configurations, without repetition. Compared is the hypervolume of baselines and trials together over
(points of accuracy lost on validation, p50 as a share of the fp32 reference's, bytes), each from 0 (ideal)
to the reference point: 10 points, 1, the largest baseline's bytes; 1 would be the ideal itself. The
interval is Student's t of the 50 differences, seed by seed. `all` is what trying everything would reach.
Writes benchmarks/results/sweep_replay.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from budget_runs import RESULTS, add_record, records

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
EPOCHS = 10
OBJECTIVES = ("accuracy", "latency", "size")
NETWORK = """import torch
from torch import nn

WIDTH, BLOCKS = 32, 8


class Block(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.a, self.n = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.b, self.m = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.m(self.b(torch.relu(self.n(self.a(x))))))


def build():
    torch.manual_seed(0)
    blocks = [Block() for _ in range(BLOCKS)]
    stem = [nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))
"""


def make_inputs(work: Path) -> dict[str, str]:
    """The network's file, its trained weights and the data, made once."""
    from sklearn.datasets import load_digits

    code, data, weights = work / "net.py", work / "data.npz", work / "teacher.safetensors"
    code.write_text(NETWORK)
    if not data.is_file():
        digits, rng = load_digits(), np.random.default_rng(0)
        x = np.concatenate([digits.images / 16] * 2)[:, None].astype(np.float32)
        x += 0.3 * rng.standard_normal(x.shape).astype(np.float32)  # 90 %, not 99: losses show
        part = work / "part.npz"
        np.savez(part, x=x, y=np.concatenate([digits.target] * 2))
        part.replace(data)
    if not weights.is_file():
        teach(f"{code}:build", f"npz:{data}", weights)
    return {"model": f"{code}:build", "weights": str(weights), "data": f"npz:{data}"}


def teach(model: str, data: str, weights: Path) -> None:
    from edgeml.artifact.recipe import FinetuneStep, build_recipe
    from edgeml.artifact.stage_cache import StageCache
    from edgeml.artifact.work_directory import WorkDirectory
    from edgeml.compress.job import open_job
    from edgeml.compress.stages import Stages
    from edgeml.compress.steer_data import finetune_settings, open_finetune_data
    from edgeml.train.checkpoint import weights_of
    from edgeml.train.training_loop import fit
    from safetensors.torch import save_file

    recipe = build_recipe({"model": model, "data": data})
    with WorkDirectory(weights.with_suffix(""), recipe.hash) as work:
        job = open_job(recipe, Stages(StageCache(), work, told, None))
        settings, augment = finetune_settings(job, FinetuneStep(epochs=15))
        settings = settings.model_copy(update={"epochs": 15, "lr": 0.05})
        fit(job.module, open_finetune_data(job, settings, augment).batches, settings, log=told)
    save_file({n: t.contiguous() for n, t in weights_of(job.module).items()}, weights)


def told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def opened(recipe: Any, work: Path, **more: Any) -> Iterator[Any]:
    from edgeml.compress.sweep_trial import opened as open_trial

    request = {
        "id": "replay",
        "recipe": recipe.model_dump(mode="json"),
        "threads": 1,
        "objectives": OBJECTIVES,
        "time_s": None,
        "trust_code": True,
        **more,
    }
    with open_trial(request, work, lambda line: None) as given:
        yield given


def networks(quick: bool) -> list[tuple[float, str, int, bool]]:
    """(share, kinds, rung, distil), the cheap rungs first: what a kill leaves is of use."""
    from edgeml.compress.sweep_space import KINDS

    shares = SHARES[1:4:2] if quick else SHARES
    taught = [(0, True), *itertools.product((1, 2), (True, False))]
    found = [(s, k, rung, d) for rung, d in taught for s, k in itertools.product(shares, KINDS)]
    return found[:4] if quick else found


def record(args: argparse.Namespace) -> None:
    from edgeml.artifact.machine import describe_machine
    from edgeml.artifact.recipe import FinetuneStep, QuantizeStep, build_recipe
    from edgeml.compress import search
    from edgeml.compress.steer_run import plain_int8
    from edgeml.compress.sweep_space import Choice, recipe_of
    from edgeml.compress.sweep_trial import candidates_of, measure, prune_and_train

    search.BENCH_SECONDS = 0.5
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("EDGEML_CACHE", str(args.work / "cache"))
    file = table_file(args.quick)
    base = build_recipe(
        {
            **make_inputs(args.work),
            "threads": 1,
            "max_drop_points": None,
            "steps": [
                QuantizeStep(calibration_samples=64).model_dump(),
                FinetuneStep(epochs=1 if args.quick else EPOCHS).model_dump(),
            ][::-1],
        }
    )

    def rows_of(trials: list[Any]) -> list[dict[str, Any]]:
        for trial in trials:
            if trial.engine is not None:
                trial.engine.close()
        return [trial.row.model_dump(mode="json", exclude_defaults=True) for trial in trials]

    there = records(file)
    if not there:
        with opened(base, args.work) as given:
            trials, _ = measure(given, given.job, candidates_of(given.job))
            plain = plain_int8([given.reference, *trials], given.job, search.Budget()).row.id
            rows = [given.reference.row.model_dump(mode="json", exclude_defaults=True)]
            rows += rows_of(trials)
        facts = {"plain_int8": plain, "machine": describe_machine(), "epochs": EPOCHS}
        add_record(file, {"network": None, "rows": rows, **facts})
        there = records(file)
    plain, done = there[0]["plain_int8"], {tuple(one["network"] or ()) for one in there}
    wanted = networks(args.quick)
    for number, network in enumerate(wanted, 1):
        if network in done:
            continue
        share, kinds, rung, distil = network
        choice = Choice(share, kinds, plain, distil, 1, rung)
        with opened(recipe_of(base, choice), args.work, plain_int8=plain) as given:
            steered = prune_and_train(given)
            trials, _ = measure(given, steered.job, candidates_of(steered.job))
            rows = rows_of(trials)
        kept = {"steps": steered.rounds, "removed": steered.removed}
        kept["removed"] = [{"importance_lost": r["importance_lost"]} for r in steered.removed]
        add_record(file, {"network": network, "rows": rows, **kept})
        told(f"{number} of {len(wanted)}: {network}")


class Table:
    """The recorded configurations, as trials of a sweep."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.baseline = {"rows": lines[0]["rows"], "notes": [], "task": {}}
        measured = [row["id"] for row in lines[0]["rows"][1:] if usable(row)]
        self.results: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in lines[1:]:
            share, kinds, rung, distil = line["network"]
            steps = {"steps": line["steps"], "removed": line["removed"]}
            for row in line["rows"]:
                if usable(row) and row["id"] in measured:
                    key = self.key(share, kinds, rung, distil, row["id"])
                    self.results[key] = {"state": "done", "rows": [row], **steps}
        # An engine that failed for one network is left out for all: searches meet no hole.
        whole = [
            e for e in measured if len({k[:4] for k in self.results if k[4] == e}) == self.count
        ]
        self.engines = whole
        self.results = {k: v for k, v in self.results.items() if k[4] in whole}

    @property
    def count(self) -> int:
        return len({key[:4] for key in self.results})

    @staticmethod
    def key(share: float, kinds: str, rung: int, distil: bool, engine: str) -> tuple[Any, ...]:
        return round(share, 2), kinds, rung, distil if rung else None, engine

    def found(self) -> Any:
        from edgeml.compress.sweep_table import Found

        return Found(OBJECTIVES, 1, baselines={1: self.baseline})


def usable(row: dict[str, Any]) -> bool:
    return row.get("status", "measured") == "measured" and row.get("drop_points") is not None


def ours(table: Table, seed: int, trials: int, epochs: int) -> list[Any]:
    """The trials of the sweep's own search."""
    from edgeml.artifact.recipe import FinetuneStep, build_recipe
    from edgeml.compress.sweep_journal import SweepJournal
    from edgeml.compress.sweep_search import Search
    from edgeml.compress.sweep_space import KINDS, distributions, epochs_of
    from edgeml.compress.sweep_table import Done
    from optuna.distributions import FloatDistribution

    steps = [FinetuneStep(epochs=epochs).model_dump()]
    recipe = build_recipe({"model": "net.py:build", "steps": steps})
    space = distributions(table.engines, list(KINDS), [1])
    space["share"] = FloatDistribution(SHARES[-1], 1.0, step=0.1)
    found = table.found()
    search = Search(
        found, SweepJournal(space, OBJECTIVES, seed), lambda rung: epochs_of(recipe, rung)
    )
    search.remember(table.engines)
    ran = 0
    while ran < trials:
        step = search.next([])
        if step is None:
            break
        number, choice = len(found.trials), step.choice
        request = {"choice": asdict(choice), "promoted_from": step.parent}
        if step.dominated:
            result = {"state": "dominated", "reason": step.dominated}
            found.trials.append(Done(number, request, result))
            continue
        key = table.key(choice.share, choice.kinds, choice.rung, choice.distil, choice.engine)
        done = Done(number, request, table.results[key])
        if step.proposal is not None:
            step.proposal.becomes(number)
            step.proposal.tell(found.values(done.row))
        found.trials.append(done)
        ran += 1
    return [trial for trial in found.trials if trial.state == "done"]


def chance(table: Table, seed: int, trials: int, rungs: tuple[int, ...] = (0, 1, 2)) -> list[Any]:
    """As many trials, uniform over the measured configurations of these rungs."""
    from edgeml.compress.sweep_table import Done

    keys = [key for key in table.results if key[2] in rungs]
    chosen = np.random.default_rng(seed).permutation(len(keys))[:trials]
    return [
        Done(n, {"choice": {"rung": keys[i][2]}}, table.results[keys[i]])
        for n, i in enumerate(chosen)
    ]


def volume(found: Any, trials: list[Any]) -> float:
    values = [v for row in found.baseline_rows() if (v := found.values(row))]
    values += [v for trial in trials if (v := found.values(trial.row))]
    return found.scale().volume(np.array(values))


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
    from edgeml.train.paired_interval import t_quantile

    mean = float(values.mean())
    half = t_quantile(0.975, len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def replay(args: argparse.Namespace) -> None:
    lines = records(table_file(args.quick))
    if len(lines) < 2:
        sys.exit("nothing is recorded: python benchmarks/sweep_replay.py record")
    table, epochs = Table(lines), lines[0]["epochs"]
    found = table.found()
    found_by: dict[str, list[float]] = {"ours": [], "random": [], "random, long training only": []}
    trained: dict[str, list[int]] = {name: [] for name in found_by}
    cost = (0, max(1, round(0.15 * epochs)), epochs)
    for seed in range(args.seeds):
        runs = {
            "ours": ours(table, seed, args.trials, epochs),
            "random": chance(table, seed, args.trials),
            "random, long training only": chance(table, seed, args.trials, (2,)),
        }
        for name, trials in runs.items():
            found_by[name].append(volume(found, trials))
            trained[name].append(sum(cost[t.request["choice"]["rung"]] for t in trials))
    everything = chance(table, 0, len(table.results))
    ends = {"baselines": volume(found, []), "all": volume(found, everything)}
    told_of = {
        name: {
            "hypervolume": t_interval(np.array(values)),
            "epochs": float(np.mean(trained[name])),
            "ours less it": None
            if name == "ours"
            else t_interval(np.array(found_by["ours"]) - np.array(values)),
        }
        for name, values in found_by.items()
    }
    result = {
        "machine": lines[0]["machine"],
        "configurations": len(table.results),
        "seeds": args.seeds,
        "trials": args.trials,
        "reference point": list(found.scale().reference),
        "ends": ends,
        "searches": told_of,
        "values": found_by,
    }
    text = markdown(result)
    print(text)
    if not args.quick:
        (RESULTS / "sweep_replay.json").write_text(json.dumps(result, indent=2) + "\n")
        (RESULTS / "sweep_replay.md").write_text(text)


def markdown(result: dict[str, Any]) -> str:
    def told_of(three: tuple[float, float, float] | None) -> str:
        return "" if three is None else f"{three[0]:.4f} ({three[1]:.4f} to {three[2]:.4f})"

    body = [
        f"| {name} | {told_of(one['hypervolume'])} | {one['epochs']:.0f} | {told_of(one['ours less it'])} |"
        for name, one in result["searches"].items()
    ]
    ends, point = result["ends"], ", ".join(f"{v:g}" for v in result["reference point"])
    return "\n".join(
        [
            "# Replayed searches",
            "",
            f"{result['machine']['cpu']}. Made by `python benchmarks/sweep_replay.py record` and `replay`: "
            f"{result['configurations']} measured configurations, {result['seeds']} seeds, "
            f"{result['trials']} trials each. Hypervolume of the baselines and the trials, normalised; "
            f"reference point (points, share of the reference's p50, bytes): {point}. Without a trial "
            f"{ends['baselines']:.4f}, with all {ends['all']:.4f}. Means with 95 % intervals.",
            "",
            "| search | hypervolume | epochs trained | ours less it, paired |",
            "|---|---|---|---|",
            *body,
            "",
        ]
    )


def table_file(quick: bool) -> Path:
    return RESULTS / f"sweep_replay{'.quick' if quick else ''}.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("part", choices=["record", "replay"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("sweep-replay"))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=30)
    args = parser.parse_args()
    {"record": record, "replay": replay}[args.part](args)


if __name__ == "__main__":
    main()
