"""`edgeml doctor` says what works and never fails itself."""

from __future__ import annotations

import json
import sys


def test_every_part_is_tried_and_json_is_pure(edgeml, tmp_path):
    run = edgeml("doctor", "--json", "-")
    assert run.code == 0 and run.said == []
    parts = {part["name"]: part for part in json.loads(run.stdout)["parts"]}
    assert parts["onnxruntime"]["works"] and parts["openvino"]["works"]


def test_a_library_that_does_not_import_is_a_row_with_its_reason(edgeml, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # its import raises
    monkeypatch.setenv("EDGEML_CACHE", "/proc/nowhere")
    run = edgeml("doctor", "--json", tmp_path / "doctor.json")
    assert run.code == 0 and run.said == []
    parts = json.loads((tmp_path / "doctor.json").read_text())["parts"]
    broken = next(part for part in parts if part["name"] == "onnxruntime")
    assert not broken["works"] and broken["detail"]
    assert "onnxruntime" in run.stdout
