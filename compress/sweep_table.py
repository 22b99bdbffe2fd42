"""A sweep's rows and trials as users read them, written anew from the folders of the trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from ..artifact.recipe import Recipe
from ..artifact.result_row import EngineRow, ResultTable
from .budget import Budget, judge
from .front import Scale, promoted
from .sweep_space import Choice

# The id of the original itself among the rows of a request.
REFERENCE = "reference"
# Where the volume of a front ends: the points of the metric that may be lost, the p50 of the original's
# slowest engine (torch is no measure: it may take ten times as long), its largest files and the reference's
# millijoules. A front beyond it counts nothing.
REFERENCE_DROP_POINTS = 10.0
# Engines of trials that are timed together at the end, at most: each costs all others' rounds.
FINALISTS = 16
_INT8 = {"nncf": "NNCF INT8", "onnxruntime": "ONNX Runtime INT8"}


# Trials of these states may be tried again: they did not come to an end of their own.
CUT_SHORT = ("lost", "out of time")
# By the latency table no pruning of these kinds is so fast; ``least`` of the result is the share that is.
OUT_OF_REACH = "out of reach"


def folder_name(number: int) -> str:
    """A trial's folder, and its part of a row's id."""
    return f"{number:04}"


def engine_of(row: EngineRow) -> str:
    """The candidate that a row of a trial or of the original was, as the bundle's folder is called."""
    if row.trial is not None:
        return row.id.removeprefix(f"trial-{folder_name(row.trial)}-")
    return row.id.removeprefix("original-").removesuffix(f"-t{row.params['threads']}")


@dataclass(frozen=True)
class Done:
    """A trial that finished: its number, what was asked and what it found."""

    number: int
    request: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def state(self) -> str:
        return str(self.result["state"])

    @cached_property
    def choice(self) -> Choice:
        return Choice(**self.request["choice"])

    @property
    def row(self) -> EngineRow | None:
        """Its one engine; None where it has none."""
        rows = self.result.get("rows") or []
        return EngineRow.model_validate(rows[0]) if self.state == "done" and rows else None


