"""Lint for TensorRT: planted faults are found by node and rule, clean graphs pass, the parser agrees."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgeml.artifact.tensorrt_versions import VERSIONS
from edgeml.cli import main
from edgeml.errors import InputError, ModelError
from edgeml.export.lint_rules_version import LACKING, NEVER
from edgeml.export.qdq_lint import lint
from onnx import TensorProto, helper

spec = importlib.util.spec_from_file_location("qdq_graphs", Path(__file__).with_name("conftest.py"))
g = importlib.util.module_from_spec(spec)
spec.loader.exec_module(g)
node, graph, conv, pair, weight = g.node, g.graph, g.conv, g.pair, g.weight


def behind_conv(*nodes):
    """Q/DQ on the convolution's output ``c``, then `nodes` from ``d`` to ``y``."""
    return conv(y="c", behind=lambda stored: [*pair("c", "d", stored), *nodes])


def residual(quantized: bool):
    stored: dict = {}
    nodes = [node("Relu", ["x"], ["r"], name="stem"), *pair("r", "a", stored)]
    values = (np.clip(g.W8 / 0.01, -127, 127)).astype(np.int8)
    nodes += weight("w", stored, values=values, scale=np.full(8, 0.01))
    nodes.append(node("Conv", ["a", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]))
    nodes.append(node("Add", ["c", "a" if quantized else "r"], ["y"], name="add"))
    return graph(nodes, stored, x=(1, 8, 8, 8))


def concat(second: float):
    stored: dict = {}
    nodes = [*pair("x", "a", stored), node("Relu", ["x"], ["r"], name="relu")]
    nodes += pair("r", "b", stored, np.float32(second))
    nodes.append(node("Concat", ["a", "b"], ["y"], name="concat", axis=1))
    return graph(nodes, stored)


def matmul(axis=1, activation=True, scale=0.01, opset=20, kind=None):
    stored: dict = {}
    values = np.full((8, 6), 3, np.int8)
    nodes = pair("x", "a", stored) if activation else []
    nodes += weight("w", stored, values=values, scale=np.full(values.shape[axis], scale), axis=axis)
    nodes.append(node("MatMul", ["a" if activation else "x", "w"], ["y"], name="matmul"))
    return graph(nodes, stored, x=(1, 8), opset=opset)


def transposed(axis):
    stored: dict = {}
    nodes = [
        *pair("x", "a", stored),
        *weight("w", stored, values=np.ones((3, 3, 2, 2), np.int8), scale=[0.1] * 3, axis=axis),
    ]
    return graph([*nodes, node("ConvTranspose", ["a", "w"], ["y"], name="up")], stored)


def float8(kind, opset=20):
    stored: dict = {}
    nodes = pair("x", "a", stored, zero=None)
    zero = helper.make_tensor("a_z", kind, [], [0.0])
    stored["a_z"] = zero
    for quantizer in nodes:
        quantizer.input.append("a_z")
    return graph([*nodes, node("Relu", ["a"], ["y"], name="relu")], stored, opset=opset)


def computed_scale():
    nodes = [
        node("ReduceMax", ["x"], ["s"], name="max", keepdims=0),
        node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq"),
    ]
    return graph(nodes, {"z": np.int8(0)}, opset=17)


def twice(second=g.SCALE):
    stored: dict = {}
    nodes = [*pair("x", "a", stored), *pair("a", "b", stored, second)]
    return graph([*nodes, node("Relu", ["b"], ["y"], name="relu")], stored)


def lone():
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        node("Cast", ["q"], ["y"], name="cast", to=1),
    ]
    return graph(nodes, {"s": g.SCALE, "z": g.ZERO})


def only_activation():
    stored: dict = {"w": g.W}
    nodes = [*pair("x", "a", stored), node("Conv", ["a", "w"], ["y"], name="conv")]
    return graph(nodes, stored)


def by_channel():
    stored: dict = {}
    nodes = pair("x", "a", stored, np.full(3, 0.1, np.float32), np.zeros(3, np.int8), axis=1)
    return graph([*nodes, node("Relu", ["a"], ["y"], name="relu")], stored)


