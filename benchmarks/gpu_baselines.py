"""What a GPU does without TensorRT: torch eager, torch.compile, AOTInductor, in fp32, bf16, fp16.

    python benchmarks/gpu_baselines.py [--networks resnet50,vit-b,encoder] [--batches 1,8] [--window 10] [--no-energy]

ResNet-50, ViT-B/16 and a BERT-base encoder (128 tokens) of transformers, random weights: latency says nothing
of accuracy. Latency of all modes of one network, type and batch in interleaved blocks of one process (host wall
clock), parts by CUDA events, joules by NVML's total-energy counter (gross and net). TensorRT has a script of its own
(tensorrt_gpu.py). A row that cannot be had says why: without a GPU, every one.

Writes benchmarks/results/gpu_baselines.json and gpu_baselines.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgeml.artifact.machine import describe_machine
from edgeml.errors import EdgemlError
from edgeml.runtime.bench_energy import energy_measurements, engine_energy
from edgeml.runtime.bench_gpu import gpu_state, gpu_times
from edgeml.runtime.engine import Engine, EngineOptions
from edgeml.runtime.latency import bench
from edgeml.runtime.torch_engine import TorchEngine

RESULTS = Path(__file__).resolve().parent / "results"
MODES = ("eager", "compile", "aoti")
TYPES = ("fp32", "bf16", "fp16")


class First(torch.nn.Module):
    """A transformers model as a network of one output."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name


class Image(First):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(pixel_values=pixel_values), self.name)


class Text(First):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(input_ids=input_ids, attention_mask=attention_mask), self.name)


def network(name: str, batch: int) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """Random weights, one batch of inputs."""
    import transformers as hf

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    if name == "encoder":
        ids = rng.integers(0, 30_000, (batch, 128))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return Text(hf.BertModel(hf.BertConfig()), "last_hidden_state"), inputs
    images = {"pixel_values": rng.standard_normal((batch, 3, 224, 224)).astype(np.float32)}
    if name == "vit-b":
        return Image(hf.ViTForImageClassification(hf.ViTConfig(num_labels=1000)), "logits"), images
    model = hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000))
    return Image(model, "logits"), images


def engines(
    stack: ExitStack, name: str, execution: str, batch: int
) -> Iterator[tuple[str, Engine | str, dict[str, np.ndarray]]]:
    """By mode an engine, or why there is none."""
    module, inputs = network(name, batch)
    options = EngineOptions(batch=batch, execution=execution)
    for mode in MODES:
        try:
            engine = TorchEngine(module, inputs, options=options, device="cuda", mode=mode)
        except EdgemlError as e:
            yield mode, str(e), inputs
            continue
        yield mode, stack.enter_context(engine), inputs


def rows(
    name: str, execution: str, batch: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    base = {"network": name, "execution": execution, "batch": batch}
    if not torch.cuda.is_available():
        why = f"not run on hardware: torch {torch.__version__} sees no GPU here"
        return [{**base, "mode": mode, "state": why} for mode in MODES]
    found = []
    with ExitStack() as stack:
        made = list(engines(stack, name, execution, batch))
        alive = {mode: engine for mode, engine, _ in made if isinstance(engine, Engine)}
        feeds = {mode: inputs for mode, engine, inputs in made if mode in alive}
        reference = "eager" if "eager" in alive else None
        seconds = options.seconds
        timed = bench(alive, feeds, duration_s=seconds, reference=reference) if alive else None
        for mode, engine, inputs in made:
            row: dict[str, Any] = {**base, "mode": mode, "state": "run on hardware"}
            found.append(row)
            if isinstance(engine, str):
                row["state"] = f"not run on hardware: {engine}"
                continue
            timing = timed[mode]
            row["p50_ms"] = timing.p50_ms.model_dump(mode="json")
            row["p99_ms"] = timing.p99_ms.model_dump(mode="json")
            row["speedup"] = timing.speedup.model_dump(mode="json") if timing.speedup else None
            parts = gpu_times(engine, inputs, options.seconds)
            row["parts_ms"] = {k: m.model_dump(mode="json") for k, m in parts.items()}
            row["gpu_memory_bytes"] = engine.gpu_memory_bytes()
            row["gpu"] = gpu_state()
            if options.energy:
                reading = engine_energy(engine, inputs, window_s=options.window, log=print)
                gross, net = energy_measurements(reading)
                row["energy_gross_mj"], row["energy_net_mj"] = (
                    m.model_dump(mode="json") for m in (gross, net)
                )
                row["energy"] = reading.as_json()
    return found


def text_of(found: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    gpu = gpu_state()
    lines = [
        f"On {gpu.get('gpu', 'no GPU')}, driver {gpu.get('driver', '-')}, {machine['cpu']}; torch {torch.__version__}.",
        "",
        "| network | batch | type | mode | p50 ms (host) | GPU compute ms | × eager | gross mJ | net mJ | state |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def value(row: dict[str, Any], *keys: str) -> str:
        cell: Any = row
        for key in keys:
            cell = (cell or {}).get(key)
        return f"{cell:.4g}" if isinstance(cell, float | int) else "not measured"

    for row in found:
        cells = [
            value(row, "p50_ms", "value"),
            value(row, "parts_ms", "compute", "value"),
            value(row, "speedup", "value"),
            value(row, "energy_gross_mj", "value"),
            value(row, "energy_net_mj", "value"),
        ]
        head = f"| {row['network']} | {row['batch']} | {row['execution']} | {row['mode']} | "
        lines.append(head + " | ".join(cells) + f" | {row['state']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="resnet50,vit-b,encoder")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--seconds", type=float, default=2.0, help="timed an engine")
    parser.add_argument(
        "--window", type=float, default=10.0, help="seconds an energy window, at least 10"
    )
    parser.add_argument("--no-energy", dest="energy", action="store_false")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    cases = itertools.product(
        options.networks.split(","), map(int, options.batches.split(",")), options.types.split(",")
    )
    RESULTS.mkdir(exist_ok=True)
    machine = describe_machine()
    for name, batch, execution in cases:
        print(f"== {name}, batch {batch}, {execution}", flush=True)
        found += rows(name, execution, batch, options)
        # After each case: a lent GPU may go back in the middle.
        record = {"machine": machine, "rows": found}
        (RESULTS / "gpu_baselines.json").write_text(json.dumps(record, indent=1) + "\n")
        (RESULTS / "gpu_baselines.md").write_text(text_of(found, machine))
    print(text_of(found, machine))


if __name__ == "__main__":
    main()
