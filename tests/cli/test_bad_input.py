"""Bad input: one line, exit 2, nothing written, nothing lost; each case found by trying it."""

from __future__ import annotations

import re

import pytest
from edgeml.artifact.work_directory import WorkDirectory

INT8 = "--data npz:good.npz --int8"
PHOTOS = "--data imagefolder:photos --resize 16 --crop 16 --int8"

# Arguments of `edgeml compress … -o OUT` → what the line says (a regular expression).
MODELS = {
    f"nope.onnx {INT8}": "no ONNX file at nope.onnx",
    f"zero.onnx {INT8}": "zero.onnx is empty",
    f"cut.onnx {INT8}": "cut.onnx is no ONNX model, or is cut short",
    f"junk.onnx {INT8}": "junk.onnx is no ONNX model",
    f"weights.pt {INT8}": "weights alone are no model; name the code that builds it",
    f"no-bundle {INT8}": "no-bundle is no bundle: it has no manifest.json",
    f"net.py {INT8}": "names no factory; write net.py:NAME",
    f"gone.py:build {INT8}": "no file gone.py",
    f"net.py:biuld {INT8}": "did you mean build?",
    f"net.py:raises {INT8}": r"net.py:\d+ raised ValueError: boom$",
    f"net.py:leaves {INT8}": r"net.py:\d+ raised SystemExit",
    f"net.py:nothing {INT8}": "returned a NoneType; it must return a torch.nn.Module",
    f"net.py:needs {INT8}": r"needs arguments \(width\)",
    f"net.py:number {INT8}": "is an int",
    f"net.py:nan {INT8}": r"holds NaN or infinite values: fc.bias \(1 of 4\)",
    f"net.py:Infinite {INT8}": "NaN or infinite outputs on the first sample",
    f"net.py:Fails {INT8}": "does not take a sample .*: not today",
    f"net.py:Empty {INT8}": "Empty.forward takes no input",
    f"syntax.py:build {INT8}": "syntax.py:1 raised SyntaxError",
    f"lacks.py:build {INT8}": "No module named 'nosuchmodule'",
    f"empty.py:build {INT8}": "empty.py is empty",
    f"zoo:resnet21 {INT8}": "did you mean resnet20",
    f"hf:./none {INT8}": "there is no such directory",
    "net.py:build --allow-random-calibration --int8": "a torch model needs --data or --task",
    f"net.py:build --weights gone.safetensors {INT8}": "no weights at gone.safetensors",
    f"net.py:build --weights zero.safetensors {INT8}": "is empty",
    f"net.py:build --weights cut.safetensors {INT8}": "is cut short",
    f"net.py:build --weights weights.pt {INT8}": "weights must be .safetensors",
    f"net.py:build --weights shapes.safetensors {INT8}": "fc.weight has shape 5×3, the model's is 4×3",
    f"net.py:build --weights names.safetensors {INT8}": "fc.weight is missing; .*model.fc.weight is unexpected",
    f"net.py:build --weights other.safetensors {INT8}": r"(; .*){5}and 6 more$",
    f"net.py:build --weights nan.safetensors {INT8}": "holds NaN",
    f"net.onnx --weights good.safetensors {INT8}": "an ONNX file carries its own",
    f"foreign-op.onnx {INT8}": r"operators outside the ONNX standard: mine:Foo \(1×\)",
    f"unknown-op.onnx {INT8}": "No Op registered for Foo",
    f"unpool.onnx --runtime openvino {INT8}": "OpenVINO cannot read .*operations: MaxUnpool",
    f"unranked.onnx {INT8}": "'x' has no shape, not even a rank",
    "open.onnx --allow-random-calibration --int8": "has open axes; without data",
    f"open.onnx {PHOTOS.replace('--resize 16 --crop 16', '')}": "give --resize and --crop",
    f"clash.onnx {INT8}": "contradict each other",
    f"single.onnx {INT8}": "has one output, which names no class",
    f"nan.onnx {INT8}": r"NaN weights: w \(1 of 3,072\)",
    f"two.onnx {INT8}": "this one has x, z; write a --task",
    f"batch8.onnx {INT8}": "fixed to batch 8; give --batch 8",
    f"apart/outside.onnx {INT8}": "outside the model's folder; refused",
    f"apart/gone.onnx {INT8}": "'gone.bin' is missing beside it",
}
TASKS = {
    "NoScore": "no method score",
    "NoSamples": "no method samples",
    "NoPrimary": "has no primary",
    "Raises": "score raises KeyError: 'cer'",
    "Leaves": "score raises SystemExit: 5",
    "NotANumber": "score gives right = nan",
    "Text": "which is no number",
    "Other": "not its primary metric 'right'",
    "NoFile": "FileNotFoundError: No such file or directory: gone.npz",
    "Late": "fails at sample 20: ValueError: late",
    "TrainRaises": r"samples\('train'\) fails at sample 0: ValueError: no train here",
    "NoTrain": "yields no train samples; edgeml calibrates on train",
    "NoTest": "yields no test samples",
    "Nothing": "'NoneType' object is not iterable",
    "Named": "gives inputs image; the network takes x",
    "Batched": "samples come without the batch axis",
    "Double": "is float64, the network takes float32",
    "Bare": r"yields ndarray, not \(inputs, target\)",
    "Empty": "outputs NaN at sample 0",
    "InitRaises": r"task.py:\d+ raised RuntimeError: init",
    "Goood": "did you mean Good?",
    "Good --calibration-data npz:good.npz": "--calibration-data is for --data",
    "Good --resize 16": "is for --data",
    "Good --data npz:good.npz": "both give samples",
}
DATA = {
    "imagefoldr:photos": "did you mean imagefolder:",
    "photos": "which is a folder: imagefolder:photos",
    "digts": "did you mean digits",
    "npz:": "names nothing; it takes FILE",
    "npz:gone.npz": "no file at gone.npz",
    "npz:none.npz": "holds no sample",
    "npz:one.npz": "one class only",
    "npz:range.npz": r"range.npz: x\[3\]: label '9' names no class, the network has 4 \(0 to 3\)",
    "npz:order.npz": "labels are in another order .*number the labels in the order of the outputs",
    "npz:gray.npz": r"a sample of npz:gray.npz is 1×16×16, .* takes 3×16×16; arrays are fed as they",
    "npz:small.npz": "is 3×12×12, the network's input x takes 3×16×16",
    "npz:bytes.npz": "is uint8, the network takes float32",
    "npz:nan.npz": r"nan.npz: x\[5\]: holds NaN",
    "npz:keys.npz": r"no array x \(arrays: a, b\)",
    "npz:short.npz": "y has shape",
    "npz:junk.npz": "is no .npz archive",
    "npz:cut.npz": "is cut short",
    "npz:good.npz --calibration-data npz:gray.npz": "a sample of npz:gray.npz is 1×16×16",
    "npz:good.npz --calibration-data npz:gone.npz": "no file at gone.npz",
    "npz:good.npz --fold-preprocess": "needs image data",
    "imagefolder:gone": "neither a directory nor a .zip",
    "imagefolder:no-bundle": "no image in it",
    "imagefolder:no-image": "no image in it",
    "images:no-bundle": "holds no image",
    "imagefolder:three": "has 3 classes, the network 4 outputs; --classes FILE",
    "imagefolder:photos --classes gone.txt": "--classes gone.txt cannot be read: No such file",
    "imagefolder:damaged": "imagefolder:damaged: c1/7.png: unreadable image",
    "imagefolder:photos --calibration-data imagefolder:damaged": "damaged: c1/7.png: unreadable",
    "imagefolder:all-bad --on-bad-sample skip": "every sample is bad",
    "imagefolder:photos --resize 16 --crop 16 --color L": "is 1×16×16, .* takes 3×16×16; --resize",
    "imagefolder:photos --resize 20 --crop 12": "is 3×12×12",
    "imagefolder:photos --resize 16 --crop 16 --layout NHWC": "is 16×16×3",
    "imagefolder:photos --resize 8 --crop 16": "smaller than the crop 16×16; resize it first",
    "imagefolder:photos --resize big": "is no size; give 224 or 224x320",
    "imagefolder:photos --mean a,b": "give numbers separated by commas",
    "imagefolder:photos --mean 1,2": "mean has 2 values, RGB has 3 channels",
    "imagefolder:photos --std 0": "must not be 0",
    "imagefolder:photos --preprocess how.json": "unknown key 'resise', did you mean resize",
    "imagefolder:photos --preprocess gone.json": "cannot be read: No such file",
    "images-csv:columns.csv": r"no column 'file' \(columns: path, class",
    "images-csv:head.csv": "holds no sample",
    "images-csv:zero.csv": r"no column 'file' \(columns: none",
    "images-csv:gone.csv": r"line 62: photos/c0/none.png: No such file or directory \(--on-bad",
    "images-csv:nope.csv": "nope.csv cannot be read",
    "samples.py:raises": r"samples.py:\d+ raised OSError: disk on fire",
    "samples.py:number": "gives int; it must give",
}
OPTIONS = {
    "": "no model: give model.onnx",
    "net.onnx --int8": "no data: --data SOURCE or --task",
    f"net.onnx {INT8} --int9": "No such option '--int9'.*Did you mean.*'--int8'",
    f"net.onnx {INT8} --max-dorp 1": "Did you mean.*'--max-drop'",
    f"net.onnx other.onnx {INT8}": r"unexpected extra argument \(other.onnx\)",
    f"net.onnx {INT8} --runtime opnvino": "unknown runtime 'opnvino', did you mean openvino",
    f"net.onnx {INT8} --precision int88": "unknown precision 'int88', did you mean int8",
    f"net.onnx {INT8} --target cpuu": "unknown target 'cpuu', did you mean cpu",
    f"net.onnx {INT8} --route nccf": "unknown route 'nccf', did you mean nncf",
    f"net.onnx {INT8} --calibration-method minmx": "did you mean minmax",
    f"net.onnx {INT8} --runtime torch": "builds no engine file",
    f"net.onnx {INT8} --runtime onnxruntime --route nncf": "no engine could ship",
    f"net.onnx {INT8} --max-drop -1": "--max-drop -1.0 is no budget; give points ≥ 0",
    f"net.onnx {INT8} --max-drop nan": "--max-drop nan is no budget",
    f"net.onnx {INT8} --max-drop 1%": "is not a valid float",
    f"net.onnx {INT8} --threads 0": "0 is not in the range x>=1",
    f"net.onnx {INT8} --threads 100000": r"--threads 100000: this machine has \d+ CPUs",
    f"net.onnx {INT8} --batch 0": "0 is not in the range",
    f"net.onnx {INT8} --time 0": "'0' is no duration; give 2h, 90m or 600s",
    f"net.onnx {INT8} --time nan": "'nan' is no duration",
    f"net.onnx {INT8} --seed -1": "-1 is not in the range",
    f"net.onnx {INT8} --calibration-samples 0": "0 is not in the range",
    f"net.onnx {INT8} --nodes-to-exclude *conv": "'\\*conv' is no regular expression",
    f"net.onnx {INT8} --nodes-to-exclude nosuch": "matches none of the 5 nodes, as in conv, relu",
    f"net.onnx {INT8} --allow-random-calibration": "is for runs without data",
    f"net.onnx {INT8} --json gone/x.json": "gone/x.json cannot be written: there is no folder gone",
    f"net.onnx {INT8} --json taken": "taken cannot be written: it is a directory",
    "--recipe gone.yaml": "recipe gone.yaml cannot be read",
    "--recipe broken.yaml": "is no valid YAML at line 2",
    "--recipe list.yaml": "holds no mapping",
    "--recipe zero.yaml": "holds no mapping",
    "--recipe word.yaml": "unknown key 'modle', did you mean model",
    "--recipe type.yaml": "batch: .*valid integer.*'many'",
    "--recipe later.yaml": "recipe version 9 is not 1; upgrade",
    "--recipe steps.yaml": "line 3: steps: give a list of mappings",
    "--recipe prune.yaml": "step prune: net.onnx is an ONNX file; pruning, distillation and QAT train",
    "--recipe twice.yaml": "line 3: step quantize stands twice",
    "--recipe order.yaml": "line 3: prune after quantize is impossible",
    "--recipe steep.yaml": "line 3: --latency 150%: a percentage is of the plain INT8 engine",
    f"net.onnx {INT8} --latency 5": "--latency 5 has no unit; give a limit with its unit",
    f"net.onnx {INT8} --latency 0ms": "--latency 0ms is no limit above 0",
    f"net.onnx {INT8} --latency -1ms": "--latency -1ms is no limit above 0",
    f"net.onnx {INT8} --latency 150%": "at most 100%",
    f"net.onnx {INT8} --max-size 5ms": "--max-size 5ms: unknown unit 'ms', known: %, b, kb",
    f"net.onnx {INT8} --max-energy 5mJ": "energy cannot be measured here",
    f"net.onnx {INT8} --epochs 3": "an ONNX file without weights to train",
    "--recipe precisions.yaml": "precisions: Input should be a list, got 'int8'",
    "--recipe taken": "cannot be read: Is a directory",
}
COMPRESS = {
    **MODELS,
    **{f"net.onnx --task task.py:{name} --int8": said for name, said in TASKS.items()},
    **{f"net.onnx --int8 --data {data}": said for data, said in DATA.items()},
    f"gray.onnx --color RGB {PHOTOS}": "is 3×16×16, the network's input x takes 1×16×16",
    f"net.py:Narrow {INT8.replace('good', 'gray')}": "does not take a sample of the data",
    **OPTIONS,
}


