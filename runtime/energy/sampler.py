"""Watts, sampled by a process of its own, and their integral over a window.

In the process that infers, a sampling thread would take turns with the inference. So `Sampler` starts
this very file as a child (``python -c SOURCE JOB``), which reads between two one-byte commands and sends
its samples only after the window. Both read the monotonic clock, which Linux counts alike for all
processes. This file imports nothing of ours, so that its text alone is the child; it runs from a zipapp too.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time

# 100 Hz for the rails of the total (≥ 50 Hz is promised), 10 Hz for the others (≥ 5 Hz).
PERIOD_S = 0.01
SLOW_EVERY = 10
_START, _END = b"s", b"e"


class SamplerDied(Exception):
    """The sampling process ended by itself; the message is its last line."""


class Sampler:
    """The sampling process.

    Args:
        rails: by name the files whose product, in µW, is its power: ``[mV, mA]`` or ``[µW]``.
        fast: names to read every `period_s`; the others every `SLOW_EVERY`-th time.
        command: instead of files, a program whose lines are taken with the time of their arrival.
    """

    def __init__(self, rails=None, fast=(), command=None, period_s=PERIOD_S):
        job = {
            "rails": {name: [str(file) for file in files] for name, files in (rails or {}).items()},
            "fast": list(fast),
            "command": list(command) if command else None,
            "period_s": period_s,
        }
        source = __loader__.get_source(__name__)
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", source, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._begin = 0.0
        try:
            self._expect()  # it is up: its start is no part of a window
        except SamplerDied:
            self.close()
            raise

    def start(self) -> None:
        """Begin a window; returns when the first sample is there."""
        self._send(_START)
        self._expect()
        self._begin = time.monotonic()

    def stop(self):
        """End the window.

        Returns:
            Begin and end in seconds of the monotonic clock, and what the child says: ``samples`` (a list of
            ``[s, W]`` by rail) or ``lines`` (``[s, text]``), ``cpu_s`` that it spent.
        """
        end = time.monotonic()
        self._send(_END)
        return self._begin, end, self._expect()

    def close(self) -> None:
        child = self._child
        for pipe in (child.stdin, child.stdout, child.stderr):
            pipe.close()  # end of input ends it
        try:
            child.wait(2)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _send(self, command: bytes) -> None:
        try:
            self._child.stdin.write(command)
        except (OSError, ValueError) as e:
            raise SamplerDied(self._last_words()) from e

    def _expect(self):
        chunks = []
        while not chunks or not chunks[-1].endswith(b"\n"):
            chunk = self._child.stdout.read(1 << 16)
            if not chunk:
                raise SamplerDied(self._last_words())
            chunks.append(chunk)
        return json.loads(b"".join(chunks).decode())

    def _last_words(self) -> str:
        try:
            lines = self._child.stderr.read().decode(errors="replace").strip().splitlines()
        except (OSError, ValueError):
            lines = []
        return lines[-1] if lines else "the sampling process ended without a word"


def integrate(samples, begin: float, end: float) -> float:
    """Joules between two times, by the trapezoidal rule; the first and last sample hold beyond their ends.

    Args:
        samples: ``[s, W]`` pairs, in order of time.

    >>> integrate([(0.0, 2.0), (1.0, 4.0)], 0.0, 1.0), integrate([(0.5, 3.0)], 0.0, 2.0)
    (3.0, 6.0)
    """
    if not samples or end <= begin:
        return 0.0
    knots = [(begin, _at(samples, begin))]
    knots += [(t, w) for t, w in samples if begin < t < end]
    knots.append((end, _at(samples, end)))
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in zip(knots, knots[1:]))


def _at(samples, when: float) -> float:
    before = None
    for t, w in samples:
        if t >= when:
            if before is None or t == before[0]:
                return w
            share = (when - before[0]) / (t - before[0])
            return before[1] + share * (w - before[1])
        before = (t, w)
    return before[1]


def rate(samples, begin: float, end: float) -> float:
    """Samples a second within the window.

    >>> rate([(0.1, 1.0), (0.2, 1.0), (9.0, 1.0)], 0.0, 1.0)
    2.0
    """
    inside = sum(1 for t, _ in samples if begin <= t <= end)
    return inside / (end - begin) if end > begin else 0.0


# ── the child ────────────────────────────────────────────────────────────────────────────────────


def _main() -> None:
    job = json.loads(sys.argv[1])
    take = _take_lines if job["command"] else _take_samples
    if not job["command"]:
        # Kept open: a sysfs attribute is read anew at every pread from 0.
        for name, files in job["rails"].items():
            job["rails"][name] = [os.open(file, os.O_RDONLY) for file in files]
    _say({"ready": True})
    while os.read(0, 1) == _START:
        begin = _cpu_s()
        found = take(job)
        found["cpu_s"] = _cpu_s() - begin
        _say(found)


def _take_samples(job):
    rails, fast = job["rails"], set(job["fast"])
    samples = {name: [] for name in rails}
    read = os.pread
    clock = time.monotonic
    tick, due = 0, clock()
    while True:
        last = tick > 0 and _ended(due - clock())
        for name, files in rails.items():
            if name not in fast and tick % SLOW_EVERY and not last:
                continue
            before = clock()
            micro_watts = 1
            try:
                for file in files:
                    micro_watts *= int(read(file, 32, 0))
            except (OSError, ValueError):  # a bus that was busy once: the achieved rate tells
                if tick == 0:
                    raise
                continue
            samples[name].append([(before + clock()) / 2, micro_watts * 1e-6])
        if last:
            return {"samples": samples}
        if tick == 0:
            _say({"started": True})
        tick += 1
        # A tick that came late is not made up for: two reads at once tell nothing new.
        due = max(due + job["period_s"], clock())


def _take_lines(job):
    program = subprocess.Popen(
        job["command"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    pipe, lines, rest, ended = program.stdout.fileno(), [], b"", False
    try:
        while True:
            # After the end it waits for one more line, which closes the window.
            watched = [pipe] if ended else [0, pipe]
            readable = select.select(watched, [], [], 5.0)[0]
            if not readable:
                raise SystemExit("{} printed nothing for 5 s".format(job["command"][0]))
            if 0 in readable:
                if os.read(0, 1) != _END:
                    raise SystemExit(0)
                ended = True
                continue
            chunk = os.read(pipe, 1 << 16)
            now = time.monotonic()
            if not chunk:
                raise SystemExit("{} ended".format(job["command"][0]))
            whole = (rest + chunk).split(b"\n")
            rest = whole.pop()
            if whole and not lines:
                _say({"started": True})
            lines += [[now, line.decode("ascii", "replace")] for line in whole]
            if ended and whole:
                return {"lines": lines}
    finally:
        program.terminate()
        try:
            program.wait(2)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def _ended(seconds: float) -> bool:
    """Wait so long for the end; the other side gone is an end too."""
    if not select.select([0], [], [], max(0.0, seconds))[0]:
        return False
    if os.read(0, 1) != _END:
        raise SystemExit(0)
    return True


def _cpu_s() -> float:
    """Of this process to the nanosecond, and of its ended children to the kernel's tick."""
    return time.process_time() + sum(os.times()[2:4])


def _say(value) -> None:
    text = json.dumps(value).encode() + b"\n"
    while text:
        text = text[os.write(1, text) :]


if __name__ == "__main__":
    _main()
