"""The `example.py` of a bundle: runs the shipped engine without edgeml."""

from __future__ import annotations

from ..artifact.manifest import EngineEntry
from ..artifact.preprocess import ImagePreprocess
from ..artifact.token_inputs import INPUTS, for_network

_HEAD = '''"""Runs this bundle's engine without edgeml: python example.py{usage}

Needs: pip install {packages}
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
'''

_OPENVINO = '''
def load_engine():
    """The engine as it was measured: static shapes, {told} threads, {execution} for float layers."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(HERE / "{file}")
    model.reshape({shapes})
    config = {{
        "PERFORMANCE_HINT": "{hint}",
        "INFERENCE_PRECISION_HINT": "{precision}",
        "INFERENCE_NUM_THREADS": {threads},
    }}
    compiled = core.compile_model(model, "CPU", config)
    names = [port.get_any_name() for port in compiled.outputs]
    return lambda inputs: dict(zip(names, compiled(inputs).values()))
'''

_ONNXRUNTIME = '''
def load_engine():
    """The engine as it was measured: {told} threads, no spinning."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = {threads}
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        HERE / "{file}",
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],  # layers left in float stay in float
    )
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs)))
'''

_TENSORRT = '''
def load_engine():
    """The graph that TensorRT builds from, in ONNX Runtime: what it answers, not how fast. build.sh builds
    the engine on the device."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    # Q/DQ as written: this CPU's integer kernels round in another way.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(
        HERE / "{file}",
        options,
        providers=["CPUExecutionProvider"],
        # It rounds float biases while it loads, at every level but none.
        disabled_optimizers=["WeightBiasQuantization"],
    )
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs)))
'''

_IMAGE = '''
def preprocess(path):
    """As declared in preprocess.json: {resize}crop {crop}, (x * scale - mean) / std."""
    from PIL import Image

    image = Image.open(path).convert("{mode}")
{resizing}{cropping}    x = np.asarray(image)
    x = x[..., None] if x.ndim == 2 else x{flip}
{arithmetic}    return {{{input!r}: np.ascontiguousarray(x)[None]}}
'''

_TOKENS = '''
def preprocess(text):
    """As declared in tokenizer.json: normalised, cut and padded to its length."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(HERE / "tokenizer.json")).encode(text)
    return {{
{inputs}    }}
'''

_MAIN = """

def main():
    engine = load_engine()
{sample_branch}    reference = load_file(HERE / "reference.safetensors")
    samples = sorted({{key.split(".")[0] for key in reference}})
    worst = 0.0
    for sample in samples:
        pick = lambda kind: {{
            key.split(".", 2)[2]: array
            for key, array in reference.items()
            if key.startswith(f"{{sample}}.{{kind}}.")
        }}
        outputs = engine(pick("input"))
        for name, expected in pick("output").items():
            worst = max(worst, float(np.abs(outputs[name] - expected).max()))
    print(f"{{len(samples)}} reference inputs, largest difference from the recorded outputs: {{worst:.3g}}")


if __name__ == "__main__":
    main()
"""

_SAMPLE_BRANCH = """    if len(sys.argv) > 1:
        output = next(iter(engine(preprocess(sys.argv[1])).values()))[0]
        classes = HERE / "classes.txt"
        names = classes.read_text().splitlines() if classes.exists() else None
        for i in np.argsort(-output.ravel())[:5]:
            print(f"{{output.ravel()[i]:10.4f}}  {{names[i] if names else i}}")
        return
"""

# Of a `tokenizers` encoding, in the order of INPUTS.
_ENCODING = dict(zip(INPUTS, ("ids", "attention_mask", "type_ids"), strict=True))


def example_script(
    entry: EngineEntry,
    preprocess: ImagePreprocess | None,
    classes: list[str] | None,
    tokenizer: bool = False,
) -> str:
    """The text of ``example.py`` for an engine.

    With an image's path, or a text where the bundle has a `tokenizer`, it prints the five highest
    outputs; without one it runs the bundle's reference inputs and prints how far the outputs are
    from the recorded ones.
    """
    library = "openvino" if entry.runtime == "openvino" else "onnxruntime"
    packages = f"{library} numpy safetensors"
    single = len(entry.input_shapes) == 1
    usage = sample = ""
    names = list(entry.input_shapes)
    if single and entry.batch == 1 and preprocess is not None:
        usage, packages = " [PHOTO]", packages + " Pillow"
        sample = _image_part(preprocess, names[0])
    elif entry.batch == 1 and tokenizer and (parts := for_network(_ENCODING, names)):
        usage, packages = ' ["A TEXT"]', packages + " tokenizers"
        lines = [f"        {n!r}: np.array([found.{p}], np.int64),\n" for n, p in parts.items()]
        sample = _TOKENS.format(inputs="".join(lines))
    head = _HEAD.format(usage=usage, packages=packages)
    values = {
        "file": entry.files[0],
        "threads": entry.threads or 0,  # both runtimes' word for all of them
        "told": entry.threads or "all",
        "execution": entry.execution,
        "precision": {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[entry.execution],
        "hint": entry.objective.upper(),
        "shapes": entry.input_shapes,
    }
    templates = {"openvino": _OPENVINO, "onnxruntime": _ONNXRUNTIME}
    engine = templates.get(entry.runtime, _TENSORRT).format(**values)
    branch = _SAMPLE_BRANCH.format() if sample else ""
    return head + engine + sample + _MAIN.format(sample_branch=branch)


def _image_part(p: ImagePreprocess, name: str) -> str:
    resizing = cropping = ""
    if p.resize is not None:
        if isinstance(p.resize, int):
            resizing = (
                "    w, h = image.size\n"
                f"    short = {p.resize}\n"
                "    size = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)\n"
                "    image = image.resize(size, Image.Resampling.BILINEAR)\n"
            )
        else:
            resizing = f"    image = image.resize(({p.resize[1]}, {p.resize[0]}), Image.Resampling.BILINEAR)\n"
    if p.crop is not None:
        height, width = (p.crop, p.crop) if isinstance(p.crop, int) else p.crop
        cropping = (
            "    w, h = image.size\n"
            f"    left, top = int(round((w - {width}) / 2)), int(round((h - {height}) / 2))\n"
            f"    image = image.crop((left, top, left + {width}, top + {height}))\n"
        )
    arithmetic = ""
    if not p.folded:
        arithmetic = (
            f"    x = x.astype(np.float32) * np.float32({p.scale!r})\n"
            f"    x = (x - np.float32({_plain(p.mean)})) / np.float32({_plain(p.std)})\n"
        )
        if p.layout == "NCHW":
            arithmetic += "    x = x.transpose(2, 0, 1)\n"
    return _IMAGE.format(
        input=name,
        resize=f"resize {p.resize}, " if p.resize else "",
        crop=p.crop,
        mode="L" if p.color == "L" else "RGB",
        resizing=resizing,
        cropping=cropping,
        flip="[..., ::-1]" if p.color == "BGR" else "",
        arithmetic=arithmetic,
    )


def _plain(values: object) -> str:
    return repr(list(values) if isinstance(values, (tuple, list)) else values)
