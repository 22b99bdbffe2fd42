"""A sweep: many configurations of one network, each tried in a process of its own, and their front.

The search proposes pruned networks and engines (rung 0, nothing trained). Those not dominated go on to a
short and then a long fine-tuning: two results of a rung earn one promotion, three of the short one a
long (asynchronous successive halving, Li et al. 2020, with the rank of `front.promoted` in place of
one objective). At the end the best are timed all together and judged.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import disk_errors, read_json, write_json
from ..artifact.content_hash import hash_file, hash_json
from ..artifact.interrupt import raise_if_interrupted
from ..artifact.machine import describe_machine, usable_threads
from ..artifact.recipe import Recipe, build_recipe
from ..artifact.result_row import EngineRow, ResultTable
from ..artifact.sweep_directory import (
    BUNDLES,
    LOG,
    REQUEST,
    RESULT,
    SweepDirectory,
    read_state,
)
from ..artifact.target import find_target
from ..errors import EdgemlError, InputError, MissingPart
from . import search
from .sweep_journal import Proposal, SweepJournal
from .sweep_space import (
    KINDS,
    RUNGS,
    Choice,
    Engine,
    choice_of,
    distributions,
    epochs_of,
    recipe_of,
    threads_tried,
)
from .sweep_table import Done, Found, folder_name, table_of, within_budget

OBJECTIVES = ("accuracy", "latency", "size")
# Results of a rung that earn one trial of the next.
EARNS = (2, 3)
# Proposals in a row that were tried already, after which the space counts as searched.
ENOUGH = 40
MANIFEST = "manifest.json"
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
        MissingPart: energy.
    """
    named = [word.strip() for word in words.split(",")]
    if "energy" in named:
        raise MissingPart(
            "--objectives energy: a sweep does not measure energy yet; leave it out, and measure "
            "points of the front with `edgeml bench --energy`"
        )
    unknown = next((word for word in named if word not in OBJECTIVES), None)
    if unknown is not None:
        raise InputError(f"--objectives {unknown!r} is none; give some of {','.join(OBJECTIVES)}")
    if not {"accuracy", "latency"} <= set(named):
        raise InputError("--objectives needs accuracy and latency; size may be left out")
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
    objectives: Sequence[str] = OBJECTIVES,
    *,
    trials: int | None = None,
    time_s: float | None = None,
    log: Log = lambda line: None,
    trust_code: bool = False,
) -> SweepResult:
    """Try configurations until `trials` of them or `time_s` seconds are spent, then fix the front.

    Args:
        output: the sweep's directory; one of the same recipe is gone on with, and repeats no trial
            that finished.
        trials: in all, those of earlier calls included.
        time_s: of the search, those of earlier calls included; the trial that runs is not cut short.

    Raises:
        InputError: model, data or output cannot be used, or neither bound is given.
        EdgemlError: the original's engines could not be built.
    """
    if trials is None and time_s is None:
        raise InputError("say how long: --trials 40, or --time 2h")
    if not find_target(recipe.target).this_machine:
        raise InputError(f"--target {recipe.target}: a sweep times engines on this machine only")
    asked = {"objectives": list(objectives)}
    with SweepDirectory(output, recipe, asked) as directory:
        directory.remember(trials=trials, time_s=time_s)
        sweep = _Sweep(recipe, directory, tuple(objectives), trials, time_s, log, trust_code)
        try:
            sweep.baselines()
            sweep.search()
            sweep.finish()
        except BaseException:
            sweep.publish("interrupted")
            raise
        table = sweep.publish("finished")
    return SweepResult(table, 0 if within_budget(table.rows, recipe) else 3)


