"""A stand-in for trtexec, for machines without TensorRT: the real flags and files, ONNX Runtime's arithmetic.

Not TensorRT: a "plan" here is the ONNX file behind a header, and times mean nothing. It is as strict as the real
one where the agent could go wrong: flags that a version has not, or has no more, are refused; a graph without
open axes takes no shapes; 8.x wants --int8 for Q/DQ; from 11 on inputs are not copied unless asked for. Formats:
TensorRT's samples/common/sampleReporting.cpp. The version is the first line of the file ``version`` beside it.
"""

import json
import os
import sys
import time

HEADER = b"stand-in plan "
ALWAYS = {
    "onnx", "saveEngine", "loadEngine", "minShapes", "optShapes", "maxShapes", "shapes", "memPoolSize",
    "timingCacheFile", "profilingVerbosity", "loadInputs", "iterations", "warmUp", "duration", "useCudaGraph",
    "useSpinWait", "exportTimes", "exportOutput", "exportProfile", "dumpProfile", "separateProfileRun",
    "noDataTransfers", "verbose", "help",
}  # fmt: skip
WEAK = {"fp16", "int8", "best", "calib"}


def known_flags(version):
    """The options of a version; NVIDIA's migration pages."""
    major, minor = version[:2]
    flags = set(ALWAYS)
    if major <= 10:
        flags |= WEAK
    if major == 8:
        flags |= {"workspace", "buildOnly"}
    if (major, minor) >= (8, 6):
        flags.add("skipInference")
    if major == 10:
        flags |= {"stronglyTyped", "bf16", "fp8", "int4"}
    if major >= 11:
        flags |= {"includeDataTransfers", "noCudaGraph", "noSpinWait"}
    return flags


class Failed(Exception):
    """An error line and exit code 1."""


def main():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "version")) as file:
        version = tuple(int(part) for part in file.readline().split("."))
    base = "{}{}{:02d}" if version[0] < 10 else "{}{:02d}{:02d}"
    banner = "[TensorRT v{}] # {}".format(base.format(*version), " ".join(sys.argv))
    print("&&&& RUNNING TensorRT.trtexec " + banner)
    try:
        options = parse(version)
        if "help" not in options:
            build(options, version) if "onnx" in options else infer(options, version)
    except Failed as e:
        print(f"[11/25/2026-03:00:00] [E] {e}")
        print("&&&& FAILED TensorRT.trtexec " + banner)
        return 1
    print("&&&& PASSED TensorRT.trtexec " + banner)
    return 0


def parse(version):
    options = {}
    for word in sys.argv[1:]:
        name, _, value = word.lstrip("-").partition("=")
        if not word.startswith("--") or name not in known_flags(version):
            raise Failed(f"Unknown option: {word} ")
        options[name] = value
    return options


def session_of(content):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise Failed("ModelImporter.cpp: " + str(e).splitlines()[0]) from e


def build(options, version):
    with open(options["onnx"], "rb") as file:
        content = file.read()
    session = session_of(content)
    open_axes = any(not isinstance(n, int) for node in session.get_inputs() for n in node.shape)
    if not open_axes and "optShapes" in options:
        raise Failed(
            "Static model does not take explicit shapes since the shape of inference tensors will be "
            "determined by the model itself"
        )
    if open_axes and "optShapes" not in options:
        raise Failed("Dynamic dimensions required for input: no shapes given")
    if version[0] == 8 and b"QuantizeLinear" in content and "int8" not in options:
        raise Failed("Network has Q/DQ layers and INT8 is not enabled; set --int8")
    typed = {"stronglyTyped"} & set(options)
    if version[0] == 10 and typed and WEAK & set(options):
        raise Failed("Invalid usage, --stronglyTyped with a precision flag")
    head = json.dumps({"version": list(version), "open": open_axes}).encode() + b"\n"
    with open(options["saveEngine"], "wb") as file:
        file.write(HEADER + head + content)
    if "timingCacheFile" in options:
        with open(options["timingCacheFile"], "ab") as file:
            file.write(b"timings\n")
    print("[11/25/2026-03:00:00] [I] Engine built in 0.1 sec.")


