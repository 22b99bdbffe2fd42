"""After each fault: one line with host, stage and cause; a whole cache; nothing left running; the next deploy works."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgeml.deploy import bootstrap, run_deploy
from edgeml.deploy.fleet import agent_file, exit_code
from edgeml.deploy.plan import DeployOptions

QUICK = {"duration_s": 0.1, "steady_s": 0, "lock_wait_s": 5}


def _is_consistent(device) -> bool:
    return all(
        hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in device.blobs()
    )


def _nothing_runs(device, limit_s: float = 3.0) -> bool:
    pid = device.home / "agent.pid"
    until = time.monotonic() + limit_s
    while pid.exists() and Path(f"/proc/{pid.read_text()}/cmdline").exists():
        if "lock-fd" not in Path(f"/proc/{pid.read_text()}/cmdline").read_text():
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("do", "seen", "stage"),
    [
        ("hello", 0, "start"),
        ("put", 0, "upload"),
        ("put", 2, "upload"),
        ("run", 0, "probe"),
        ("probe", 0, "probe"),
        ("hello", 1, "start"),
        ("build", 0, "build"),
        ("check", 0, "check"),
        ("score", 0, "score"),
        ("bench", 0, "bench"),
        ("energy", 0, "energy"),
    ],
)
def test_a_link_lost_at_any_stage(
    run_async, serving, device, deploying, scorer, do, seen, stage
) -> None:
    device.lose_at = (do, seen)

    async def go():
        async with serving(device):
            first = await deploying(device, scorer=scorer)
            device.lose_at = None
            gone = await asyncio.to_thread(_nothing_runs, device)
            return first, gone, await deploying(device, scorer=scorer)

    (lost,), gone, (again,) = run_async(go())
    assert lost.status == "failed"
    assert lost.reason.startswith(f"orin1: {stage}: connection lost"), lost.reason
    assert "\n" not in lost.reason
    assert exit_code([lost]) == 1
    assert gone
    assert _is_consistent(device)
    assert again.status == "done", again.reason


def test_an_upload_that_was_cut_off_goes_on_where_it_was(
    run_async, serving, device, deploying, device_bundle, tmp_path: Path
) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(3 << 20))
    device.lose_at = ("put", 8)

    async def go():
        async with serving(device):
            lost = await deploying(device)
            device.lose_at, device.sent = None, 0
            return lost, await deploying(device)

    # A file of twelve pieces, cut at the eighth put of the session.
    files = dict(device_bundle.manifest.files)
    entry = device_bundle.manifest.engines[0]
    digest = hashlib.sha256(big.read_bytes()).hexdigest()
    files["big.bin"] = files["model.onnx"].model_copy(
        update={"sha256": digest, "size_bytes": big.stat().st_size}
    )
    (device_bundle.root / "big.bin").write_bytes(big.read_bytes())
    bundle_manifest = device_bundle.manifest.model_copy(
        update={
            "files": files,
            "engines": [entry.model_copy(update={"files": [*entry.files, "big.bin"]})],
        }
    )
    object.__setattr__(device_bundle, "manifest", bundle_manifest)
    (lost,), (again,) = run_async(go())
    assert lost.status == "failed"
    assert again.status == "done", again.reason
    assert any("goes on at" in line for line in again.plan)
    assert device.sent < big.stat().st_size
    assert _is_consistent(device)


def test_a_full_disk_is_told_and_given_back(run_async, serving, device, deploying) -> None:
    device.file_limit = 4096

    async def go():
        async with serving(device):
            full = await deploying(device)
            left = list((device.cache / "parts").glob("*"))
            device.file_limit = None
            return full, left, await deploying(device)

    (full,), left, (again,) = run_async(go())
    assert full.status == "failed"
    assert "upload" in full.reason
    assert "free some on the device" in full.reason
    assert left == []
    assert again.status == "done", again.reason


def test_a_disk_without_room_is_told_before_anything_is_sent(
    run_async, serving, device, deploying, monkeypatch
) -> None:
    monkeypatch.setattr("edgeml.deploy.upload.SPARE_BYTES", 1 << 60)

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "refused"
    assert "MB free in" in record.reason
    assert device.sent == 0


def test_a_file_that_changed_in_the_cache_is_sent_again(
    run_async, serving, device, deploying
) -> None:
    async def go():
        async with serving(device):
            await deploying(device)
            for path in device.blobs():
                path.write_bytes(path.read_bytes()[:-1] + b"?")
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "done", record.reason
    assert any("had changed in the cache" in line for line in record.plan)
    assert _is_consistent(device)


def test_a_file_that_changes_between_upload_and_build_is_never_built(
    run_async, serving, make_device, deploying, tmp_path: Path
) -> None:
    """With the real agent, which hashes what it builds from."""
    import site

    device = make_device(environment={"PYTHONPATH": os.pathsep.join(site.getsitepackages())})
    made = agent_file(tmp_path)

    def damage(do: str) -> None:
        if do == "build":
            for path in device.blobs():
                if path.name != made[1]:
                    path.write_bytes(path.read_bytes()[:-1] + b"?")

    target = "arm64" if os.uname().machine == "aarch64" else "intel-cpu"
    options = DeployOptions(**QUICK, target=target, energy=False)

    async def go():
        async with serving(device):
            device.on_request = damage
            bad = await deploying(device, agent=made, options=options)
            device.on_request = lambda do: None
            return bad, await deploying(device, agent=made, options=options)

    (bad,), (again,) = run_async(go(), 120)
    assert bad.status == "failed"
    assert "changed" in bad.reason or "hash" in bad.reason, bad.reason
    assert again.status == "done", again.reason
    assert _is_consistent(device)


def test_a_slow_link_is_waited_for(run_async, serving, device, deploying) -> None:
    device.bytes_per_s = 60_000

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "done", record.reason


def test_a_build_that_hangs_is_given_up(run_async, serving, device, deploying, monkeypatch) -> None:
    monkeypatch.setattr(run_deploy, "SLACK_S", 0.2)
    device.settings(fault={"build": "hang"})

    async def go():
        async with serving(device):
            options = DeployOptions(**QUICK, build_timeout_s=0.2)
            hung = await deploying(device, options=options)
            gone = await asyncio.to_thread(_nothing_runs, device)
            device.settings()
            monkeypatch.setattr(run_deploy, "SLACK_S", 300.0)
            return hung, gone, await deploying(device)

    (hung,), gone, (again,) = run_async(go())
    assert hung.status == "failed"
    assert "orin1: build: no answer in" in hung.reason
    assert gone
    assert again.status == "done", again.reason


def test_an_agent_killed_for_memory_is_told_with_its_signal(
    run_async, serving, device, deploying
) -> None:
    device.settings(fault={"build": "kill"})

    async def go():
        async with serving(device):
            killed = await deploying(device)
            device.settings()
            return killed, await deploying(device)

    (killed,), (again,) = run_async(go())
    assert killed.status == "failed"
    assert "orin1: build: the process there was ended by signal KILL" in killed.reason
    assert again.status == "done", again.reason


def test_what_the_agent_last_said_is_in_the_line(run_async, serving, device, deploying) -> None:
    device.settings(fault={"bench": "exit"})

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert "bench: the process there ended with status 1: Killed: out of memory" in record.reason


def test_without_a_meter_energy_is_not_measured_and_says_why(
    run_async, serving, device, deploying
) -> None:
    device.settings(probe={"meter": {"name": None, "why": "no INA3221, no tegrastats"}})

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "done"
    assert "energy" not in device.requests


def test_of_two_deploys_to_one_device_the_second_waits(
    run_async, serving, device, deploying
) -> None:
    async def go():
        async with serving(device):
            await deploying(device)
            device.settings(bench_s=1.0)
            return await asyncio.gather(deploying(device), deploying(device))

    first, second = run_async(go())
    assert [r.status for r in (*first, *second)] == ["done", "done"]
    waited = [line for r in (*first, *second) for line in r.plan if "another deploy runs" in line]
    assert waited


def test_a_deploy_that_waits_too_long_is_told_who_holds_the_device(
    run_async, serving, device, deploying
) -> None:
    device.settings(bench_s=3.0)

    async def go():
        async with serving(device):
            long = asyncio.create_task(deploying(device))
            while "bench" not in device.requests:
                await asyncio.sleep(0.05)
            options = DeployOptions(**{**QUICK, "lock_wait_s": 0.3})
            short = await deploying(device, options=options)
            return short, await long

    (short,), (long,) = run_async(go())
    assert short.status == "failed"
    assert "another deploy runs there" in short.reason
    assert "since 20" in short.reason
    assert long.status == "done"


def test_a_home_that_cannot_be_written_is_told(run_async, serving, make_device, deploying) -> None:
    device = make_device(environment={"HOME": "/sys"})

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "refused"
    assert "/sys/.cache" in record.reason
    assert "--cache DIR" in record.reason


def test_a_device_without_python_is_told(
    run_async, serving, make_device, deploying, tmp_path: Path
) -> None:
    shell = tmp_path / "shell"
    shell.write_text("#!/bin/sh\necho 'sh: /usr/bin/python3: not found' >&2\nexit 127\n")
    shell.chmod(0o755)
    device = make_device(shell=(str(shell),))

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert "start: the process there ended with status 127" in record.reason
    assert "python3: not found" in record.reason


def _bootstrap(home: Path, idle_s: float = 30.0) -> subprocess.Popen:
    source = Path(bootstrap.__file__).read_text().replace("IDLE_S = 30.0", f"IDLE_S = {idle_s}")
    return subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
    )


def test_a_bootstrap_without_heartbeats_ends(tmp_path: Path) -> None:
    with _bootstrap(tmp_path, 0.5) as process:
        assert process.stdin is not None
        begin = time.monotonic()
        assert process.wait(10) == 1
        assert time.monotonic() - begin < 8


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"no json\n", "bad-request"),
        (b"[]\n", "bad-request"),
        (
            b'{"nonce": "n", "cache": "~/c", "agent": "a", "client": "c", "blobs": {"../../x": 1}}\n',
            "no hash",
        ),
        (
            b'{"nonce": "n", "cache": "~/c", "agent": "a", "client": "c", "blobs": []}\n',
            "bad-request",
        ),
    ],
)
def test_a_bootstrap_answers_nonsense_with_an_error(tmp_path: Path, line, says) -> None:
    with _bootstrap(tmp_path) as process:
        out, _ = process.communicate(line, timeout=10)
    answer = json.loads(out.splitlines()[-1])
    assert answer["event"] == "error"
    assert says in json.dumps(answer)


def test_a_piece_that_does_not_match_its_hash_is_refused_and_removed(tmp_path: Path) -> None:
    name = hashlib.sha256(b"right").hexdigest()
    first = {"nonce": "n", "cache": "~/c", "agent": name, "client": "c", "blobs": {name: 5}}
    put = {"do": "put", "hash": name, "offset": 0, "bytes": 5}
    sent = f"{json.dumps(first)}\n{json.dumps(put)}\nwrong".encode()
    with _bootstrap(tmp_path) as process:
        out, _ = process.communicate(sent, timeout=10)
    assert json.loads(out.splitlines()[-1])["code"] == "damaged"
    assert not list((tmp_path / "c").glob("*/*"))