@dataclass
class Found:
    """All that a sweep knows.

    Attributes:
        baselines: by thread count the result of the original's engines.
        final: what the last work found; None before it.
        points: row id → its bundle, relative to the sweep, of what is on the front.
        tested: how often test was read, and what it said of each engine the first time.
    """

    objectives: Sequence[str]
    threads: int
    baselines: dict[int, dict[str, Any]] = field(default_factory=dict)
    trials: list[Done] = field(default_factory=list)
    final: dict[str, Any] | None = None
    points: dict[str, str] = field(default_factory=dict)
    tested: dict[str, Any] = field(default_factory=dict)

    def ended(self) -> list[Done]:
        """Trials that came to an end of their own; what was cut short may be tried again."""
        return [trial for trial in self.trials if trial.state not in CUT_SHORT]

    def counted(self) -> list[Done]:
        """Trials that ran to their end: what ``--trials`` counts."""
        return [t for t in self.ended() if t.state not in ("dominated", OUT_OF_REACH)]

    def settled(self) -> set[tuple[float, str, int]]:
        """Share, kinds of pruning and threads of networks that a row already calls dominated."""
        there = [trial.choice for trial in self.trials if trial.state == "dominated"]
        return {(one.share, one.kinds, one.threads) for one in there}

    def least(self) -> dict[tuple[str, int], float]:
        """By kinds of pruning and threads the share that is known to be the lowest within reach."""
        known: dict[tuple[str, int], float] = {}
        for trial in self.trials:
            if trial.state == OUT_OF_REACH:
                one = trial.choice
                # A little above the share that was refused, where the table did not say how much.
                least = trial.result.get("least") or one.share + 1e-6
                where = one.kinds, one.threads
                known[where] = max(known.get(where, 0.0), least)
        return known

    def values(self, row: EngineRow | None) -> list[float] | None:
        """What the search minimises: points lost, share of the reference's p50, bytes, millijoules."""
        if row is None or row.drop_points is None or row.speedup is None or not row.speedup.value:
            return None
        values = {
            "accuracy": row.drop_points.value,
            "latency": 1 / row.speedup.value,
            "size": float(row.size_bytes or 0) or None,
            # A counter that did not move over a short run says nothing.
            "energy": (row.energy_gross_mj.value or None) if row.energy_gross_mj else None,
        }
        wanted = [values[name] for name in self.objectives]
        return None if None in wanted else wanted

    def scale(self) -> Scale:
        """From nothing lost, no time and no bytes to the reference point."""
        rows = [row for row in self.baseline_rows() if row.params["threads"] == self.threads]
        sizes = [row.size_bytes for row in rows if row.size_bytes]
        times = [1 / row.speedup.value for row in rows if row.speedup and row.speedup.value]
        ends = {"accuracy": REFERENCE_DROP_POINTS, "latency": max(times, default=1.0)}
        ends["size"] = float(max(sizes, default=1))
        if "energy" in self.objectives:
            energy = self.reference_row().energy_gross_mj
            ends["energy"] = energy.value if energy and energy.value else 1.0
        reference = tuple(ends[name] for name in self.objectives)
        return Scale((0.0,) * len(reference), reference)

    def dominated(self, choice: Choice) -> str | None:
        """Why a network is not worth training: another of the same kinds of pruning keeps no less
        importance and is no slower, by the latency table as its engine settled it. Known where a trial
        of the same structure has run.

        Importances of other kinds of pruning have another scale.
        """
        alike = [
            (trial, network)
            for trial in self.counted()
            if (trial.choice.kinds, trial.choice.threads) == (choice.kinds, choice.threads)
            and (network := network_of(trial))
        ]
        # Rungs, engines, and with or without a teacher share the structure.
        mine = next(
            (network for trial, network in alike if trial.choice.share == choice.share), None
        )
        for other, theirs in alike:
            if mine is None or other.choice.share == choice.share:
                continue
            better = all(a <= b for a, b in zip(theirs, mine, strict=True))
            # Of two that are the same the one pruned to the larger share stays.
            if better and (theirs != mine or other.choice.share > choice.share):
                return (
                    f"the network of trial {other.number} takes {theirs[0]:.1%} of plain INT8's time and "
                    f"loses {theirs[1]:.3g} of importance, this one {mine[0]:.1%} and {mine[1]:.3g}: not trained"
                )
        return None

    def baseline_rows(self) -> list[EngineRow]:
        """Engines of the original, each thread count's under names of their own."""
        rows = []
        for threads, result in self.baselines.items():
            for values in result["rows"][1:]:
                row = EngineRow.model_validate(values)
                row.params = {
                    "latency": None,
                    "precision": row.precision,
                    "runtime": row.runtime,
                    "route": row.route,
                    "threads": threads,
                }
                row.baseline, row.timed = _baseline_name(row), "by trial"
                row.id = f"original-{row.id}-t{threads}"
                rows.append(row)
        return rows

    def trial_rows(self) -> list[EngineRow]:
        """A row a finished trial, those without an engine among them; of what a kill took along none."""
        rows = []
        for trial in self.trials:
            if trial.state == "lost":
                continue
            row = trial.row
            if row is None:
                params = trial.request["params"]
                row = EngineRow(
                    id=params["engine"],
                    runtime=params["runtime"] or "-",
                    precision=params["precision"] or "-",
                    route=params["route"],
                    status="failed",
                    reason=trial.result.get("reason"),
                )
            else:
                row.timed = "by trial"
            row.params = {k: v for k, v in trial.request["params"].items() if k != "engine"}
            row.params["epochs"] = trial.result.get("epochs", row.params["epochs"])
            row.id = f"trial-{folder_name(trial.number)}-{row.id}"
            row.trial, row.rung = trial.number, trial.request["choice"]["rung"]
            row.recipe_hash = trial.request["recipe_hash"]
            rows.append(row)
        return rows

    def noise(self) -> set[str]:
        """What the trials' own benches warned of."""
        results = [*self.baselines.values(), *(trial.result for trial in self.trials)]
        return {line for result in results for line in result.get("noise") or []}

    def reference_row(self) -> EngineRow:
        row = EngineRow.model_validate(self.baselines[self.threads]["rows"][0])
        row.baseline, row.timed = "fp32 reference", "by trial"
        row.params = {"threads": self.threads}
        return row

    def finalists(self) -> list[EngineRow]:
        """What is timed together: the original's engines, and the trials' best by point values."""
        rows = [row for row in self.trial_rows() if self.values(row)]
        table = np.array([self.values(row) for row in rows])
        chosen = islice(promoted(table, self.scale()), FINALISTS)
        originals = [row for row in self.baseline_rows() if row.status == "measured"]
        return [*originals, *(rows[i] for i in chosen)]


def network_of(trial: Done) -> tuple[float, float] | None:
    """Share of plain INT8's p50 and importance lost of the pruned network; None where it is not known."""
    steps, removed = trial.result.get("steps"), trial.result.get("removed")
    if not steps or not removed or steps[0].get("ratio") is None:
        return None
    return float(steps[0]["ratio"]), float(sum(row["importance_lost"] for row in removed))


def _baseline_name(row: EngineRow) -> str:
    if row.precision != "int8":
        return row.precision
    route = str(row.route or row.runtime)
    return _INT8.get(route.split()[0], f"{route} INT8")


