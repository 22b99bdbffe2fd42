"""Speaks the agent's side of docs/decisions/009-device-protocol.md; computes nothing.

The host's tests of faults, fleets and upload run it as the agent: what it answers is not measured and
nothing of it is product code. ``$HOME/stand_in.json`` sets its answers and its faults:
``{"probe": {…}, "score": {engine: "echo"}, "fault": {"build": "hang" | "kill" | "error" | "exit"}}``.
"""

import hashlib
import json
import os
import signal
import struct
import sys
import threading
import time

LAST = time.monotonic()


def say(**fields):
    os.write(1, (json.dumps(fields) + "\n").encode())


def watch(limit_s):
    while time.monotonic() - LAST < limit_s:
        time.sleep(0.1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def probe_answer():
    return {
        "hostname": "orin",
        "machine": "aarch64",
        "kernel": "5.15.148-tegra",
        "python": "3.10.12",
        "user": "jetson",
        "board": {"id": "jetson-orin-nano", "model": "Jetson Orin Nano", "emulated": False},
        "l4t": "36.3.0",
        "jetpack": "6.0",
        "cuda": "12.2",
        "compute_capability": "8.7",
        "tensorrt": {"version": "8.6.2", "bindings": "8.6.2", "why": None},
        "trtexec": "/usr/src/tensorrt/bin/trtexec",
        "numpy": "1.21.5",
        "onnxruntime": None,
        "pillow": "9.0.1",
        "missing": [],
        "cpu": "Cortex-A78AE",
        "cores": 6,
        "memory_total_bytes": 8 << 30,
        "memory_available_bytes": 6 << 30,
        "disk_free_bytes": 20 << 30,
        "power": {"modes": [{"id": 0, "name": "15W"}, {"id": 1, "name": "25W"}], "active": "15W"},
        "clocks": {"gpu_mhz": 306, "gpu_max_mhz": 918, "locked": False, "governor": "schedutil"},
        "temperatures_c": {"cpu-thermal": 45.0},
        "fan": "quiet",
        "meter": {
            "name": "ina3221",
            "rails": ["VDD_IN"],
            "total": "VDD_IN",
            "scope": "module-input",
        },
        "dla": 0,
        "gpu_users": [],
        "restored": None,
    }


def tensor_file(path):
    with open(path, "rb") as file:
        (n,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(n)), file.read()


def outputs_of(path, gain, swapped=False):
    """A tensor file whose outputs are the inputs' first four floats by `gain`, [1, 4].

    `swapped`: the first two samples' answers stand in each other's place.
    """
    header, data = tensor_file(path)
    exchange = {"000": "001", "001": "000"} if swapped else {}
    made, body = {}, b""

    def put(key, dtype, shape, raw):
        nonlocal body
        offsets = [len(body), len(body) + len(raw)]
        made[key] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += raw

    for key, entry in sorted(header.items()):
        number, kind, name = [*key.split(".", 2), "", ""][:3]
        if kind == "input":
            number = exchange.get(number, number)
            raw = data[slice(*entry["data_offsets"])]
            values = struct.unpack("<4f", raw[:16])
            put(
                f"{number}.output.y", "F32", [1, 4], struct.pack("<4f", *(v * gain for v in values))
            )
            head = json.dumps([name, "float32", entry["shape"], len(raw)]).encode()
            put(f"{number}.sample.sha256", "U8", [32], hashlib.sha256(head + raw).digest())
    head = json.dumps(made).encode()
    return struct.pack("<Q", len(head)) + head + body


def engine(i, name):
    # Later engines are faster, so that a choice is seen.
    times = [2.0 - 0.5 * i + 0.001 * k for k in range(20)]
    return {
        "id": name,
        "status": "timed",
        "how": "bindings",
        "rounds_ms": [times] * 12,
        "warmup_calls": 20,
        "load_ms": 30.0,
        "first_inference_ms": 5.0,
        "peak_memory_bytes": 1 << 28,
    }


def energy(name):
    return {
        "id": name,
        "status": "measured",
        "meter": "ina3221",
        "how": "integrated",
        "scope": "module-input",
        "where": "emulated",
        "rails": ["VDD_IN"],
        "total_rails": ["VDD_IN"],
        "gross_mj": 14.0,
        "gross_mj_low": 13.9,
        "gross_mj_high": 14.2,
        "net_mj": 6.0,
        "net_mj_low": 5.9,
        "net_mj_high": 6.2,
        "mean_w": 7.0,
        "idle_w": 4.0,
        "inferences": 25000,
        "windows": 5,
        "window_s": 10.0,
        "achieved_hz": {"VDD_IN": 66.0},
        "p50_shift": 0.004,
        "warnings": [],
    }


def answer(request, cache, settings):
    do, names = request["do"], request.get("engines", [])
    if do == "probe":
        return {**probe_answer(), **settings.get("probe", {})}
    if do == "power":
        modes = [m["name"] for m in probe_answer()["power"]["modes"]]
        if request.get("mode") not in (None, *modes):
            say(
                id=request["id"],
                event="error",
                code="no-mode",
                message=f"no mode {request['mode']!r}",
                modes=modes,
            )
            return None
        return {"before": {"mode": "15W"}, "after": {"mode": request.get("mode")}, "note": None}
    if do == "build":
        say(id=request["id"], event="progress", stage="build", text="tactic 1 of 2")
        built = os.path.join(cache, "plans")
        os.makedirs(built, exist_ok=True)
        rows = []
        for e in names:
            for blob in e["files"].values():
                if not os.path.exists(os.path.join(cache, "blobs", blob)):
                    say(id=request["id"], event="error", code="changed", message="blob is gone")
                    return None
            cached = os.path.join(built, e["id"])
            status = "cached" if os.path.exists(cached) else "built"
            open(cached, "w").close()
            rows.append(
                {
                    "id": e["id"],
                    "status": status,
                    "how": "bindings",
                    "seconds": 2.0,
                    "hash": None,
                    "size_bytes": 1000,
                    "version": "8.6.2",
                }
            )
        for row in rows:
            if row["id"] in settings.get("unbuilt", []):
                row.update(status="failed", reason="no kernel for layer conv1")
        return {"engines": rows}
    if do == "check":
        out = {"name": "y", "max_abs": 0.0, "max_rel": 1e-4, "cosine": 1.0, "sqnr_db": 60.0}
        out["sqnr_db"] = settings.get("sqnr_db", 70.0)
        return {
            "engines": [
                {"id": e["id"], "status": "checked", "how": "bindings", "n": 32, "outputs": [out]}
                for e in names
            ]
        }
    if do == "score":
        n = 0
        for name in names:
            for sample in request["samples"]:
                gain = settings.get("gain", {}).get(name, 1.0)
                blob = os.path.join(cache, "blobs", sample)
                raw = outputs_of(blob, gain, name in settings.get("swapped", ()))
                n = raw.count(b".output.")
                line = {"id": request["id"], "event": "data", "engine": name}
                line.update(samples=sample, bytes=len(raw))
                os.write(1, (json.dumps(line) + "\n").encode() + raw)
        return {"engines": [{"id": name, "status": "scored", "n": n} for name in names]}
    if do == "bench":
        time.sleep(settings.get("bench_s", 0))
        return {
            "engines": [engine(i, name) for i, name in enumerate(names)],
            "temperatures_c": {"start": {"cpu": 45.0}, "end": {"cpu": 46.0}},
            "steady": True,
            "throttle": [],
            "fan": "quiet",
            "clocks": {"gpu_mhz": 918},
            "mode": "15W",
        }
    if do == "energy":
        return {"engines": [energy(name) for name in names], "mode": "15W"}
    if do == "clean":
        return {"removed_bytes": 5, "kept_bytes": 0}
    if do == "bye":
        return {}
    say(id=request["id"], event="error", code="unsupported", message="no " + do)
    return None


def main():
    global LAST
    cache = sys.argv[sys.argv.index("--cache") + 1]
    settings = {}
    path = os.path.join(os.environ["HOME"], "stand_in.json")
    if os.path.exists(path):
        with open(path) as file:
            settings = json.load(file)
    with open(os.path.join(os.environ["HOME"], "agent.pid"), "w") as file:
        file.write(str(os.getpid()))
    threading.Thread(target=watch, args=(settings.get("beat_s", 30.0),), daemon=True).start()

    def lines():
        global LAST
        for line in sys.stdin.buffer:
            LAST = time.monotonic()
            yield json.loads(line.decode())
        os.killpg(os.getpgrp(), signal.SIGKILL)

    queue, ready = [], threading.Condition()

    def read():
        for request in lines():
            if request["do"] != "beat":
                with ready:
                    queue.append(request)
                    ready.notify()

    threading.Thread(target=read, daemon=True).start()
    while True:
        with ready:
            while not queue:
                ready.wait()
            request = queue.pop(0)
        fault = settings.get("fault", {}).get(request["do"])
        if fault == "hang":
            time.sleep(3600)
        elif fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "exit":
            os.write(2, b"Killed: out of memory\n")
            os._exit(1)
        elif fault:
            say(id=request["id"], event="error", code=fault, message="as the test wants")
            continue
        result = answer(request, cache, settings)
        if result is not None:
            say(id=request["id"], event="result", **result)
        if request["do"] == "bye":
            return


if __name__ == "__main__":
    main()