class _Sweep:
    """One run of the driver over a sweep's directory."""

    def __init__(
        self,
        recipe: Recipe,
        directory: SweepDirectory,
        objectives: tuple[str, ...],
        trials: int | None,
        time_s: float | None,
        log: Log,
        trust_code: bool,
    ) -> None:
        self.recipe, self.directory, self.objectives = recipe, directory, objectives
        self.trials, self.time_s, self.log, self.trust_code = trials, time_s, log, trust_code
        self.threads = usable_threads(recipe.threads)
        self.found = Found(objectives, self.threads)
        self.began = time.monotonic()
        self.before = float(directory.facts.get("seconds") or 0.0)
        self.found.trials = [*self._stored()]

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
            found.append(Done(int(path.name), request, result))
        return found

    def seconds(self) -> float:
        """Spent so far, by earlier calls too."""
        return self.before + time.monotonic() - self.began

    def _left(self) -> float | None:
        return None if self.time_s is None else max(0.0, self.time_s - self.seconds())

    def _over(self) -> bool:
        enough = self.trials is not None and len(self.found.ended()) >= self.trials
        return enough or self._left() == 0.0

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
        """Run trials until the sweep is over or the space is."""
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
        space = distributions(list(engines), list(KINDS), threads)
        seed = self.recipe.seed
        journal = SweepJournal(space, self.objectives, seed, self.directory.root / "journal.log")
        done = {trial.number: trial for trial in self.found.trials}
        journal.reconcile(lambda n: self.found.values(done[n].row) if n in done else None)
        told = journal.known_trials()
        for trial in self.found.trials:
            values = self.found.values(trial.row)
            if trial.request["choice"]["rung"] == 0 and trial.number not in told and values:
                journal.restore(trial.number, trial.request["proposed"], values)
        while not self._over():
            raise_if_interrupted()
            if not self._promote(engines) and not self._propose(journal, engines):
                self.log("every configuration was tried")
                return

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

    def _promote(self, engines: dict[str, Engine]) -> bool:
        """Run the trial that the results so far have earned; False: none has."""
        counts = [0, 0, 0]
        for trial in self.found.ended():
            counts[trial.request["choice"]["rung"]] += 1
        for rung in (1, 0):
            if counts[rung] // EARNS[rung] <= counts[rung + 1]:
                continue
            # With few epochs the short fine-tuning is the long one.
            if epochs_of(self.recipe, rung + 1) <= epochs_of(self.recipe, rung):
                continue
            for parent in self.found.promotable(rung):
                choice = replace(Choice(**parent.request["choice"]), rung=rung + 1)
                if self._same(choice) is None:
                    self._trial(choice, engines, {"promoted_from": parent.number})
                    return True
        return False

    def _propose(self, journal: SweepJournal, engines: dict[str, Engine]) -> bool:
        """Run the search's next proposal that is new; False: there seems to be none."""
        for _ in range(ENOUGH):
            proposal = journal.ask()
            choice = choice_of(proposal.params)
            same = self._same(choice)
            if same is not None:
                proposal.tell(self.found.values(same.row))
                continue
            more = {"promoted_from": None, "proposed": proposal.params}
            done = self._trial(choice, engines, more, proposal)
            proposal.tell(self.found.values(done.row))
            return True
        return False

    def _same(self, choice: Choice) -> Done | None:
        there = self.found.ended()
        return next((t for t in there if Choice(**t.request["choice"]).key == choice.key), None)

    def _trial(
        self,
        choice: Choice,
        engines: dict[str, Engine],
        more: dict[str, Any],
        proposal: Proposal | None = None,
    ) -> Done:
        number = max((trial.number for trial in self.found.trials), default=-1) + 1
        recipe = recipe_of(self.recipe, choice)
        if proposal is not None:
            proposal.becomes(number)
        extra = {
            **more,
            "choice": asdict(choice),
            "params": choice.params(engines, epochs_of(self.recipe, choice.rung)),
            "recipe_hash": self.directory.keep_recipe(recipe),
            "plain_int8": self.found.baselines[choice.threads]["plain_int8"],
        }
        share = f"pruned to {choice.share:.0%} ({choice.kinds})"
        line = f"trial {number}, {RUNGS[choice.rung]}: {share}, {choice.engine}, {choice.threads} threads"
        name = folder_name(number)
        done = Done(number, extra, self._run(name, "choice", recipe, line, extra))
        if done.result.get("refused"):
            shutil.rmtree(self.directory.root / "trials" / name, ignore_errors=True)
            raise InputError(str(done.result["reason"]))
        self.found.trials.append(done)
        row = done.row
        if row is None:
            self.log(f"trial {number} {done.state}: {done.result.get('reason')}")
        else:
            drop = row.drop_points.value if row.drop_points else None
            speed = row.speedup.value if row.speedup else None
            lost = "not scored" if drop is None else f"loses {drop:.2f} points"
            fast = "" if speed is None else f", {speed:.2f} × the reference's speed"
            self.log(f"trial {number}: {lost}{fast}, {row.size_bytes or 0:,} bytes; {self._told()}")
        self.publish("running")
        return done

    def _told(self) -> str:
        left = self._left()
        bounds = [
            f"{len(self.found.ended())} trials" + (f" of {self.trials}" if self.trials else "")
        ]
        bounds += [] if left is None else [f"{left:.0f} s left"]
        return ", ".join(bounds)

    # The end.

    def finish(self) -> None:
        """Time the best together, judge them, read test; keep the front's bundles."""
        finalists, rows = {}, {row.id: row for row in self.found.finalists()}
        for row in rows.values():
            bundle = self._bundle(row)
            if (bundle / MANIFEST).is_file():
                finalists[row.id] = {
                    "bundle": str(bundle.resolve()),
                    "size_bytes": row.size_bytes,
                    "baseline": row.baseline,
                }
        if not finalists:
            raise EdgemlError("no engine was measured: there is no front")
        name = f"final-{hash_json(sorted(finalists))[:8]}"
        recipe = self.recipe.model_copy(update={"threads": self.threads, "time_s": None})
        line = f"the front: {len(finalists)} engines timed together"
        result = self._run(name, "final", recipe, line, {"finalists": finalists})
        if result["state"] != "done":
            (self.directory.root / "trials" / name / RESULT).unlink()
            raise _refused(result)
        self.found.final = result
        for row_id, values in result["rows"].items():
            if values["front"] in ("yes", "cannot tell"):
                self.found.points[row_id] = self._keep_point(rows[row_id], values)

    def _bundle(self, row: EngineRow) -> Path:
        trials = self.directory.root / "trials"
        if row.trial is not None:
            name = row.id.removeprefix(f"trial-{folder_name(row.trial)}-")
            return trials / folder_name(row.trial) / BUNDLES / name
        threads = row.params["threads"]
        name = row.id.removeprefix("original-").removesuffix(f"-t{threads}")
        return trials / f"original-t{threads}" / BUNDLES / name

    def _keep_point(self, row: EngineRow, values: dict[str, Any]) -> str:
        """Copy a bundle of the front, and what was measured of it by the bundle's hash."""
        root, bundle = self.directory.root, self._bundle(row)
        place = root / "points" / row.id
        if not place.is_dir():
            part = root / "points" / f".part-{row.id}"
            with disk_errors(part):
                shutil.rmtree(part, ignore_errors=True)
                shutil.copytree(bundle, part)
                os.replace(part, place)
        folder = root / "measurements"
        folder.mkdir(exist_ok=True)
        digest = hash_file(place / MANIFEST)
        kept = {"bundle": digest, "row": row.id, "command": "sweep", "machine": describe_machine()}
        write_json(folder / f"{digest}-together.json", {**kept, "measured": values})
        return f"points/{row.id}"

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
            "workers": 1,
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
        ids = {row.trial: row.id for row in table.rows if row.trial is not None}
        entries = [
            {
                "trial": trial.number,
                "rung": trial.request["choice"]["rung"],
                "params": trial.request["params"],
                "recipe_hash": trial.request["recipe_hash"],
                "state": trial.state,
                "reason": trial.result.get("reason"),
                "seconds": trial.result.get("seconds"),
                "rows": [ids[trial.number]] if trial.number in ids else [],
                "promoted_from": trial.request.get("promoted_from"),
            }
            for trial in self.found.trials
        ]
        self.directory.publish(table, entries)
        return table

    def _run(
        self, name: str, kind: str, recipe: Recipe, line: str, extra: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The result of a request: what lies there, or a process of its own finds out."""
        stored = self.directory.result(name)
        if stored is not None:
            self.log(f"{line}: finished before")
            return stored
        self.log(line)
        folder = self.directory.trial(name)
        facts = {n: self.directory.facts.get(n) for n in ("model_sha256", "data")}
        request = {
            **(extra or {}),
            "kind": kind,
            "id": self.directory.id,
            "recipe": recipe.model_dump(mode="json"),
            "objectives": list(self.objectives),
            "threads": self.threads,
            # Engines are measured however late it is: only fine-tuning is cut short.
            "time_s": self._left() if kind == "choice" else None,
            "trust_code": self.trust_code,
            "facts": facts,
            "bench_seconds": search.BENCH_SECONDS,
            "driver": os.getpid(),
        }
        write_json(folder / REQUEST, request)
        code = _child(folder)
        found = self.directory.result(name)
        if found is None:  # the kernel killed it, or a library ended the process
            state = "out of memory" if code in (-9, 137) else "failed"
            found = {"state": state, "reason": f"its process ended with {code}", "seconds": None}
            write_json(folder / RESULT, found)
        return found


def _child(folder: Path) -> int:
    """Run a request in a process that ends with this one."""
    command = [sys.executable, "-m", "edgeml.compress.sweep_trial", str(folder.resolve())]
    with (folder / LOG).open("ab") as file:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
    raise_if_interrupted()
    return code


def _refused(result: dict[str, Any]) -> EdgemlError:
    reason = str(result.get("reason"))
    return (
        InputError(reason)
        if result.get("bad_input") or result.get("refused")
        else EdgemlError(reason)
    )
