"""Whether a sweep's search beats random choice: searches replayed on configurations that are known.

    python benchmarks/sweep_replay.py record [--quick] [--work DIR]   # resumable; timings: run it alone
    python benchmarks/sweep_replay.py replay [--seeds 50] [--trials 30]
    python benchmarks/sweep_replay.py made-up [--seeds 50] [--trials 30] [--networks 8]   # resumable

record measures every configuration of a space of a small network (`sweep_record`): 5 shares × 3 kinds of
pruning × (no, short, long fine-tuning; the latter two with and without the teacher) × the engines of
this machine, to benchmarks/results/sweep_replay.jsonl, in about 30 minutes of one quiet core. --quick:
four networks and one epoch, to another file.

replay runs the sweep's own search (`compress.sweep_search`) and a random one on that table, from the
same baselines, with the same number of trials; and once more where time is bounded, to as many hours as
random took with this seed. A trial is one configuration with one of its rungs: what
ours trains further costs a trial again, and random draws uniformly, without repetition, from all measured
configurations of all rungs; a second random one draws from those of the long fine-tuning alone. What is
dominated by the latency table or out of its reach is not trained and is no trial, in a sweep as here;
random never draws it. Compared is the hypervolume of baselines and trials together over (points of
accuracy lost on validation, p50 as a share of the fp32 reference's, bytes), each from 0 (ideal) to the
reference point: 10 points, the slowest baseline's p50, the largest baseline's bytes; 1 would be the ideal
itself. The interval is
Student's t of the differences, seed by seed. `all` is what trying everything would reach; hours are what
the trials' networks (each trained once) and engines took when they were recorded.

made-up does the same on networks that are formulas with drawn numbers (`sweep_landscape`), 100 and on,
and 200 and on, whose engines answer each kind of pruning in their own way.

Both write benchmarks/results/sweep_replay*.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from budget_runs import RESULTS, records
from sweep_record import OBJECTIVES, network_of, record

# Of the seeds, replayed to random's hours, too: such a search is of many short trials.
TIMED = 10
RANDOM = {"random": (0, 1, 2), "random, long only": (2,)}


class Table:
    """Recorded configurations, as trials of a sweep."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        from edgeml.compress.sweep_table import OUT_OF_REACH, Found

        self.original, rest = lines[0], lines[1:]
        self.epochs = int(self.original["epochs"])
        baseline = {"rows": self.original["rows"], "notes": [], "task": {}}
        self.found: Callable[[], Found] = lambda: Found(OBJECTIVES, 1, baselines={1: baseline})
        self.beyond = {
            (line["share"], line["kinds"]): line for line in rest if line["state"] == OUT_OF_REACH
        }
        measured = [line for line in rest if line["state"] == "done" and scored(line["row"])]
        by_engine: dict[str, set[Any]] = {}
        for line in measured:
            by_engine.setdefault(line["engine"], set()).add(network_of(line))
        # An engine that failed for one network is left out for all: searches meet no hole.
        most = max(map(len, by_engine.values()))
        baselines = {row["id"] for row in self.original["rows"][1:] if scored(row)}
        self.engines = [e for e, n in by_engine.items() if len(n) == most and e in baselines]
        self.lines = {
            self.key(*network_of(line), line["engine"]): line
            for line in measured
            if line["engine"] in self.engines
        }
        found = self.found()
        self.values = {key: found.values(self.row(line["row"])) for key, line in self.lines.items()}
        self.shares = sorted({line["share"] for line in rest}, reverse=True)

    @staticmethod
    def row(values: dict[str, Any]) -> Any:
        from edgeml.artifact.result_row import EngineRow

        return EngineRow.model_validate(values)

    @staticmethod
    def key(share: float, kinds: str, rung: int, distil: bool, engine: str) -> tuple[Any, ...]:
        return round(share, 2), kinds, rung, distil if rung else None, engine

    def result(self, choice: Any) -> dict[str, Any]:
        """What a trial of it would find."""
        beyond = self.beyond.get((choice.share, choice.kinds))
        if beyond is not None:
            return beyond
        line = self.lines[self.key_of(choice)]
        return {**line, "rows": [line["row"]]}

    def key_of(self, choice: Any) -> tuple[Any, ...]:
        return self.key(choice.share, choice.kinds, choice.rung, choice.distil, choice.engine)

    def volume(self, keys: list[tuple[Any, ...]]) -> float:
        """Of the baselines and these configurations."""
        from edgeml.compress.front import ranks

        found = self.found()
        values = [v for row in found.baseline_rows() if (v := found.values(row))]
        points = np.array([*values, *(self.values[key] for key in keys)])
        return found.scale().volume(points[ranks(points) == 0])

    def hours(self, keys: list[tuple[Any, ...]]) -> float:
        """Of their networks, each once, and their engines."""
        networks = {key[:4]: self.lines[key]["network_seconds"] for key in keys}
        return (sum(networks.values()) + sum(self.lines[k]["seconds"] for k in keys)) / 3600


