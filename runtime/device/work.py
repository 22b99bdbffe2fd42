"""One piece of work in a process of its own: a job as a JSON line on stdin, events as lines on stdout.

The libraries that it loads may print: their stdout is stderr, only events go to the real one.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Callable

from ...errors import EdgemlError
from .build_on_device import failure


class Events:
    """What goes to the agent."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def say(self, event: str, payload: bytes = b"", **fields: Any) -> None:
        """One line, and the raw bytes that it announces."""
        if payload:
            fields["bytes"] = len(payload)
        self._out.write((json.dumps({"event": event, **fields}) + "\n").encode("utf-8") + payload)
        self._out.flush()

    def progress(self, text: str) -> None:
        """A line for people."""
        self.say("progress", text=text)


def work() -> int:
    """Read the job, do it, say its result; the exit status."""
    events = Events()
    job = json.loads(sys.stdin.buffer.readline().decode("utf-8"))
    try:
        result = JOBS[job["do"]](job, events)
    except EdgemlError as e:
        events.say("error", code=getattr(e, "code", "internal"), message=str(e))
        return 1
    except MemoryError:
        events.say("error", code="killed", message="out of memory")
        return 1
    except Exception as e:  # whatever a library raises is one line; the traceback goes to the log
        import traceback

        traceback.print_exc()
        events.say("error", code="internal", message=failure(e))
        return 1
    if result is not None:
        events.say("result", **_plain(result))
    return 0


def _probe(job: dict[str, Any], events: Events) -> dict[str, Any]:
    from .probe import probe

    return probe("/", job["cache"])


def _build(job: dict[str, Any], events: Events) -> dict[str, Any]:
    from .build_on_device import build_engine

    def log(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    return build_engine(job["spec"], job["folder"], job["cache"], job["timeout_s"], log)


def _check(job: dict[str, Any], events: Events) -> dict[str, Any]:
    from .check import check_engine

    return _with_runner(job, lambda runner: check_engine(runner, job["reference"]))


def _score(job: dict[str, Any], events: Events) -> dict[str, Any]:
    from .score import score_engine

    def send(digest: str, content: bytes) -> None:
        events.say("data", content, engine=job["engine"]["id"], samples=digest)

    return _with_runner(job, lambda runner: score_engine(runner, job["samples"], send))


def _with_runner(job: dict[str, Any], use: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    from .load_runner import load_runner

    runner = load_runner(job["engine"])
    try:
        return use(runner)
    finally:
        runner.close()


def _bench(job: dict[str, Any], events: Events) -> dict[str, Any]:
    from .device_bench import bench_engines

    runners, failed = _load_all(job)
    declared, end_to_end = job.get("end_to_end"), None
    if declared:
        with open(declared["preprocess"], encoding="utf-8") as file:
            end_to_end = (declared["images"], json.load(file))
    result: dict[str, Any] = {"engines": []}
    if runners:
        result = bench_engines(
            runners,
            job["reference"],
            duration_s=float(job.get("duration_s") or 2.0),
            warmup_s=float(job.get("warmup_s") or 1.0),
            block_s=float(job.get("block_s") or 0.06),
            # The temperature of an emulated board is a file's: there is nothing to wait for.
            steady=bool(job.get("steady")) and not _emulated(),
            max_s=job.get("max_s"),
            rate_hz=job.get("rate_hz"),
            end_to_end=end_to_end,
            meter=_meter(job) if job.get("rate_hz") else None,
            log=events.progress,
        )
    result["engines"] += failed
    return result


def _energy(job: dict[str, Any], events: Events) -> dict[str, Any]:
    from ..energy.method import measure_energy
    from .tensor_file import read_tensors, samples

    feed = next(iter(samples(read_tensors(job["reference"]), "input").values()))
    runners, rows = _load_all(job, "not measured")
    for name, runner in runners.items():
        row = {"id": name, "status": "not measured"}
        try:
            if runner.how == "trtexec":
                raise EdgemlError("trtexec is a process a call: its energy is not one inference's")
            with _meter(job) as meter:
                reading = measure_energy(
                    runner.bound(feed),
                    meter,
                    idle_s=job.get("idle_s"),
                    window_s=job.get("window_s"),
                    repeats=job.get("windows"),
                    log=lambda line, name=name: events.progress(f"{name}: {line}"),
                )
            row.update(reading.as_json())
            row["status"] = "measured" if reading.gross_mj is not None else "not measured"
        except EdgemlError as e:
            row["reason"] = str(e)
        rows.append(row)
    return {"engines": rows}


def _profile(job: dict[str, Any], events: Events) -> dict[str, Any]:
    from . import board_state
    from .tensor_file import read_tensors, samples

    feed = next(iter(samples(read_tensors(job["reference"]), "input").values()))
    before = board_state.throttle_counts()
    runners, rows = _load_all(job)
    for name, runner in runners.items():
        try:
            layers = runner.profile(feed, int(job.get("iterations") or 10))
            rows.append({"id": name, "status": "profiled", "layers": layers, "reason": None})
        except EdgemlError as e:
            rows.append({"id": name, "status": "failed", "layers": [], "reason": str(e)})
    throttle = board_state.throttled(before, board_state.throttle_counts())
    return {"engines": rows, "throttle": throttle}


def _serve(job: dict[str, Any], events: Events) -> None:
    from .load_runner import load_runner
    from .serve import serve

    runner = load_runner(job["engine"])
    serve(runner, job["socket"], lambda: events.say("result", socket=job["socket"]))


def _load_all(job: dict[str, Any], status: str = "failed") -> Any:
    """Runners by id, and rows for those that cannot be loaded."""
    from .load_runner import load_runner

    runners, rows = {}, []
    for engine in job["engines"]:
        try:
            runners[engine["id"]] = load_runner(engine)
        except EdgemlError as e:
            rows.append({"id": engine["id"], "status": status, "reason": str(e)})
    return runners, rows


def _meter(job: dict[str, Any]) -> Any:
    from ..energy.meter import EMULATED, HARDWARE, find_meter

    on_cpu = all(engine["how"] == "onnxruntime" for engine in job["engines"])
    where = EMULATED if _emulated() else HARDWARE
    return find_meter("cpu" if on_cpu else "cuda", where=where)


def _emulated() -> bool:
    from .board_state import device_tree
    from .probe import is_emulated

    return is_emulated(device_tree("model"), device_tree("compatible") or "")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


JOBS: dict[str, Callable[[dict[str, Any], Events], Any]] = {
    "probe": _probe,
    "build": _build,
    "check": _check,
    "score": _score,
    "bench": _bench,
    "energy": _energy,
    "profile": _profile,
    "serve": _serve,
}