def infer(options, version):
    import numpy as np

    with open(options["loadEngine"], "rb") as file:
        content = file.read()
    if not content.startswith(HEADER):
        raise Failed("Error Code 1: Serialization (Magic tag does not match)")
    head, _, model = content[len(HEADER) :].partition(b"\n")
    head = json.loads(head)
    if head["version"] != list(version):
        raise Failed("Error Code 6: API Usage Error (the engine plan file is not compatible)")
    session = session_of(model)
    shapes = pairs(options.get("shapes", ""))
    if head["open"] and not shapes:
        raise Failed("Dynamic dimensions required for input: give --shapes")
    files = pairs(options.get("loadInputs", ""))
    types = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}
    feed = {}
    for node in session.get_inputs():
        shape = [int(n) for n in shapes[node.name].split("x")] if head["open"] else node.shape
        if node.name in files:
            feed[node.name] = np.fromfile(files[node.name], types[node.type]).reshape(shape)
        else:
            feed[node.name] = np.zeros(shape, types[node.type])
    if version[0] >= 11 and "includeDataTransfers" not in options:
        feed = {name: np.zeros_like(array) for name, array in feed.items()}
    times = []
    end = time.perf_counter() + float(options.get("duration", 3))
    while len(times) < int(options.get("iterations", 10)) or time.perf_counter() < end:
        begin = time.perf_counter()
        outputs = session.run(None, feed)
        times.append((begin * 1e3, (time.perf_counter() - begin) * 1e3))
    if "exportTimes" in options:
        write_times(options["exportTimes"], times)
    if "exportOutput" in options:
        write_outputs(options["exportOutput"], session, outputs)
    if "exportProfile" in options:
        with open(options["exportProfile"], "w") as file:
            total = sum(ms for _, ms in times)
            file.write(f'[\n  {{ "count" : {len(times)} }}\n')
            mean = total / len(times)
            row = (
                f'"timeMs" : {total}, "averageMs" : {mean}, "medianMs" : {mean}, "percentage" : 100'
            )
            file.write(f', {{ "name" : "whole graph", {row} }}\n')
            file.write("]\n")


def pairs(spec):
    """``name:value,'odd:name':value``."""
    found, rest = {}, spec
    while rest:
        if rest.startswith("'"):
            name, _, rest = rest[1:].partition("'")
            rest = rest[1:]
        else:
            name, _, rest = rest.partition(":")
        found[name], _, rest = rest.partition(",")
    return found


def write_times(path, times):
    keys = [
        "startEnqMs",
        "endEnqMs",
        "startH2dMs",
        "endH2dMs",
        "startComputeMs",
        "endComputeMs",
        "startD2hMs",
    ]
    keys += ["endD2hMs", "h2dMs", "computeMs", "d2hMs", "latencyMs"]
    with open(path, "w") as file:
        file.write("[\n")
        separator = "  "
        for begin, ms in times:
            values = [
                begin,
                begin,
                begin,
                begin,
                begin,
                begin + ms,
                begin + ms,
                begin + ms,
                0,
                ms,
                0,
                ms,
            ]
            parts = [f'"{key}" : {value:g}' for key, value in zip(keys, values, strict=False)]
            file.write("{}{{ {} }}\n".format(separator, ", ".join(parts)))
            separator = ", "
        file.write("]\n")


def write_outputs(path, session, outputs):
    with open(path, "w") as file:
        file.write("[\n")
        separator = "  "
        for node, array in zip(session.get_outputs(), outputs, strict=False):
            file.write(f'{separator}{{ "name" : "{node.name}"\n')
            separator = ", "
            file.write('  , "dimensions" : "{}"\n'.format("x".join(map(str, array.shape))))
            # C++ streams print six digits, nan and inf.
            values = ", ".join(f"{value:g}" for value in array.ravel())
            file.write(f'  , "values" : [ {values} ]\n  }}\n')
        file.write("]\n")


if __name__ == "__main__":
    sys.exit(main())
