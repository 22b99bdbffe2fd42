"""Configurations of a small network, measured once, for `sweep_replay.py`.

The network is six residual blocks on noisy digits. Every configuration is measured by the functions
that a trial of `edgeml sweep` calls, one engine at a time. A JSON line each, with its state, its cost and
its row; a share that the latency table calls out of reach is one line for all its engines. What lies in
the file is not measured again, so a killed recording goes on by the same command.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from budget_runs import add_record, records

SHARES = (0.85, 0.75, 0.65, 0.55, 0.45)
EPOCHS = 6
OBJECTIVES = ("accuracy", "latency", "size")
NETWORK = """import torch
from torch import nn

WIDTH, BLOCKS = 32, 6


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


def record(file: Path, work: Path, quick: bool) -> None:
    """Measure what is not in `file` yet.

    Args:
        quick: four networks and one epoch.
    """
    from edgeml.artifact.recipe import FinetuneStep, QuantizeStep, build_recipe
    from edgeml.compress import search
    from edgeml.compress.train_split import with_train_split

    search.BENCH_SECONDS = 0.25  # ratios of tens of microseconds: thousands of calls
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("EDGEML_CACHE", str(work / "cache"))
    epochs = 1 if quick else EPOCHS
    steps = [FinetuneStep(epochs=epochs), QuantizeStep(calibration_samples=64)]
    values = {"threads": 1, "max_drop_points": None, "steps": [s.model_dump() for s in steps]}
    # As a sweep does: what trains and what is validated on never meet.
    base = with_train_split(build_recipe({**make_inputs(work), **values}), will_train=True)
    if not records(file):
        add_record(file, {**baselines(base, work), "epochs": epochs})
    original, *there = records(file)
    done = {(*network_of(line), line["engine"]) for line in there}
    wanted = networks(quick)
    began = time.monotonic()
    for number, network in enumerate(wanted, 1):
        left = [e for e in original["engines"] if not done & {(*network, e), (*network, None)}]
        for line in measured(base, network, left, original["plain_int8"], work) if left else []:
            add_record(file, line)
        told(f"{number} of {len(wanted)}, {time.monotonic() - began:.0f} s: {network}")


def networks(quick: bool) -> list[tuple[float, str, int, bool]]:
    """(share, kinds, rung, distil), the cheap rungs first: what a kill leaves is of use."""
    from edgeml.compress.sweep_space import KINDS

    shares = SHARES[::2] if quick else SHARES
    taught = [(0, True), *itertools.product((1, 2), (True, False))]
    found = [(s, k, rung, d) for rung, d in taught for s, k in itertools.product(shares, KINDS)]
    return found[:4] if quick else found


def network_of(line: dict[str, Any]) -> tuple[float, str, int, bool]:
    return line["share"], line["kinds"], line["rung"], line["distil"]


def baselines(base: Any, work: Path) -> dict[str, Any]:
    """The original's engines, which make the file's first line."""
    from edgeml.artifact.machine import describe_machine
    from edgeml.compress.search import Budget
    from edgeml.compress.steer_run import plain_int8
    from edgeml.compress.sweep_trial import candidates_of, measure

    with opened(base, work) as given:
        trials, _ = measure(given, given.job, candidates_of(given.job))
        plain = plain_int8([given.reference, *trials], given.job, Budget()).row.id
        rows = [row_of(given.reference, False), *map(row_of, trials)]
    engines = [row["id"] for row in rows[1:] if row["status"] == "measured" and differs(row["id"])]
    facts = {"plain_int8": plain, "engines": engines, "machine": describe_machine()}
    return {"rows": rows, **facts}


def differs(engine: str) -> bool:
    """Whether it is worth a configuration: INT8 with a bf16 hint executes the same but for a few layers, and
    fp16 weights execute in fp32 on these CPUs."""
    return "fp16" not in engine and not (engine.endswith("-bf16") and "int8" in engine)


def measured(
    base: Any,
    network: tuple[float, str, int, bool],
    engines: list[str],
    plain: str,
    work: Path,
) -> Iterator[dict[str, Any]]:
    """A line a configuration of one network; one line without an engine where there is no network."""
    from edgeml.compress.sweep_space import Choice, recipe_of
    from edgeml.compress.sweep_table import OUT_OF_REACH
    from edgeml.compress.sweep_trial import candidates_of, measure, prune_and_train
    from edgeml.errors import EdgemlError, OutOfReach

    began = time.monotonic()
    line = dict(zip(("share", "kinds", "rung", "distil"), network, strict=True))
    choice = Choice(network[0], network[1], plain, network[3], 1, network[2])

    def without(state: str, reason: str, **more: Any) -> dict[str, Any]:
        told(f"{network} {state}: {reason}")
        return {**line, "state": state, "reason": reason, **more}

    with opened(recipe_of(base, choice), work, plain_int8=plain) as given:
        try:
            steered = prune_and_train(given)
        except OutOfReach as e:
            seconds = round(time.monotonic() - began, 3)
            yield without(OUT_OF_REACH, str(e), engine=None, least=e.least, seconds=seconds)
            return
        except EdgemlError as e:
            seconds = round(time.monotonic() - began, 3)
            yield without("failed", str(e), engine=None, seconds=seconds)
            return
        line |= {"network_seconds": round(time.monotonic() - began, 3), "steps": steered.rounds}
        lost = sum(row["importance_lost"] for row in steered.removed)
        line["removed"] = [{"importance_lost": lost}]
        known = {c.id: c for c in candidates_of(steered.job)}
        for engine in engines:
            began = time.monotonic()
            if engine not in known:
                yield without("failed", "no such route", engine=engine, seconds=0.0)
                continue
            (trial,), _ = measure(given, steered.job, [known[engine]])
            seconds = round(time.monotonic() - began, 3)
            if trial.engine is None:
                reason = str(trial.row.reason)
                yield without("failed", reason, engine=engine, seconds=seconds)
                continue
            row = row_of(trial)
            yield {**line, "engine": engine, "state": "done", "seconds": seconds, "row": row}


def row_of(trial: Any, close: bool = True) -> dict[str, Any]:
    if close and trial.engine is not None:
        trial.engine.close()
    names = {"id", "status", "runtime", "precision", "route", "size_bytes", "reason"}
    names |= {"drop_points", "speedup", "latency_p50_ms"}
    return trial.row.model_dump(mode="json", include=names)


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
    from edgeml.compress.train_split import with_train_split
    from edgeml.train.checkpoint import weights_of
    from edgeml.train.training_loop import fit
    from safetensors.torch import save_file

    recipe = with_train_split(build_recipe({"model": model, "data": data}), will_train=True)
    with WorkDirectory(weights.with_suffix(""), recipe.hash) as work:
        job = open_job(recipe, Stages(StageCache(), work, told, None))
        settings, augment = finetune_settings(job, FinetuneStep(epochs=15))
        settings = settings.model_copy(update={"epochs": 15, "lr": 0.05})
        fit(job.module, open_finetune_data(job, settings, augment).batches, settings, log=told)
    save_file({n: t.contiguous() for n, t in weights_of(job.module).items()}, weights)


def told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