def table_of(
    found: Found, recipe: Recipe, settings: Mapping[str, Any], machine: dict[str, Any], state: str
) -> ResultTable:
    """Everything in one table: the front from fast to slow, baselines, the rest, what failed."""
    task = found.baselines[found.threads]["task"]
    rows = [found.reference_row(), *found.baseline_rows(), *found.trial_rows()]
    final = found.final if state == "finished" else None
    tested = found.tested.get("rows") or {}
    for row in rows:
        row.test = tested.get(row.id)  # scored once: it stays so, whatever a resumption finds
        if final:
            _add_final(row, final, found)
    rows.sort(key=_order)
    counts: dict[str, int] = {}
    for trial in found.trials:
        counts[trial.state] = counts.get(trial.state, 0) + 1
    table = ResultTable(
        command="sweep",
        **task,
        rows=rows,
        machine=machine,
        settings={
            **settings,
            "counts": counts,
            "state": state,
            "hypervolume": _volume(found, rows),
            "test_reads": int(found.tested.get("reads") or 0),
        },
        warnings=[
            *found.baselines[found.threads]["notes"],
            *(final["warnings"] if final else []),
            *_reads_told(found.tested),
        ],
    )
    table.verdict_line = _line(rows, recipe, state)
    return table


def trial_entries(found: Found, rows: Sequence[EngineRow]) -> list[dict[str, Any]]:
    """Lines of ``trials.jsonl``."""
    ids = {row.trial: row.id for row in rows if row.trial is not None}
    return [
        {
            "trial": trial.number,
            "rung": trial.choice.rung,
            "params": trial.request["params"],
            "recipe_hash": trial.request["recipe_hash"],
            "state": trial.state,
            "reason": trial.result.get("reason"),
            "seconds": trial.result.get("seconds"),
            "rows": [ids[trial.number]] if trial.number in ids else [],
            "promoted_from": trial.request.get("promoted_from"),
        }
        for trial in found.trials
    ]


def _reads_told(tested: Mapping[str, Any]) -> list[str]:
    """That test was read more than once, and that no engine's score is of a second reading."""
    reads = int(tested.get("reads") or 0)
    if reads < 2:
        return []
    return [
        f"the test split was read {reads} times, because the sweep was gone on with; each engine keeps "
        "what its first reading said (`read` in its `test`), and nothing was chosen by it"
    ]


def _add_final(row: EngineRow, final: Mapping[str, Any], found: Found) -> None:
    values = final["rows"].get(row.id)
    if values:
        noise = found.noise()  # of the trial's own bench, whose times are replaced here
        row.warnings = [line for line in row.warnings if line not in noise]
        measured = EngineRow.model_validate(
            {"id": row.id, "runtime": "-", "precision": "-", **values}
        )
        for name in values:
            setattr(row, name, getattr(measured, name))
    if row.id in final["failed"]:
        row.reason = f"at the end: {final['failed'][row.id]}"
        row.warnings.append(row.reason)
    elif not values and row.trial is not None and row.status == "measured":
        row.warnings.append(
            "not timed with the others at the end: by its own trial's values others are better"
        )
    row.bundle = found.points.get(row.id)


def _volume(found: Found, rows: Sequence[EngineRow]) -> dict[str, Any]:
    """Of the front, and while there is none of everything measured."""
    front = [row for row in rows if row.front in ("yes", "cannot tell")] or rows
    values = [v for row in front if row.status == "measured" and (v := found.values(row))]
    scale = found.scale()
    return {
        "value": round(scale.volume(np.array(values)), 6) if values else 0.0,
        "reference": list(scale.reference),
        "ideal": list(scale.ideal),
        "normalised": True,
    }


def _order(row: EngineRow) -> tuple[int, float]:
    p50 = row.latency_p50_ms.value if row.latency_p50_ms else None
    place = (
        4
        if row.status == "failed"
        else 0
        if row.front == "yes"
        else 1
        if row.front == "cannot tell"
        else 2
        if row.baseline
        else 3
    )
    return place, float("inf") if p50 is None else p50


def within_budget(rows: Sequence[EngineRow], recipe: Recipe) -> bool:
    """Whether an engine that was timed with the others keeps the accuracy budget at least plausibly."""
    if recipe.max_drop_points is None:
        return True
    budget = Budget(recipe.max_drop_points)
    return any(
        row.front in ("yes", "cannot tell")
        and row.drop_points is not None
        and row.drop_points.value is not None
        and judge(row.drop_points, budget) != "missed"
        for row in rows
    )


def _line(rows: Sequence[EngineRow], recipe: Recipe, state: str) -> str:
    if state != "finished":
        return f"the sweep is {state}: no front yet"
    front = [row for row in rows if row.front == "yes"]
    maybe = sum(row.front == "cannot tell" for row in rows)
    timed = sum(row.timed == "together" for row in rows)
    line = f"front: {len(front)} of {timed} engines that were timed together"
    line += f", {maybe} more cannot be told from it" if maybe else ""
    if within_budget(rows, recipe):
        return line
    scored = [row for row in rows if row.drop_points and row.drop_points.value is not None]
    nearest = min(scored, key=lambda row: row.drop_points.value, default=None)
    told = f"; nearest: {nearest.id}, {nearest.drop_points.value:.2f} points" if nearest else ""
    return f"{line}; MISSED: none of it loses at most {recipe.max_drop_points:g} points{told}"