def normalized():
    stats = {k: np.ones(8, np.float32) for k in ("gain", "bias", "mean", "var")}
    inputs = ["c", "gain", "bias", "mean", "var"]

    def behind(stored):
        stored |= stats
        return [node("BatchNormalization", inputs, ["y"], name="bn")]

    return conv(y="c", behind=behind)


def reduced(op="ReduceMean", opset=18, axes_input=True):
    if axes_input:
        return graph(
            [node(op, ["x", "axes"], ["y"], name="mean", keepdims=0)],
            {"axes": np.array([2, 3])},
            opset=opset,
        )
    return graph([node(op, ["x"], ["y"], name="mean", axes=[2, 3], keepdims=0)], opset=opset)


def simple(op, opset=20, x=(1, 3, 8, 8), inputs=("x",), domain=None, **stored):
    made = node(op, [*inputs, *stored], ["y"], name="it", domain=domain)
    return graph([made], stored, x=x, opset=opset, domain=domain)


def float16(value):
    stored = {"k": np.array([value], np.float16)}
    return graph(
        [node("Add", ["x", "k"], ["y"], name="add")],
        stored,
        xt=TensorProto.FLOAT16,
        yt=TensorProto.FLOAT16,
    )


def heavy():
    return graph([node("Conv", ["x", "w"], ["y"], name="conv")], {"w": g.W})


def quantized_convolution():
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z"], ["c"], name="qconv"),
        node("DequantizeLinear", ["c", "s", "z"], ["y"], name="dq"),
    ]
    return graph(nodes, {"s": g.SCALE, "z": g.ZERO, "w": g.WQ})


def dynamic_quantization():
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
        node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq"),
    ]
    return graph(nodes)