def refused(run, said: str) -> None:
    """One line of ours on stderr that says it, exit 2, nothing on stdout."""
    assert run.code == 2, (run.said, run.progress)
    assert len(run.said) == 1 and run.said[0].startswith("edgeml: "), run.said
    assert re.search(said, run.said[0]), run.said[0]
    assert run.stdout == ""


@pytest.mark.parametrize("args", COMPRESS, ids=lambda args: args or "nothing")
def test_compress_refuses(args, inside, edgeml, tmp_path):
    run = edgeml("compress", *args.split(), "-o", tmp_path / "out")
    refused(run, COMPRESS[args])
    assert not [line for line in run.progress if "quantizing" in line], (
        "refused before any such work"
    )
    assert not list(tmp_path.iterdir()), "neither OUT nor OUT.part"


OUTS = {
    "taken": "taken exists; remove it or choose another",
    "file": "file exists",
    "link": "link exists",
    ".": "exists",
    "gone/on/out": "the folder gone/on does not exist",
    "file/out": "the folder file does not exist",
    "foreign": r"foreign.part holds 'keep.txt', which is no run of edgeml",
    "/proc/out": "/proc/out.part cannot be written",
    "o" * 260: "File name too long",
}


@pytest.mark.parametrize("out", OUTS)
def test_an_output_that_cannot_be_is_refused_and_left_alone(out, inside, edgeml):
    before = sorted(inside.rglob("*"))
    refused(edgeml("compress", "net.onnx", *INT8.split(), "-o", out), OUTS[out])
    assert sorted(inside.rglob("*")) == before


