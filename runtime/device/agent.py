"""The agent: answers the host's requests, and ends with all it started when the host is gone.

The protocol is docs/decisions/009-device-protocol.md. This process only reads lines, starts one child a piece of
work (`work`) and passes its answers on: a library that crashes, hangs or is killed for memory costs that
piece, never the agent or the heartbeat's watch.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from typing import Any, Iterator

from ...errors import EdgemlError, one_line
from . import power
from .build_on_device import hash_file, lay_out
from .process import die_with_parent, kill_tree, oom_kills

LAPSE_S = 25.0
LINE_LIMIT = 16 * 2**20
LOG_LINES = 40
# Loading and checking take seconds; a child that says nothing for so long after its own time hangs.
WORK_TIMEOUT_S = 1800.0
_WORK_PREFIX = "deploy-"
# A library that hangs while its process ends has told its result.
EXIT_S = 30.0
# The names of ours in the cache, which may be a folder that holds other things (--cache).
_OURS = re.compile(r"[0-9a-f]{64}(\.plan(\.json)?)?(\.part)*|timing-[^/]*\.cache(\.part)?")


class Refused(EdgemlError):
    """An error answer of the protocol: its code and further fields."""

    def __init__(self, code: str, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.code, self.extra = code, extra


class Agent:
    """One deploy on this device.

    Args:
        cache: the device's cache; blobs lie in it already.
        program: the words that start this program again, for its children.
    """

    def __init__(self, cache: str, program: list[str]) -> None:
        self.cache, self.program = cache, program
        self.engines: dict[str, dict[str, Any]] = {}
        self._folders = 0
        self.used: list[str] = [os.path.basename(program[-1])]
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._writing = threading.Lock()
        self._out = os.dup(1)
        # Nothing else may write between the protocol's lines.
        os.dup2(2, 1)
        self._heard = time.monotonic()
        self._ending, self._ender = threading.Lock(), 0
        self._servers: list[subprocess.Popen] = []
        # Not by process id: in containers every agent has the same one, and one that is ending removes its own.
        work = os.path.join(cache, "work")
        os.makedirs(work, exist_ok=True)
        self._work = tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=work)
        self._power = power.PowerHolder(os.path.join(cache, "power-state.json"), program)

    # ---- life ----

    def run(self) -> int:
        """Answer requests until `bye`, the end of stdin, or a heartbeat that does not come."""
        if os.getpgrp() != os.getpid():
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, lambda *_: self.end("terminated"))
        signal.signal(signal.SIGHUP, lambda *_: self.end("hung up"))
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            request = self._requests.get()
            self._answer(request)
            if request.get("do") == "bye":
                self.end(None)

    def end(self, why: str | None) -> None:
        """Put power back, end every process of ours, and end."""
        if not self._ending.acquire(blocking=False):
            if self._ender == threading.get_ident():
                return  # a signal in the middle of it: what it interrupted goes on
            while True:  # another thread is at it, and ends this one too
                time.sleep(1)
        self._ender = threading.get_ident()
        # Whatever hangs below: the group ends in time. Only a host that said bye waits for power.
        timer = threading.Timer(3.0 if why else 130.0, self._kill)
        timer.daemon = True
        timer.start()
        if why:
            with contextlib.suppress(OSError):  # nobody may be there to read it
                os.write(2, f"edgeml agent ends: {why}\n".encode())
        self._power.release()
        for server in self._servers:
            kill_tree(server.pid)
        shutil.rmtree(self._work, ignore_errors=True)
        if why:
            self._kill()
        os._exit(0)

    def _kill(self) -> None:
        """End what is left of our group, this process with it; nothing in it has anything to put back."""
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def _read(self) -> None:
        """Requests from stdin; anything at all is a sign of life."""
        stdin = os.fdopen(os.dup(0), "rb")
        while True:
            try:
                line = stdin.readline(LINE_LIMIT)
            except OSError:
                line = b""
            if not line:
                self.end("the host closed the connection")
            self._heard = time.monotonic()
            try:
                request = json.loads(line.decode("utf-8"))
                if not isinstance(request, dict):
                    raise ValueError("no object")
            except ValueError as e:
                self.say(None, "error", code="bad-request", message=f"no JSON line: {e}")
                continue
            if request.get("do") == "beat":
                self._power.beat()
            else:
                self._requests.put(request)

    def _watch(self) -> None:
        while time.monotonic() - self._heard < LAPSE_S:
            time.sleep(0.5)
        self.end(f"no heartbeat for {LAPSE_S:.0f} s")

    # ---- answers ----

    def say(self, number: Any, event: str, payload: bytes = b"", **fields: Any) -> None:
        """One line to the host, and the raw bytes that it announces."""
        if payload:
            fields["bytes"] = len(payload)
        line = json.dumps({"id": number, "event": event, **fields}) + "\n"
        with self._writing:
            self._write(line.encode("utf-8") + payload)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._out, view) :]
            except OSError:
                self.end("the host reads no more")

    def _answer(self, request: dict[str, Any]) -> None:
        number, do = request.get("id"), request.get("do")
        handler = getattr(self, "do_" + str(do), None)
        try:
            if handler is None:
                raise Refused("bad-request", f"unknown request {do!r}")
            result = handler(request)
        except (Refused, power.PowerError) as e:
            self.say(number, "error", code=e.code, message=str(e), **e.extra)
        except (KeyError, TypeError, ValueError) as e:
            text = f"{do}: {type(e).__name__}: {one_line(e)}"
            self.say(number, "error", code="bad-request", message=text)
        except OSError as e:
            code = {28: "no-space", 122: "no-space", 30: "read-only", 13: "read-only"}
            self.say(number, "error", code=code.get(e.errno, "internal"), message=one_line(e))
        except Exception as e:
            text = f"{type(e).__name__}: {one_line(e)}"
            self.say(number, "error", code="internal", message=text)
        else:
            self.say(number, "result", **result)

    # ---- requests ----

    def do_probe(self, request: dict[str, Any]) -> dict[str, Any]:
        restored = self._power.restore_left()
        result = self._child(request, {"do": "probe", "cache": self.cache}, 120.0)
        return {**result, "restored": restored}

    def do_power(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._power.set(request.get("mode"), bool(request.get("lock_clocks")))

    def do_build(self, request: dict[str, Any]) -> dict[str, Any]:
        limit, rows = float(request.get("timeout_s") or WORK_TIMEOUT_S), []
        for spec in request["engines"]:
            for digest in spec["files"].values():
                self._blob(digest)
            rows.append(self._build(request, spec, limit))
        return {"engines": rows}

    def _build(self, request: dict[str, Any], spec: dict[str, Any], limit: float) -> dict[str, Any]:
        """One row; a failure is a row."""
        # By a count of its own: two engines of one id must not share a folder.
        self._folders += 1
        folder = os.path.join(self._work, f"model-{self._folders}")
        job = {"do": "build", "spec": spec, "folder": folder, "cache": self.cache}
        try:
            lay_out(spec["files"], os.path.join(self.cache, "blobs"), folder)
            row = self._child(request, {**job, "timeout_s": limit}, limit + 30, engine=spec["id"])
        except EdgemlError as e:
            row = {"id": spec["id"], "status": "failed", "reason": str(e)}
            for key in ("how", "seconds", "hash", "size_bytes", "version"):
                row[key] = None
            row["log"] = getattr(e, "extra", {}).get("log", "")
            return row
        self.engines[spec["id"]] = {**row, "precision": spec["precision"]}
        hidden = ("model", "plan", "trtexec", "shapes", "open_axes", "threads")
        return {key: value for key, value in row.items() if key not in hidden}

    def do_check(self, request: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for wanted in request["engines"]:
            engine = self._engine(wanted["id"])
            job = {"do": "check", "engine": engine, "reference": self._blob(wanted["reference"])}
            rows.append(self._row(request, job, engine["id"], {"n": 0, "outputs": []}))
        return {"engines": rows}

    def do_score(self, request: dict[str, Any]) -> dict[str, Any]:
        files, rows = {digest: self._blob(digest) for digest in request["samples"]}, []
        for name in request["engines"]:
            job = {"do": "score", "engine": self._engine(name), "samples": files}
            rows.append(self._row(request, job, name, {"n": 0}))
        return {"engines": rows}

    def do_bench(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request)
        end_to_end = request.get("end_to_end")
        if end_to_end:
            images = [self._blob(digest) for digest in end_to_end["images"]]
            job["end_to_end"] = {
                "images": images,
                "preprocess": self._blob(end_to_end["preprocess"]),
            }
        return self._child(request, job, self._limit(request))

    def do_energy(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._child(request, self._job(request), self._limit(request))

    def do_profile(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._child(request, self._job(request), self._limit(request))

    def do_serve(self, request: dict[str, Any]) -> dict[str, Any]:
        job = {
            "do": "serve",
            "engine": self._engine(request["engine"]),
            "socket": request["socket"],
        }
        process, result = self._start(request, job, 120.0)
        self._servers.append(process)
        return {"socket": result["socket"], "pid": process.pid}

    def do_fetch(self, request: dict[str, Any]) -> dict[str, Any]:
        digest = request["hash"]
        plans = {e["hash"]: e["plan"] for e in self.engines.values() if e.get("plan")}
        path = plans.get(digest) or self._blob(digest)
        size = os.path.getsize(path)
        line = {"id": request.get("id"), "event": "data", "hash": digest, "bytes": size}
        with self._writing, open(path, "rb") as file:
            self._write((json.dumps(line) + "\n").encode("utf-8"))
            for piece in iter(lambda: file.read(2**18), b""):
                self._write(piece)
        return {"hash": digest}

    def do_clean(self, request: dict[str, Any]) -> dict[str, Any]:
        """Least recently used first, never what this deploy uses, nor files that are none of ours."""
        limit = 0 if request.get("all") else request.get("limit_bytes")
        mine = {e["plan"] for e in self.engines.values() if e.get("plan")}
        mine |= {path + ".json" for path in mine}
        files = []
        for folder in ("blobs", "parts", "plans"):
            for path in _files(os.path.join(self.cache, folder)):
                state = os.stat(path)
                files.append((state.st_mtime, path, state.st_size))
        kept, removed = sum(size for _, _, size in files), 0
        for _, path, size in sorted(files):
            if limit is None or kept <= limit:
                break
            if path in mine or os.path.basename(path) in self.used:
                continue
            os.unlink(path)
            kept, removed = kept - size, removed + size
        # Folders of agents that were killed; the lock says that none of them lives.
        for entry in os.scandir(os.path.join(self.cache, "work")):
            if entry.path != self._work and entry.name.startswith(_WORK_PREFIX):
                shutil.rmtree(entry.path, ignore_errors=True)
        return {"removed_bytes": removed, "kept_bytes": kept}

    def do_bye(self, request: dict[str, Any]) -> dict[str, Any]:
        self._power.release()
        return {}

    # ---- children ----

    def _job(self, request: dict[str, Any]) -> dict[str, Any]:
        """A child's job over several engines: the request with paths for hashes."""
        engines = [self._engine(name) for name in request["engines"]]
        return {**request, "engines": engines, "reference": self._blob(request["reference"])}

    def _limit(self, request: dict[str, Any]) -> float:
        seconds = [
            float(request.get(key) or 0)
            for key in ("duration_s", "warmup_s", "max_s", "idle_s", "window_s")
        ]
        windows = float(request.get("windows") or 1)
        # Twice what was asked for an engine (rate and end to end repeat it), and time to load.
        each = 3 * (sum(seconds) + seconds[-1] * windows) + 300
        return WORK_TIMEOUT_S + each * len(request["engines"])

    def _row(
        self, request: dict[str, Any], job: dict[str, Any], name: str, empty: dict[str, Any]
    ) -> dict[str, Any]:
        """A child's result as a row; its failure too."""
        try:
            result = self._child(request, job, WORK_TIMEOUT_S, engine=name)
        except EdgemlError as e:
            result = {"status": "failed", "reason": str(e), **empty}
        return {"id": name, "how": self.engines[name]["how"], **result}

    def _child(
        self, request: dict[str, Any], job: dict[str, Any], limit_s: float, **about: Any
    ) -> dict[str, Any]:
        """Run one job to its end.

        Raises:
            Refused: it failed; killed and timeout have codes of their own.
        """
        process, result = self._start(request, job, limit_s, **about)
        process.stdin.close()
        try:
            process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            kill_tree(process.pid)
            process.wait()
        return result

    def _start(
        self, request: dict[str, Any], job: dict[str, Any], limit_s: float, **about: Any
    ) -> Any:
        """Start a child and pass on what it says until its result."""
        kills = oom_kills()
        process = subprocess.Popen(
            [*self.program, "work"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        log: list[str] = []
        number, stage = request.get("id"), str(job["do"])

        def listen() -> None:
            for raw in process.stderr:
                log.append(raw.decode("utf-8", "replace").rstrip())
                del log[:-LOG_LINES]
                if stage == "build":
                    self.say(number, "progress", stage=stage, text=log[-1], **about)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            kill_tree(process.pid)

        timer = threading.Timer(limit_s, stop)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(OSError):
                process.stdin.write(json.dumps(job).encode("utf-8") + b"\n")
                process.stdin.flush()
            for fields in self._events(process, number, stage, about):
                if fields["event"] == "result":
                    fields.pop("event")
                    if stage == "build":
                        fields["log"] = "\n".join(log)
                    return process, fields
                if fields["event"] == "error":
                    process.wait()
                    listener.join(5)
                    code = fields.get("code", "internal")
                    raise Refused(code, fields["message"], log="\n".join(log))
            code = process.wait()
            listener.join(5)
        finally:
            timer.cancel()
        extra = {"log": "\n".join(log)}
        if timed_out.is_set():
            text = f"{stage} took longer than {limit_s:.0f} s and was ended"
            raise Refused("timeout", text, **extra)
        if code == -signal.SIGKILL:
            memory = oom_kills() > kills
            text = "{} was killed{}".format(
                stage,
                " by the kernel: out of memory"
                if memory
                else " (signal 9), most likely by the kernel for memory",
            )
            raise Refused("killed", text, signal=9, **extra)
        if code < 0:
            text = f"{stage} crashed with signal {-code}"
            raise Refused("killed", text, signal=-code, **extra)
        last = next((line for line in reversed(log) if line.strip()), "no output")
        raise Refused("internal", f"{stage} ended with status {code}: {last}", **extra)

    def _events(
        self, process: Any, number: Any, stage: str, about: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """A child's lines; progress and data go straight to the host."""
        for line in process.stdout:
            fields = json.loads(line.decode("utf-8"))
            event = fields.pop("event")
            if event == "progress":
                self.say(number, "progress", stage=stage, **{**about, **fields})
            elif event == "data":
                payload = process.stdout.read(fields.pop("bytes"))
                self.say(number, "data", payload, **{**about, **fields})
            else:
                yield {"event": event, **fields}

    # ---- files ----

    def _engine(self, name: str) -> dict[str, Any]:
        if name not in self.engines:
            known = ", ".join(self.engines) or "none"
            raise Refused("bad-request", f"no engine {name!r} was built (built: {known})")
        return self.engines[name]

    def _blob(self, digest: str) -> str:
        """The path of a blob whose content still has its hash."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise Refused("bad-request", f"{digest!r} is no sha256")
        path = os.path.join(self.cache, "blobs", digest)
        if digest in self.used:
            return path
        if not os.path.isfile(path):
            raise Refused("bad-request", f"no file {digest} was uploaded")
        if hash_file(path) != digest:
            os.unlink(path)
            text = "{} changed on the device since it was uploaded; it was removed, deploy again"
            raise Refused("changed", text.format(digest[:12]))
        self.used.append(digest)
        os.utime(path)
        return path


def _files(folder: str) -> list[str]:
    try:
        return [
            entry.path
            for entry in os.scandir(folder)
            if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
    except OSError:
        return []