def scored(row: dict[str, Any]) -> bool:
    return row.get("status") == "measured" and row.get("drop_points") is not None


def ours(
    table: Table, seed: int, trials: int | None = None, hours: float | None = None
) -> list[tuple[Any, ...]]:
    """The configurations that the sweep's own search tries, as many or for as long.

    Args:
        hours: a trial that would end later counts nothing, as in a sweep.
    """
    from edgeml.artifact.recipe import FinetuneStep, build_recipe
    from edgeml.compress.sweep_journal import SweepJournal
    from edgeml.compress.sweep_search import Search
    from edgeml.compress.sweep_space import distributions, epochs_of, every_choice, rungs_of
    from edgeml.compress.sweep_table import Done

    steps = [FinetuneStep(epochs=table.epochs).model_dump()]
    recipe = build_recipe({"model": "net.py:build", "steps": steps})
    found = table.found()
    search = Search(
        found,
        SweepJournal(distributions(table.engines, [1]), OBJECTIVES),
        every_choice(table.engines, [1], rungs_of(recipe), table.shares),
        lambda rung: epochs_of(recipe, rung),
        seed,
        timed=hours is not None,
    )
    search.remember()
    spent = 0.0
    while trials is None or len(found.counted()) < trials:
        step = search.next([], None if hours is None else 3600 * hours - spent)
        if step is None:
            break
        number = len(found.trials)
        request = {"choice": asdict(step.choice), "promoted_from": step.parent}
        result = table.result(step.choice)
        if step.dominated:
            result = {"state": "dominated", "reason": step.dominated}
        elif result["state"] == "done":
            before = {t.choice.network for t in found.trials if t.state == "done"}
            training = 0.0 if step.choice.network in before else result["network_seconds"]
            result["seconds"] += training
        spent += result.get("seconds", 0.0)
        if hours is not None and spent > 3600 * hours:
            break
        done = Done(number, request, result)
        if step.proposal is not None:
            step.proposal.becomes(number)
            step.proposal.tell(found.values(done.row))
        found.trials.append(done)
    return [table.key_of(trial.choice) for trial in found.trials if trial.state == "done"]