def test_without_output_nothing_is_done(inside, edgeml):
    refused(edgeml("compress", "net.onnx", *INT8.split()), "no output: say where .* as in -o out")


def test_another_recipes_unfinished_run_is_refused_and_kept(inside, edgeml, tmp_path):
    with pytest.raises(KeyboardInterrupt), WorkDirectory(tmp_path / "out", "its hash") as work:
        work.log("done", "quantize")
        raise KeyboardInterrupt
    args = ("compress", "net.onnx", *INT8.split(), "-o", tmp_path / "out")
    refused(edgeml(*args), "out.part belongs to another recipe; finish that one, remove the folder")
    assert (tmp_path / "out.part" / "stages.jsonl").is_file()


def test_a_second_run_on_the_same_output_is_refused(inside, edgeml, tmp_path):
    with WorkDirectory(tmp_path / "out", "its hash"):
        args = ("compress", "net.onnx", *INT8.split(), "-o", tmp_path / "out")
        refused(edgeml(*args), "another run works on .*out.part; wait for it")
        assert (tmp_path / "out.part").is_dir()


def test_a_cache_that_cannot_be_written_is_refused(inside, edgeml, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_CACHE", str(inside / "net.onnx"))
    args = ("compress", "net.onnx", *INT8.split(), "-o", tmp_path / "out")
    refused(edgeml(*args), "the cache .* cannot be written .*; set EDGEML_CACHE")


def hashes(root, edit):
    (root / "model.onnx").write_bytes((root / "model.onnx").read_bytes()[::-1])


def newer(root, edit):
    edit(root, lambda manifest: manifest.update(version=99))


def torn(root, edit):
    (root / "manifest.json").write_text("{")


def lost(root, edit):
    (root / "model.onnx").unlink()


def added(root, edit):
    (root / "evil.so").write_text("")


def linked(root, edit):
    (root / "model.onnx").unlink()
    (root / "model.onnx").symlink_to("/etc/passwd")


def code(root, edit):
    edit(root, lambda m: m["model"].update(user_code={"file": "net.py", "text": "", "sha256": "0"}))


DAMAGES = {
    hashes: "model.onnx does not match its hash: damaged or changed",
    newer: r"was written by a newer edgeml \(manifest 99, this one reads \d+\): upgrade",
    torn: "manifest.json is damaged",
    lost: "model.onnx is missing; copy the bundle again",
    added: "evil.so is not listed in its manifest",
    linked: "'model.onnx' is a link; refused",
    code: r"names user code \(net.py\); --trust-code runs it",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_command_refuses_a_bundle_that_is_not_as_it_was_made(
    damage, inside, edgeml, tmp_path, make_bundle, edit_manifest
):
    root = make_bundle(tmp_path / "given")
    damage(root, edit_manifest)
    for args in (
        ("compress", root, *INT8.split(), "-o", tmp_path / "out"),
        ("bench", root),
        ("report", root),
    ):
        refused(edgeml(*args), DAMAGES[damage])
    assert [p.name for p in tmp_path.iterdir()] == ["given"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["comprss", "net.onnx"], "unknown command 'comprss', did you mean compress"),
        (["--int8"], "No such option '--int8'"),
        (["report"], "Missing argument 'BUNDLE.*'"),
        (["report", "gone"], "gone is no bundle: there is no such directory"),
        (["report", "net.onnx"], "net.onnx is no bundle"),
        (["doctor", "--json", "gone/x.json"], "there is no folder gone"),
        (["doctor", "all"], "unexpected extra argument"),
    ],
)
def test_unknown_words_are_told_in_one_line(args, said, inside, edgeml):
    refused(edgeml(*args), said)


def test_without_a_command_the_help_is_shown(edgeml):
    run = edgeml()
    assert run.code == 2 and any("compress" in line for line in run.said)


def test_code_that_ends_the_process_is_told(inside, edgeml, tmp_path, monkeypatch):
    def leave(*args, **options):
        raise SystemExit(0)

    monkeypatch.setattr("edgeml.compress.run_recipe.open_job", leave)
    args = ("compress", "net.onnx", *INT8.split(), "-o", tmp_path / "out")
    refused(edgeml(*args), r"code ended the run: sys.exit\(0\)")


def test_the_mended_command_is_not_refused_for_what_the_wrong_one_left(inside, edgeml, tmp_path):
    """A refusal after a stage was done (scoring the reference) must not leave OUT.part taken."""
    out = tmp_path / "out"
    refused(edgeml("compress", "net.onnx", "--data", "npz:order.npz", "--int8", "-o", out), "order")
    refused(
        edgeml("compress", "net.onnx", "--data", "npz:one.npz", "--int8", "-o", out), "one class"
    )
