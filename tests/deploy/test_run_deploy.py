"""The whole way onto a served device, with an agent that speaks the protocol and computes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.deploy import session
from edgeml.deploy.device_table import table_lines
from edgeml.deploy.fleet import exit_code
from edgeml.deploy.plan import DeployOptions

QUICK = {"duration_s": 0.1, "steady_s": 0, "lock_wait_s": 5}


def test_a_deploy_ends_in_rows_a_choice_and_a_record_beside_the_bundle(
    run_async, serving, device, deploying, device_bundle
) -> None:
    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert (record.status, record.reason) == ("done", None)
    rows = {row.engine.id: row for row in record.rows}
    assert set(rows) == {"tensorrt-int8", "tensorrt-fp16"}
    assert record.chosen == record.rows[0].engine.id == "tensorrt-fp16"  # the stand-in's faster one
    p50 = rows["tensorrt-fp16"].engine.latency_p50_ms
    assert p50.low <= p50.value <= p50.high
    assert p50.how == "measured"
    assert rows["tensorrt-int8"].check == "passed"
    assert rows["tensorrt-int8"].energy_gross_mj.value == 14.0
    assert rows["tensorrt-int8"].energy_gross_mj.how == "emulated"  # as the reading itself says
    assert rows["tensorrt-int8"].energy["scope"] == "module-input"
    (file,) = (device_bundle.root / "measurements").glob("deploy-orin1-*.json")
    saved = json.loads(file.read_text())
    assert saved["bundle"] == device_bundle.hash
    assert saved["facts"]["jetpack"] == "6.0"
    assert len(saved["recipe"]) == 64
    open_bundle(device_bundle.root)  # still whole: measurements are files of their own


def test_the_second_deploy_sends_no_file_and_waits_at_most_five_times_before_the_bench(
    run_async, serving, device, deploying, scorer
) -> None:
    async def go():
        async with serving(device):
            first = await deploying(device, scorer=scorer)
            sent, device.requests, device.sent, device.waits = device.sent, [], 0, 0
            second = await deploying(device, scorer=scorer)
            return first, sent, second

    (first,), sent, (second,) = run_async(go())
    assert first.status == second.status == "done"
    assert first.sent_bytes == sent > 0
    assert device.sent == second.sent_bytes == 0
    before = device.requests[: device.requests.index("bench")]
    assert [word for word in before if word != "run"] == [
        "hello",
        "probe",
        "build",
        "check",
        "score",
    ]
    assert second.rows[0].build_s == 0
    assert len(set(device.commands)) == 1
    assert device.commands[0].isascii()
    assert "\n" not in device.commands[0]


def test_emulated_times_are_labelled_and_choose_nothing(
    run_async, serving, device, deploying
) -> None:
    device.settings(probe={"board": {"id": "jetson-orin-nano", "emulated": True}})

    async def go():
        async with serving(device):
            return await deploying(device, options=DeployOptions(**QUICK, latency_ms=0.001))

    (record,) = run_async(go())
    assert record.status == "done"
    assert record.chosen == "tensorrt-int8"  # the first, not the one with the smaller number
    assert {row.engine.latency_p50_ms.how for row in record.rows} == {"emulated"}
    assert "mean nothing" in record.verdict_line


@pytest.mark.parametrize("shell", ["bash", "dash", "banner"])
def test_every_login_shell_passes_the_command_on(
    run_async, serving, make_device, deploying, shell, tmp_path: Path
) -> None:
    device = make_device()
    if shell == "banner":
        script = tmp_path / "talking shell"
        script.write_text(
            '#!/bin/bash\necho \'Welcome to {"event": "hello"}\'\nprintf \'no newline\'\nexec bash "$@"\n'
        )
        script.chmod(0o755)
        device.shell = (str(script), "-c")
    else:
        device.shell = (f"/bin/{shell}", "-c")

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "done", record.reason
    told = [line for line in record.plan if "login shell prints" in line]
    assert bool(told) == (shell == "banner")


def test_a_locale_that_is_not_english_changes_nothing(
    run_async, serving, make_device, deploying
) -> None:
    device = make_device(environment={"LC_ALL": "de_DE.ISO-8859-1", "LANG": "tr_TR.UTF-8"})

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "done", record.reason


def test_plan_shows_the_device_and_does_nothing(run_async, serving, device, deploying) -> None:
    async def go():
        async with serving(device):
            return await deploying(device, plan_only=True)

    (record,) = run_async(go())
    assert record.status == "planned"
    text = "\n".join(record.plan)
    assert "JetPack 6.0, L4T 36.3.0, TensorRT 8.6.2" in text
    assert "build tensorrt-int8: int8 from model.int8.onnx" in text
    assert not {"build", "bench", "power"} & set(device.requests)
    assert len(device.blobs()) == 1  # the agent


@pytest.mark.parametrize(
    ("probe", "options", "says"),
    [
        (
            {
                "board": {"id": None, "model": "Raspberry Pi 4"},
                "tensorrt": {},
                "trtexec": None,
                "l4t": None,
            },
            {},
            "Raspberry Pi 4 (aarch64), not a Jetson, and has no TensorRT; --target arm64",
        ),
        ({"tensorrt": {"version": "8.2.1", "bindings": "8.2.1"}, "jetpack": "4.6"}, {}, "too old"),
        (
            {
                "tensorrt": {},
                "trtexec": None,
                "missing": [{"part": "tensorrt", "package": "tensorrt", "why": "no module"}],
            },
            {},
            "sudo apt install tensorrt",
        ),
        ({"memory_available_bytes": 50 << 20}, {}, "memory free"),
        ({}, {"power_mode": "15X"}, "no power mode '15X'; did you mean 15W?; it has 15W, 25W"),
        ({"power": {"modes": [], "why": "no nvpmodel"}}, {"power_mode": "15W"}, "no nvpmodel"),
        ({"meter": {"name": None, "why": "hwmon is empty"}}, {"energy": True}, "hwmon is empty"),
        ({}, {"target": "jetson-thor"}, "not a Jetson AGX Thor"),
        ({"jetpack": "7.0"}, {"emit": "dockerfile"}, "no base image is known for JetPack 7.0"),
        ({}, {"target": "intel-cpu"}, "--target arm64"),
        ({}, {"target": "arm64"}, "has no ONNX Runtime"),
        ({}, {"target": "cpu"}, "this machine"),
    ],
)
def test_what_a_device_cannot_do_is_refused_before_anything_starts(
    run_async, serving, device, deploying, probe, options, says
) -> None:
    device.settings(probe=probe)

    async def go():
        async with serving(device):
            return await deploying(device, options=DeployOptions(**QUICK, **options))

    (record,) = run_async(go())
    assert record.status == "refused"
    assert says in record.reason
    assert "\n" not in record.reason
    assert exit_code([record]) == 2
    assert "build" not in device.requests


def test_arm64_runs_the_bundle_with_onnx_runtime(run_async, serving, device, deploying) -> None:
    device.settings(
        probe={
            "board": {"id": None, "model": "Raspberry Pi 5"},
            "tensorrt": {},
            "trtexec": None,
            "l4t": None,
            "onnxruntime": "1.20.0",
            "meter": {"name": None, "why": "no rails"},
        }
    )

    async def go():
        async with serving(device):
            return await deploying(device, options=DeployOptions(**QUICK, target="arm64"))

    (record,) = run_async(go())
    assert record.status == "done", record.reason
    assert {row.engine.runtime for row in record.rows} == {"onnxruntime"}
    assert {row.engine.precision for row in record.rows} == {"int8", "fp32"}
    assert record.rows[0].energy_gross_mj.how == "not measured"
    assert record.rows[0].engine.latency_p50_ms.how == "measured"


def test_an_engine_that_does_not_build_is_a_row_and_the_other_ships(
    run_async, serving, device, deploying
) -> None:
    device.settings(unbuilt=["tensorrt-int8"])

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "done"
    assert record.chosen == "tensorrt-fp16"
    failed = record.rows[-1].engine
    assert (failed.id, failed.status) == ("tensorrt-int8", "failed")
    assert "no kernel for layer conv1" in failed.reason


def test_an_engine_that_computes_something_else_does_not_ship(
    run_async, serving, device, deploying
) -> None:
    device.settings(sqnr_db=3.0)

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go())
    assert record.status == "missed"
    rows = {row.engine.id: row for row in record.rows}
    assert rows["tensorrt-fp16"].check == "failed"
    assert rows["tensorrt-int8"].check == "far"
    assert record.chosen is None


def test_the_fastest_that_keeps_the_accuracy_budget_ships(
    run_async, serving, device, deploying, scorer
) -> None:
    # The faster one answers wrongly on the device.
    device.settings(gain={"tensorrt-fp16": -1.0}, probe={"board": {"id": "jetson-orin-nano"}})

    async def go():
        async with serving(device):
            options = DeployOptions(**QUICK, max_drop_points=1.0)
            return await deploying(device, scorer=scorer, options=options)

    (record,) = run_async(go())
    assert record.chosen == "tensorrt-int8", record.verdict_line
    rows = {row.engine.id: row.engine for row in record.rows}
    assert rows["tensorrt-fp16"].verdict == "missed"
    assert rows["tensorrt-fp16"].drop_points.value == 100.0
    assert record.primary == "agreement"


def test_a_missed_latency_budget_is_exit_3(run_async, serving, device, deploying) -> None:
    device.settings(probe={"board": {"id": "jetson-orin-nano"}})

    async def go():
        async with serving(device):
            return await deploying(device, options=DeployOptions(**QUICK, latency_ms=1.0))

    (record,) = run_async(go())
    assert record.status == "missed"
    assert "missed by" in record.reason
    assert exit_code([record]) == 3


def test_a_power_mode_is_set_before_the_build(run_async, serving, device, deploying) -> None:
    async def go():
        async with serving(device):
            return await deploying(device, options=DeployOptions(**QUICK, power_mode="25W"))

    (record,) = run_async(go())
    assert record.power["after"] == {"mode": "25W"}
    assert device.requests.index("power") < device.requests.index("build")
    # The stand-in times in 15W all the same.
    assert any("15W when the bench ended, 25W was set" in line for line in record.warnings)


def test_a_login_shell_that_never_answers_is_given_up(
    run_async, serving, make_device, deploying, monkeypatch
) -> None:
    monkeypatch.setattr(session, "START_S", -4.0)  # with the lock's 5 s: one second
    device = make_device("mute", shell=("/bin/sh", "-c", "sleep 60; :"))

    async def go():
        async with serving(device):
            return await deploying(device)

    (record,) = run_async(go(), 20)
    assert record.status == "failed"
    assert "start: no answer in 1 s; does its login shell wait for something?" in record.reason


def test_a_devices_words_are_shown_and_not_obeyed(run_async, serving, device, deploying) -> None:
    device.settings(probe={"board": {"id": "jetson-orin-nano", "model": "Orin\x1b]0;owned\x07"}})

    async def go():
        async with serving(device):
            return await deploying(device, plan_only=True)

    text = "\n".join(table_lines(run_async(go())))
    assert "Orin?]0;owned?" in text and "\x1b" not in text


def test_an_engine_whose_predictions_are_of_other_samples_does_not_ship(
    run_async, serving, device, deploying, scorer
) -> None:
    device.settings(swapped=["tensorrt-fp16"])

    async def go():
        async with serving(device):
            return await deploying(device, scorer=scorer)

    (record,) = run_async(go())
    rows = {row.engine.id: row.engine for row in record.rows}
    assert record.chosen == "tensorrt-int8"
    assert "prediction 000 is not of the sample that was sent" not in (record.reason or "")
    assert rows["tensorrt-fp16"].status == "failed"
