"""A sweep: many configurations of one network, each tried in a process of its own, and their front.

The search (`sweep_search`) proposes a pruned network, its engine and how long it is fine-tuned (not, shortly,
long). At the end the best are timed all together and judged.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import read_json, write_json
from ..artifact.content_hash import hash_json
from ..artifact.interrupt import raise_if_interrupted
from ..artifact.machine import usable_threads
from ..artifact.recipe import Recipe, build_recipe
from ..artifact.result_row import EngineRow, ResultTable
from ..artifact.sweep_directory import (
    BUNDLES,
    REQUEST,
    RESULT,
    TESTED,
    SweepDirectory,
    read_state,
)
from ..artifact.target import find_target
from ..errors import EdgemlError, InputError, MissingPart
from ..runtime.energy.meter import find_meter
from . import search
from .sweep_child import POLL_S, Child
from .sweep_journal import SweepJournal
from .sweep_points import MANIFEST, bundle_of, drop_points, keep_point
from .sweep_search import Next, Search
from .sweep_space import (
    RUNGS,
    Engine,
    distributions,
    epochs_of,
    every_choice,
    recipe_of,
    rungs_of,
    threads_tried,
)
from .sweep_table import Done, Found, folder_name, table_of, trial_entries, within_budget
from .train_split import with_train_split

OBJECTIVES = ("accuracy", "latency", "size", "energy")
USUAL = OBJECTIVES[:3]
# How often the time spent is written down while trials run: so much of it may a kill lose.
REMEMBER_S = 30.0
Log = Callable[[str], None]


@dataclass(frozen=True)
class SweepResult:
    """What `run_sweep` gives back; `exit_code` is 3 where nothing keeps the accuracy budget."""

    table: ResultTable
    exit_code: int


def parse_objectives(words: str) -> tuple[str, ...]:
    """``accuracy,latency,size`` in this order, whatever the order given.

    Raises:
        InputError: an unknown one, or one that a front cannot do without is missing.
    """
    named = [word.strip() for word in words.split(",")]
    unknown = next((word for word in named if word not in OBJECTIVES), None)
    if unknown is not None:
        raise InputError(f"--objectives {unknown!r} is none; give some of {','.join(OBJECTIVES)}")
    if not {"accuracy", "latency"} <= set(named):
        raise InputError("--objectives needs accuracy and latency; size and energy may be left out")
    return tuple(word for word in OBJECTIVES if word in named)


def stored_sweep(root: Path) -> tuple[Recipe, dict[str, Any]]:
    """What a sweep was asked, to go on with it.

    Raises:
        InputError: the folder is no sweep.
    """
    state = read_state(root) if root.exists() else None
    if state is None:
        raise InputError(f"{root} is no sweep; start one with `edgeml sweep MODEL … -o {root}`")
    return build_recipe(state["recipe"], f"{root}'s recipe"), state


def run_sweep(
    recipe: Recipe,
    output: Path,
    objectives: Sequence[str] = USUAL,
    *,
    trials: int | None = None,
    time_s: float | None = None,
    workers: int = 1,
    log: Log = lambda line: None,
    trust_code: bool = False,
) -> SweepResult:
    """Try configurations until `trials` of them or `time_s` seconds are spent, then fix the front.

    Args:
        output: the sweep's directory; one of the same recipe is gone on with, and repeats no trial
            that finished.
        trials: in all, those of earlier calls included.
        time_s: of the search, those of earlier calls included; a trial that runs by then is ended.
        workers: trials at a time. Their trainings share the machine; each timing has it alone.

    Raises:
        InputError: model, data or output cannot be used, or neither bound is given.
        MissingPart: energy is an objective, and this machine has no meter.
        EdgemlError: the original's engines could not be built.
    """
    if trials is None and time_s is None:
        raise InputError("say how long: --trials 40, or --time 2h")
    if not find_target(recipe.target).this_machine:
        raise InputError(f"--target {recipe.target}: a sweep times engines on this machine only")
    if "energy" in objectives:
        _refuse_without_meter()
    # Once for all trials, so that what one of them trains on none is judged on.
    model = Path(recipe.model)
    weights = model.suffix != ".onnx" and not (model / "model.onnx").is_file()
    recipe = with_train_split(recipe, will_train=weights)
    # Threads too: the search's space cannot change when fewer cores are left to a resumed sweep.
    asked = {"objectives": list(objectives), "threads_tried": list(threads_tried(recipe))}
    with SweepDirectory(output, recipe, asked) as directory:
        directory.remember(trials=trials, time_s=time_s)
        sweep = _Sweep(
            recipe, directory, tuple(objectives), trials, time_s, workers, log, trust_code
        )
        try:
            sweep.baselines()
            sweep.search()
            sweep.finish()
        except BaseException:
            sweep.publish("interrupted")
            raise
        table = sweep.publish("finished")
    return SweepResult(table, 0 if within_budget(table.rows, recipe) else 3)


def _refuse_without_meter() -> None:
    with find_meter("cpu") as meter:
        if meter.reason is not None:
            raise MissingPart(
                f"--objectives energy: it cannot be measured here: {meter.reason}; leave it out, or measure "
                "points of the front on a device that has a meter (`edgeml deploy sweep/points/ID --to …`)"
            )


@dataclass(frozen=True)
class _Running:
    """A trial in flight."""

    number: int
    step: Next
    request: dict[str, Any]
    child: Child


class _Sweep:
    """One run of the driver over a sweep's directory."""

    def __init__(
        self,
        recipe: Recipe,
        directory: SweepDirectory,
        objectives: tuple[str, ...],
        trials: int | None,
        time_s: float | None,
        workers: int,
        log: Log,
        trust_code: bool,
    ) -> None:
        self.recipe, self.directory, self.objectives = recipe, directory, objectives
        self.trials, self.time_s, self.workers = trials, time_s, workers
        self.log, self.trust_code = log, trust_code
        self.threads = usable_threads(recipe.threads)
        self.found = Found(objectives, self.threads)
        self.began = time.monotonic()
        self.before = float(directory.facts.get("seconds") or 0.0)
        self.found.trials = [*self._stored()]
        self.found.tested = read_json(directory.root / TESTED) or {}

    def _stored(self) -> list[Done]:
        """Trials of earlier processes; one without a result was in flight when its driver ended."""
        folder = self.directory.root / "trials"
        found = []
        for path in sorted(folder.glob("[0-9]*")) if folder.is_dir() else []:
            request = read_json(path / REQUEST)
            if request is None:
                shutil.rmtree(path, ignore_errors=True)  # nothing had begun
                continue
            result = read_json(path / RESULT)
            if result is None:
                result = {"state": "lost", "reason": "in flight when the sweep ended", "seconds": 0}
                write_json(path / RESULT, result)
                shutil.rmtree(path / BUNDLES, ignore_errors=True)
                shutil.rmtree(path / "work.part", ignore_errors=True)
            found.append(Done(int(path.name), request, result))
        return found

    def seconds(self) -> float:
        """Spent so far, by earlier calls too."""
        return self.before + time.monotonic() - self.began

    def _left(self) -> float | None:
        return None if self.time_s is None else max(0.0, self.time_s - self.seconds())

    def _over(self, running: int) -> bool:
        begun = len(self.found.counted()) + running
        return (self.trials is not None and begun >= self.trials) or self._left() == 0.0

    # The original's engines.

    def baselines(self) -> None:
        """Measure every engine of the original once for each thread count."""
        for threads in threads_tried(self.recipe):
            name = f"original-t{threads}"
            recipe = self.recipe.model_copy(update={"threads": threads, "time_s": None})
            result = self._run(
                name, "baselines", recipe, f"the original's engines, {threads} threads"
            )
            if result["state"] != "done":
                folder = self.directory.root / "trials"
                (folder / name / RESULT).unlink()  # a new call tries again
                if result.get("bad_input") and not any(folder.glob(f"*/{RESULT}")):
                    shutil.rmtree(folder)  # a mended command is another sweep: nothing is left
                raise _refused(result)
            self.found.baselines[threads] = result
            self.directory.remember(**result["facts"])
        self.publish("running")

    # The search.

    def search(self) -> None:
        """Run trials, `workers` at a time, until the sweep is over or the space is."""
        engines = self._engines()
        baseline = self.found.baselines[self.threads]
        if not baseline["trainable"]:
            self.log("note: an ONNX file has no weights to train: only its engines are compared")
            return
        if baseline["plain_int8"] is None or not engines:
            raise EdgemlError(
                "no INT8 engine of the original was built, which pruning is measured against; "
                f"see {self.directory.root / 'trials'}"
            )
        threads = threads_tried(self.recipe)
        file = self.directory.root / "journal.log"
        chooser = Search(
            self.found,
            SweepJournal(distributions(list(engines), threads), self.objectives, file),
            every_choice(list(engines), threads, rungs_of(self.recipe)),
            lambda rung: epochs_of(self.recipe, rung),
            self.recipe.seed,
            timed=self.time_s is not None,
        )
        chooser.remember()
        running: list[_Running] = []
        changed = True  # nothing new can be begun while nothing ends
        try:
            while running or changed:
                raise_if_interrupted()
                while changed and len(running) < self.workers and not self._over(len(running)):
                    step = chooser.next([one.step for one in running], self._left())
                    changed = step is not None
                    if step is None and not running:
                        self.log("every configuration was tried")
                    elif step is not None:
                        running += self._begin(step, engines, len(running))
                changed = False
                for one in list(running):
                    result = one.child.poll()
                    if result is not None:
                        running.remove(one)
                        self._ended(one, result)
                        changed = True
                if running and not changed:
                    if self.seconds() - (self.directory.facts.get("seconds") or 0.0) > REMEMBER_S:
                        self.directory.remember(seconds=round(self.seconds(), 1))
                    time.sleep(POLL_S)
        except BaseException:
            for one in running:
                one.child.kill()
            raise

    def _engines(self) -> dict[str, Engine]:
        """Ways to run a network that worked for the original with every thread count, by id."""
        lists = []
        for result in self.found.baselines.values():
            rows = [EngineRow.model_validate(values) for values in result["rows"][1:]]
            lists.append(
                {
                    row.id: Engine(row.id, row.runtime, row.precision, row.route)
                    for row in rows
                    if row.status == "measured"
                }
            )
        return {name: one for name, one in lists[0].items() if all(name in m for m in lists)}

    def _begin(self, step: Next, engines: dict[str, Engine], running: int) -> list[_Running]:
        """Start a trial; none where it need not be run."""
        number, choice = len(self.found.trials) + running, step.choice
        while (self.directory.root / "trials" / folder_name(number)).exists():
            number += 1
        recipe = recipe_of(self.recipe, choice)
        extra = {
            "promoted_from": step.parent,
            "choice": asdict(choice),
            "params": choice.params(engines, epochs_of(self.recipe, choice.rung)),
            "recipe_hash": self.directory.keep_recipe(recipe),
            "plain_int8": self.found.baselines[choice.threads]["plain_int8"],
        }
        name = folder_name(number)
        if step.dominated:
            result = {"state": "dominated", "reason": step.dominated, "seconds": 0}
            folder = self.directory.trial(name)
            write_json(folder / REQUEST, extra)
            write_json(folder / RESULT, result)
            self.found.trials.append(Done(number, extra, result))
            self.log(f"trial {number} dominated: {step.dominated}")
            return []
        if step.proposal is not None:
            step.proposal.becomes(number)
        share = f"pruned to {choice.share:.0%} ({choice.kinds})"
        line = f"{share}, {choice.engine}, {choice.threads} threads"
        self.log(f"trial {number}, {RUNGS[choice.rung]}: {line}")
        child = self._start(name, "choice", recipe, extra, self._left())
        return [_Running(number, step, extra, child)]

    def _ended(self, one: _Running, result: dict[str, Any]) -> None:
        """Keep what a trial found, tell the search and the user."""
        done = Done(one.number, one.request, result)
        if result.get("refused"):
            shutil.rmtree(one.child.folder, ignore_errors=True)
            raise InputError(str(result["reason"]))
        self.found.trials.append(done)
        if one.step.proposal is not None:
            one.step.proposal.tell(self.found.values(done.row))
        row = done.row
        if row is None:
            self.log(f"trial {one.number} {done.state}: {result.get('reason')}")
        else:
            drop = row.drop_points.value if row.drop_points else None
            speed = row.speedup.value if row.speedup else None
            lost = "not scored" if drop is None else f"loses {drop:.2f} points"
            fast = "" if speed is None else f", {speed:.2f} × the reference's speed"
            size = f"{row.size_bytes or 0:,} bytes"
            self.log(f"trial {one.number}: {lost}{fast}, {size}; {self._told()}")
        self.publish("running")

    def _told(self) -> str:
        left = self._left()
        count = f"{len(self.found.counted())} trials"
        bounds = [count + (f" of {self.trials}" if self.trials else "")]
        bounds += [] if left is None else [f"{left:.0f} s left"]
        return ", ".join(bounds)

    # The end.

    def finish(self) -> None:
        """Time the best together, judge them, read test; keep the front's bundles."""
        root = self.directory.root
        finalists, rows = {}, {row.id: row for row in self.found.finalists()}
        for row in rows.values():
            bundle, energy = bundle_of(root, row), row.energy_gross_mj
            if (bundle / MANIFEST).is_file():
                finalists[row.id] = {
                    "bundle": str(bundle.resolve()),
                    "size_bytes": row.size_bytes,
                    "energy": energy.model_dump(mode="json") if energy else None,
                    "baseline": row.baseline,
                }
        if not finalists:
            raise EdgemlError("no engine was measured: there is no front")
        name = f"final-{hash_json(sorted(finalists))[:8]}"
        recipe = self.recipe.model_copy(update={"threads": self.threads, "time_s": None})
        line = f"the front: {len(finalists)} engines timed together"
        more = {"finalists": finalists, "tested": str((root / TESTED).resolve())}
        result = self._run(name, "final", recipe, line, more)
        if result["state"] != "done":
            (root / "trials" / name / RESULT).unlink()
            raise _refused(result)
        self.found.final, self.found.tested = result, read_json(root / TESTED) or {}
        for row_id, values in result["rows"].items():
            if values["front"] in ("yes", "cannot tell"):
                self.found.points[row_id] = keep_point(root, rows[row_id], values)

    def publish(self, state: str) -> ResultTable | None:
        """Write results.json and trials.jsonl; nothing before the original's engines are known."""
        if self.threads not in self.found.baselines:
            return None
        self.directory.remember(seconds=round(self.seconds(), 1))
        settings = {
            "model": self.recipe.model,
            "data": self.recipe.data or self.recipe.task,
            "batch": self.recipe.batch,
            "threads": self.threads,
            "objectives": list(self.objectives),
            "trials": self.trials,
            "time_s": self.time_s,
            "workers": self.workers,
            "measure_on": None,
            "seed": self.recipe.seed,
            "rungs": [
                {"rung": i, "name": name, "epochs": epochs_of(self.recipe, i)}
                for i, name in enumerate(RUNGS)
            ],
            "seconds": round(self.seconds(), 1),
        }
        machine = self.found.baselines[self.threads]["machine"]
        table = table_of(self.found, self.recipe, settings, machine, state)
        self.directory.publish(table, trial_entries(self.found, table.rows))
        if state == "finished":  # only now nothing names them any more
            drop_points(self.directory.root, self.found.points)
        return table

    # Processes.

    def _start(
        self,
        name: str,
        kind: str,
        recipe: Recipe,
        extra: dict[str, Any],
        seconds: float | None = None,
    ) -> Child:
        folder = self.directory.trial(name)
        request = {
            **extra,
            "kind": kind,
            "id": self.directory.id,
            "recipe": recipe.model_dump(mode="json"),
            "objectives": list(self.objectives),
            "threads": self.threads,
            "trust_code": self.trust_code,
            "facts": {n: self.directory.facts.get(n) for n in ("model_sha256", "data")},
            "bench_seconds": search.BENCH_SECONDS,
            "driver": os.getpid(),
        }
        write_json(folder / REQUEST, request)
        return Child(folder, seconds)

    def _run(
        self, name: str, kind: str, recipe: Recipe, line: str, extra: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The result of a request: what lies there, or a process of its own finds out, however late
        it is."""
        stored = self.directory.result(name)
        if stored is not None:
            self.log(f"{line}: finished before")
            return stored
        self.log(line)
        child = self._start(name, kind, recipe, extra or {})
        try:
            while (found := child.poll()) is None:
                raise_if_interrupted()
                time.sleep(POLL_S)
        except BaseException:
            child.kill()
            raise
        return found


def _refused(result: dict[str, Any]) -> EdgemlError:
    reason = str(result.get("reason"))
    return (
        InputError(reason)
        if result.get("bad_input") or result.get("refused")
        else EdgemlError(reason)
    )