def chance(table: Table, seed: int, trials: int, rungs: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """As many configurations, uniform over the measured ones of these rungs."""
    keys = [key for key in table.lines if key[2] in rungs]
    chosen = np.random.default_rng(seed).permutation(len(keys))[:trials]
    return [keys[i] for i in chosen]


def compared(table: Table, seeds: range, trials: int) -> dict[str, Any]:
    """Every search on one table: volume by seed, mean hours and trials by rung."""
    runs = {n: [chance(table, s, trials, RANDOM[n]) for s in seeds] for n in RANDOM}
    runs["ours"] = [ours(table, s, trials) for s in seeds]
    times = [table.hours(keys) for keys in runs["random"]]
    fewer = seeds[:TIMED]
    runs["ours, timed"] = [ours(table, s, hours=times[i]) for i, s in enumerate(fewer)]
    told = {
        name: {
            "volume": [round(table.volume(keys), 6) for keys in one],
            "hours": float(np.mean([table.hours(keys) for keys in one])),
            "rungs": [float(np.mean([sum(k[2] == r for k in ks) for ks in one])) for r in range(3)],
        }
        for name, one in runs.items()
    }
    ends = {"baselines": table.volume([]), "all": table.volume(list(table.lines))}
    return {"searches": told, "configurations": len(table.lines), **ends}


def t_interval(values: list[float] | np.ndarray) -> tuple[float, float, float]:
    from edgeml.train.paired_interval import t_quantile

    values = np.asarray(values)
    mean = float(values.mean())
    half = t_quantile(0.975, len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def replay(args: argparse.Namespace) -> None:
    lines = records(table_file(args.quick))
    if len(lines) < 2:
        sys.exit("nothing is recorded: python benchmarks/sweep_replay.py record")
    result = compared(Table(lines), range(args.seeds), args.trials)
    text = markdown(f"{lines[0]['machine']['cpu']}, recorded", {"recorded": result}, args)
    keep("sweep_replay", {"machine": lines[0]["machine"], **result}, text, args.quick)


def made_up(args: argparse.Namespace) -> None:
    from sweep_landscape import MIXED, landscape

    file = RESULTS / "sweep_replay_made_up.json"
    asked = {"seeds": args.seeds, "trials": args.trials, "networks": args.networks}
    kept = json.loads(file.read_text()) if file.is_file() and not args.quick else {}
    results = kept.get("networks", {}) if kept.get("asked") == asked else {}
    half = args.networks // 2
    for number in (*range(100, 100 + args.networks - half), *range(MIXED, MIXED + half)):
        if str(number) not in results:
            table = Table(landscape(number))
            results[str(number)] = compared(table, range(args.seeds), args.trials)
            text = markdown(
                "Made-up networks (`sweep_landscape.py`), nothing measured", results, args
            )
            keep("sweep_replay_made_up", {"asked": asked, "networks": results}, text, args.quick)


def keep(name: str, result: dict[str, Any], text: str, quick: bool) -> None:
    print(text, flush=True)
    if not quick:
        for end, said in ((".json", json.dumps(result) + "\n"), (".md", text)):
            part = RESULTS / f"{name}{end}.part"
            part.write_text(said)
            part.replace(RESULTS / f"{name}{end}")


def markdown(what: str, results: dict[Any, dict[str, Any]], args: argparse.Namespace) -> str:
    lines = [
        "# Replayed searches",
        "",
        f"{what}. Made by `python benchmarks/sweep_replay.py {args.part}`: {args.seeds} seeds, "
        f"{args.trials} trials each, further training of a configuration counted as a trial. Hypervolume of the "
        "baselines and the trials, normalised; reference point: 10 points, the slowest baseline's p50, the "
        "largest baseline's bytes. *Timed*: as many hours as random took, however many trials, of the "
        f"first {TIMED} seeds. Differences "
        "are paired by seed, with 95 % intervals. Trials are without, with short and with long training.",
        "",
        "| network | configurations | none | random | random, long only | ours | ours, timed | all "
        "| ours less random | ours less long only | timed less random | trials: random, ours, timed "
        "| hours: random, long only, ours |",
        "|" + "---|" * 13,
    ]
    pairs = [("ours", "random"), ("ours", "random, long only"), ("ours, timed", "random")]
    for name, one in results.items():
        told = one["searches"]
        volumes = {n: np.array(s["volume"]) for n, s in told.items()}
        less = []
        for a, b in pairs:
            n = min(len(volumes[a]), len(volumes[b]))
            less.append(t_interval(volumes[a][:n] - volumes[b][:n]))
        rungs = [
            "/".join(f"{n:.0f}" for n in told[s]["rungs"])
            for s in ("random", "ours", "ours, timed")
        ]
        hours = [f"{told[s]['hours']:.1f}" for s in ("random", "random, long only", "ours")]
        cells = [
            f"{name} | {one['configurations']} | {one['baselines']:.4f}",
            *(f"{volumes[n].mean():.4f}" for n in (*RANDOM, "ours", "ours, timed")),
            f"{one['all']:.4f}",
            *(f"{m:+.4f} ({low:+.4f} to {high:+.4f})" for m, low, high in less),
            *(", ".join(rungs), ", ".join(hours)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def table_file(quick: bool) -> Path:
    return RESULTS / f"sweep_replay{'.quick' if quick else ''}.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("part", choices=["record", "replay", "made-up"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("sweep-replay"))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--networks", type=int, default=8)
    args = parser.parse_args()
    if args.part == "record":
        record(table_file(args.quick), args.work, args.quick)
    else:
        {"replay": replay, "made-up": made_up}[args.part](args)


if __name__ == "__main__":
    main()