LONG = np.clip(np.rint(g.W / 0.01), -127, 127).astype(np.int8)
BYTES = np.random.default_rng(1).integers(0, 255, (8, 3, 3, 3)).astype(np.uint8)
DEAD = np.where(np.arange(8) == 2, 0, g.ROWS)
GAIN = {"gain": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
SQUARE = (1, 2, 8, 8)

# (graph, version, node, rule, severity)
FAULTS = {
    "int8 zero point": (conv(zero=np.int8(3)), "10.3", "q_a", "zero-point", "error"),
    "uint8 zero point": (conv(zero=np.uint8(128)), "10.3", "dq_a", "zero-point", "error"),
    "uint8": (conv(zero=np.uint8(0)), "rtx", "q_a", "uint8", "error"),
    "uint8 by default": (conv(zero=None), "10.3", "q_a", "uint8", "error"),
    "uint8 weights": (conv(values=BYTES), "10.3", "dq_w", "uint8", "error"),
    "int32 bias": (conv(bias=np.arange(8, dtype=np.int32)), "rtx", "dq_b", "int32-bias", "error"),
    "zero scale": (conv(scale=np.float32(0)), "rtx", "q_a", "scale-not-positive", "error"),
    "negative scale": (conv(scale=np.float32(-1)), "rtx", "q_a", "scale-not-positive", "error"),
    "NaN scale": (conv(scale=np.float32("nan")), "10.16", "q_a", "scale-not-positive", "error"),
    "infinite scale": (conv(scale=np.float32("inf")), "10.3", "q_a", "scale-not-positive", "error"),
    "int16": (conv(zero=np.int16(0), opset=21), "rtx", "q_a", "quantized-type", "error"),
    "uint16": (conv(zero=np.uint16(0), opset=21), "11.4", "dq_a", "quantized-type", "error"),
    "fp8 before 9": (float8(TensorProto.FLOAT8E4M3FN), "8.6.2", "q_a", "quantized-type", "error"),
    "fp8 E5M2": (float8(TensorProto.FLOAT8E5M2), "rtx", "q_a", "quantized-type", "error"),
    "computed scale": (computed_scale(), "8.5.2", "q", "scale-computed", "error"),
    "scales by channel": (by_channel(), "10.3", "q_a", "activation-per-channel", "warning"),
    "product along the inner axis": (matmul(axis=0), "10.3", "dq_w", "weight-axis", "warning"),
    "transposed along its input": (transposed(0), "10.3", "dq_w", "weight-axis", "warning"),
    "quantized twice": (twice(), "10.3", "q_b", "doubled-qdq", "warning"),
    "requantized": (twice(np.float32(0.05)), "10.3", "q_b", "doubled-qdq", "warning"),
    "no dequantizer": (lone(), "10.3", "q", "missing-dq", "warning"),
    "weights only": (conv(activation=False), "10.3", "conv", "missing-qdq", "warning"),
    "activation only": (only_activation(), "10.3", "conv", "missing-qdq", "warning"),
    "before Relu": (
        behind_conv(node("Relu", ["d"], ["y"], name="relu")),
        "10.3",
        "conv",
        "qdq-before-activation",
        "warning",
    ),
    "before Clip": (
        behind_conv(node("Clip", ["d"], ["y"], name="clip")),
        "8.6.2",
        "conv",
        "qdq-before-activation",
        "warning",
    ),
    "unfolded normalization": (normalized(), "10.3", "bn", "bn-after-quantized", "warning"),
    "float shortcut": (residual(False), "10.3", "add", "residual-float", "warning"),
    "unequal concat": (concat(0.05), "10.3", "concat", "concat-scales", "warning"),
    "opset 18 on 8.x": (simple("Relu", opset=18), "8.6.2", "g", "opset", "error"),
    "opset 24 on 10.3": (simple("Relu", opset=24), "10.3", "g", "opset", "warning"),
    "axes input": (reduced(), "8.5.2", "mean", "reduce-axes-input", "error"),
    "axes input of ReduceMax": (
        reduced("ReduceMax", 20),
        "8.6.2",
        "mean",
        "reduce-axes-input",
        "error",
    ),
    "LayerNormalization on 8.5": (
        simple("LayerNormalization", opset=17, **GAIN),
        "8.5.2",
        "it",
        "operator",
        "error",
    ),
    "Gelu on 8.6": (simple("Gelu"), "8.6.2", "it", "operator", "error"),
    "Attention": (
        simple("Attention", opset=23, x=SQUARE, inputs=("x", "x", "x")),
        "rtx",
        "it",
        "operator",
        "error",
    ),
    "Det": (simple("Det"), "rtx", "it", "operator", "error"),
    "QLinearConv": (quantized_convolution(), "rtx", "qconv", "operator", "error"),
    "dynamic quantization": (dynamic_quantization(), "rtx", "dynamic", "operator", "error"),
    "a foreign operator": (
        simple("FusedConv", domain="com.microsoft"),
        "10.3",
        "it",
        "operator",
        "error",
    ),
    "fp32 layer": (heavy(), "10.3", "conv", "fp32-layer", "warning"),
    "range beyond FP16": (conv(scale=np.float32(600)), "10.3", "q_a", "fp16-overflow", "warning"),
    "infinite FP16 constant": (float16(np.inf), "10.3", "add", "fp16-overflow", "error"),
    "open batch": (
        graph([node("Relu", ["x"], ["y"])], x=("n", 3, 8, 8), opset=17),
        "8.5.2",
        "x",
        "open-shape",
        "warning",
    ),
}


def _weight_faults():
    """Those that change the weights' own arguments, which share names with the activation's."""
    stored: dict = {}
    nodes = [*pair("x", "a", stored), *weight("w", stored, zero=np.ones(8, np.int8))]
    nodes.append(node("Conv", ["a", "w"], ["y"], name="conv"))
    yield "weight zero point", graph(nodes, stored), "zero-point"
    stored = {}
    nodes = [*pair("x", "a", stored), *weight("w", stored, scale=DEAD)]
    nodes.append(node("Conv", ["a", "w"], ["y"], name="conv"))
    yield "a dead channel", graph(nodes, stored), "scale-not-positive"
    stored = {}
    nodes = [*pair("x", "a", stored), *weight("w", stored, values=LONG, scale=[0.01] * 3)]
    nodes.append(node("Conv", ["a", "w"], ["y"], name="conv"))
    yield "too few scales", graph(nodes, stored), "scale-count"


for name, model, rule in _weight_faults():
    FAULTS[name] = (model, "rtx", "dq_w", rule, "error")
nonzero = [node("NonZero", ["x"], ["n"], name="it"), node("Cast", ["n"], ["y"], to=1)]
FAULTS["NonZero"] = (graph(nonzero), "rtx", "it", "operator", "error")


def half(nodes, stored=None, **more):
    kinds = {"xt": TensorProto.FLOAT16, "yt": TensorProto.FLOAT16}
    return graph(nodes, stored, **kinds, **more)


halved: dict = {}
nodes = [*pair("x", "a", halved, np.float16(0.05)), node("Relu", ["a"], ["y"], name="relu")]
FAULTS["FP16 scale on 8.6"] = (half(nodes, halved), "8.6.2", "q_a", "scale-type", "error")


def depthwise():
    stored: dict = {}
    nodes = [
        *pair("x", "a", stored),
        *weight("w", stored, values=np.ones((3, 1, 3, 3), np.int8), scale=[0.1] * 3),
    ]
    return graph([*nodes, node("Conv", ["a", "w"], ["y"], name="conv", group=3)], stored)


CLEAN = {
    "convolution": (conv(), "10.3"),
    "convolution and ReLU": (
        conv(y="c", behind=[node("Relu", ["c"], ["y"], name="relu")]),
        "rtx",
    ),
    "product": (matmul(), "11.4"),
    "weight-only product": (matmul(activation=False), "10.13"),
    "residual block": (residual(True), "10.3"),
    "concat of equal scales": (concat(float(g.SCALE)), "10.16"),
    "transposed convolution": (transposed(1), "10.3"),
    "depthwise convolution": (depthwise(), "rtx"),
    "axes as attribute at opset 17": (reduced(opset=17, axes_input=False), "8.5.2"),
    "ReduceSum with its own input": (reduced("ReduceSum", 17), "8.6.2"),
    "FP16 convolution": (
        half([node("Conv", ["x", "w"], ["y"], name="conv")], {"w": g.W.astype(np.float16)}),
        "10.3",
    ),
    "FP16 mask of −∞": (float16(-np.inf), "10.3"),
    "fp8": (float8(TensorProto.FLOAT8E4M3FN), "10.3"),
    "LayerNormalization": (simple("LayerNormalization", opset=17, **GAIN), "8.6.2"),
}


@pytest.fixture
def saved(tmp_path):
    def save(model) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return save


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_with_its_node_and_rule(fault, saved):
    model, version, where, rule, severity = FAULTS[fault]
    findings = lint(saved(model), version).findings
    assert (where, rule, severity) in {(f.node, f.rule, f.severity) for f in findings}
    for finding in findings:
        assert finding.consequence and finding.mend and finding.source


def test_there_are_at_least_thirty_planted_faults_and_ten_clean_graphs():
    assert len(FAULTS) >= 30 and len(CLEAN) >= 10


@pytest.mark.parametrize("name", CLEAN)
def test_nothing_is_found_on_a_clean_graph(name, saved):
    model, version = CLEAN[name]
    assert [f.line for f in lint(saved(model), version).findings] == []


def test_a_clean_int8_graph_is_clean_for_every_version(saved):
    path = saved(conv(opset=17))
    assert {name: lint(path, name).findings for name in VERSIONS} == dict.fromkeys(VERSIONS, ())


def test_errors_come_first(saved):
    model = conv(zero=np.int8(3), y="c", behind=[node("Cast", ["c"], ["y"], to=1)], opset=24)
    severities = [f.severity for f in lint(saved(model), "10.3").findings]
    assert severities == sorted(severities) and {"error", "warning"} == set(severities)


def test_a_profile_closes_an_open_shape_and_ranges_tell_an_overflow(saved):
    path = saved(graph([node("Relu", ["x"], ["y"], name="relu")], x=("n", 3, 8, 8)))
    assert lint(path, "10.3", shapes=["x"]).findings == ()
    [found] = lint(path, "10.3", shapes=["x"], ranges={"y": 7e4, "x": 1e9}).findings
    assert (found.node, found.rule) == ("relu", "fp16-overflow") and "70,000" in found.consequence


def test_operators_are_known_to_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(NEVER) | set(LACKING) <= known


# ---- NVIDIA's own parser ----


def test_what_the_parser_refuses_lint_reports(parser, saved):
    everything = {**FAULTS, **{name: (m, v, None, None, None) for name, (m, v) in CLEAN.items()}}
    refused = {name for name, (model, *_) in everything.items() if parser(model)}
    unreported = [n for n in refused if not lint(saved(everything[n][0]), "rtx").errors]
    assert unreported == []
    assert len(refused) >= 12  # the parser was really asked
    assert refused.isdisjoint(CLEAN)


# ---- the command ----


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code


def test_the_command_exits_1_with_errors_and_0_with_warnings(saved, tmp_path, capsys):
    path = saved(conv(zero=np.int8(3)))
    report = tmp_path / "report.json"
    assert run("lint", path, "--tensorrt", "10.3", "--json", report) == 1
    assert "error zero-point at q_a, dq_a: zero point 3 is not 0" in capsys.readouterr().out
    result = json.loads(report.read_text())
    assert (result["errors"], result["warnings"], result["tensorrt"]) == (2, 0, "10.3")
    assert {f["rule"] for f in result["findings"]} == {"zero-point"}
    onnx.save(twice(), path)
    assert run("lint", path, "--tensorrt", "10.3") == 0
    assert capsys.readouterr().out.endswith("TensorRT 10.3: 0 errors, 1 warnings\n")


def test_nodes_of_one_rule_and_one_cause_share_a_line_and_json_names_each(saved, tmp_path, capsys):
    stored: dict = {}
    nodes, last = [], "x"
    for name, scale in zip("abcd", (0.02, 0.02, 0.02, -0.5), strict=True):
        nodes += pair(last, name, stored, np.float16(scale))
        nodes.append(node("Relu", [name], [f"{name}_r"], name=f"relu_{name}"))
        last = f"{name}_r"
    nodes[-1].output[0] = "y"
    path = saved(graph(nodes, stored, xt=TensorProto.FLOAT16, yt=TensorProto.FLOAT16))
    report = tmp_path / "report.json"
    assert run("lint", path, "--tensorrt", "8.6.2", "--json", report) == 1
    lines = capsys.readouterr().out.splitlines()
    [types] = [line for line in lines if line.startswith("error scale-type")]
    assert types.startswith("error scale-type at 8 nodes (q_a, dq_a, q_b …): its scale is FP16")
    assert any(s.startswith("error scale-not-positive at q_d, dq_d: 1 of 1 scales") for s in lines)
    findings = json.loads(report.read_text())["findings"]
    assert [f["node"] for f in findings if f["rule"] == "scale-type"] == [
        f"{kind}_{name}" for name in "abcd" for kind in ("q", "dq")
    ]
    assert lines[-1].startswith(
        f"TensorRT 8.6.2: {sum(f['severity'] == 'error' for f in findings)} "
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensorrt", "12.0"], "known: 8.5.2"),
        (["--tensorrt", "8.2"], "too old: JetPack 4"),
        (["--tensorrt", "10.3", "--opt-shape", "x:1xa"], "give NAME:1x3x224x224"),
        (["--tensorrt", "10.3", "--fix", "no/such/folder/f.onnx"], "there is no folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, saved, capsys):
    assert run("lint", saved(conv()), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_missing_or_damaged_file_is_bad_input(tmp_path):
    with pytest.raises(ModelError, match="no ONNX file"):
        lint(tmp_path / "none.onnx", "10.3")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError):
        lint(broken, "10.3")
    with pytest.raises(InputError):
        lint(broken, "99")
