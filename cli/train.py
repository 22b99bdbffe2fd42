"""`edgeml train`: a training from flags, one call, its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .options import bad_sample_option, preprocess_options, take_preprocess

EPILOG = """\b
Examples:
  edgeml train cnn --data mnist --epochs 5 -o runs/mnist
  edgeml train net.py:build --weights w.safetensors --data imagefolder:photos --epochs 3 -o runs/mine
  edgeml train resnet56 --data cifar10 --optimizer sgd --lr 0.1 --augment crop --augment flip -o runs/r56
  torchrun --nproc-per-node=2 -m edgeml train resnet20 --data cifar10 -o runs/r20
  edgeml train rnn --data text-csv:bbc --max-length 200 --epochs 10 -o runs/bbc
  edgeml train hf:./minilm --data text-csv:bbc --lr 0.0001 --batch 16 --epochs 4 -o runs/minilm-bbc
  edgeml train net.py:build --task gauge_task.py:Task --epochs 20 -o runs/gauge
  edgeml train --resume runs/r20
  edgeml compress runs/mnist --int8 -o runs/mnist-int8
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False)
@click.option("--weights", metavar="FILE", help="Weights to start from, .safetensors.")
@click.option("--data", metavar="SOURCE", help="Where the labelled samples come from.")
@click.option(
    "--task", metavar="FILE.py:NAME", help="A task with its own samples, loss and score; runs it."
)
@click.option(
    "--data-dir", metavar="DIR", help="Where mnist, fashion-mnist or cifar10 lie; no download."
)
@click.option("--classes", metavar="FILE", help="Class names, a line each, in the outputs' order.")
@preprocess_options
@bad_sample_option
@click.option(
    "--augment", type=click.Choice(["flip", "crop"]), multiple=True, help="Of training images."
)
@click.option("--tokenizer", metavar="word|bpe", help="Learnt from training texts [word].")
@click.option("--vocabulary", type=int, help="Token ids at most, of texts [10000].")
@click.option("--max-length", type=int, help="Tokens a text; cut or padded [128].")
@click.option("--width", metavar="N", help="Of a zoo network.")
@click.option("--blocks", metavar="N", help="Blocks a stage, of a zoo's ResNet.")
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="Any other, of a zoo network."
)
@click.option("--epochs", type=int, help="Passes over the training samples [10].")
@click.option("--batch", type=int, help="Samples a step, over all processes [128].")
@click.option("--optimizer", metavar="sgd|adam|adamw", help="Optimizer [adam].")
@click.option("--lr", type=float, help="Highest learning rate [0.001].")
@click.option("--momentum", type=float, help="Of sgd [0.9].")
@click.option("--nesterov", is_flag=True, default=None, help="Of sgd.")
@click.option("--weight-decay", type=float, help="Weight decay [0].")
@click.option("--schedule", metavar="constant|cosine|step", help="Of the learning rate [cosine].")
@click.option("--lr-drop", type=float, help="Of the step schedule: the factor [0.1].")
@click.option("--lr-drop-epochs", metavar="N[,N…]", help="After which epochs it drops.")
@click.option("--warmup", "warmup_epochs", type=float, help="Epochs of linear warm-up [0].")
@click.option("--clip", "clip_norm", type=float, help="Cut the gradient's norm to this.")
@click.option("--loss", metavar="cross-entropy|mse", help="What is minimised [cross-entropy].")
@click.option("--label-smoothing", type=float, help="Of cross-entropy [0].")
@click.option("--patience", type=int, help="Stop after so many epochs that are no better.")
@click.option("--precision", metavar="auto|fp32|bf16", help="Of the steps [auto: the faster].")
@click.option(
    "--channels-last/--no-channels-last", default=None, help="Memory format [the faster]."
)
@click.option("--threads", type=int, help="CPU threads [all or one: the faster].")
@click.option(
    "--fully-shard",
    is_flag=True,
    default=None,
    help="Under torchrun: split weights, gradients and optimizer state too.",
)
@click.option("--seed", type=int, help="Of first weights, order and augmentation [0].")
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="OUT", help="Go on with a killed run."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The run's directory; must not exist.",
)
@click.option("--json", "json_file", metavar="FILE", help="Write the scores; - for stdout.")
def train(
    model: str | None,
    output: Path | None,
    resume: Path | None,
    json_file: str | None,
    **flags: Any,
) -> int:
    """Train MODEL on labelled samples, or fine-tune one's own.

    MODEL is a zoo name (cnn, resnet20 …, mobilenetv2, rnn, transformer), FILE.py:FACTORY (runs
    that file), hf:DIR_OR_ID (a text classifier or encoder of transformers) or timm:NAME. OUT holds
    weights, curves and scores, and is what `edgeml compress` takes.
    """
    from ..errors import InputError
    from ..train.settings import build_settings
    from ..train.tokenizer import build_tokenizer_settings
    from ..train.training_run import TrainingRequest, read_request, run_training
    from .training_bar import TrainingBar

    data_dir = flags.pop("data_dir")
    if data_dir is not None:
        if flags["data"] not in ("mnist", "fashion-mnist", "cifar10"):
            raise InputError("--data-dir is for --data mnist, fashion-mnist or cifar10")
        flags["data"] = f"{flags['data']}:{data_dir}"
    preprocess = take_preprocess(flags)
    flags["lr_drop_epochs"] = _whole_numbers(flags["lr_drop_epochs"])
    tokenizer = {
        name: flags.pop(flag)
        for name, flag in (("kind", "tokenizer"), ("vocabulary", "vocabulary"), ("max_length",) * 2)
    }
    options = _zoo_options(flags.pop("width"), flags.pop("blocks"), flags.pop("options"))
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if resume is not None:
        if model or output or given or preprocess or options or any(tokenizer.values()):
            raise InputError("--resume takes everything from the run; give nothing else beside it")
        request, output = read_request(resume), resume
    else:
        if model is None or output is None or not {"data", "task"} & given.keys():
            raise InputError(
                "give a model, --data SOURCE or --task, and -o OUT (edgeml train --help)"
            )
        words = ("weights", "data", "task", "classes", "on_bad_sample", "augment", "fully_shard")
        own = {name: given.pop(name) for name in words if name in given}
        request = TrainingRequest(
            model=model,
            options=options,
            preprocess=preprocess,
            tokenizer=build_tokenizer_settings(tokenizer),
            settings=build_settings(given),
            **own,
        )
    with TrainingBar(request.settings.epochs) as progress:
        result = run_training(request, output, log=progress, on_step=progress.step)
    if result.scores is None:  # another process of torchrun tells
        return 0
    found = {split: scores.headline() for split, scores in result.scores.items()}
    if json_file:
        text = json.dumps({"summary": result.fit.summary(), **found}, indent=2)
        if json_file == "-":
            click.echo(text)
        else:
            from ..artifact.atomic_file import write_text

            write_text(Path(json_file), text + "\n")
    if json_file != "-":
        click.echo(result.fit.summary())
        for split, scores in result.scores.items():
            click.echo(f"{split}: {scores.line()}")
        trust = " --trust-code" if result.user_code else ""
        click.echo(
            f"the run is {output}; next: edgeml compress {output} --int8{trust} -o {output}-int8"
        )
    return 0


def _whole_numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    from ..errors import InputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise InputError(f"--lr-drop-epochs {text!r}: give epochs, as in 80,120") from e


def _zoo_options(width: str | None, blocks: str | None, options: tuple[str, ...]) -> dict[str, Any]:
    from ..errors import InputError

    pairs = [("width", width), ("blocks", blocks)]
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option {text!r} is no NAME=VALUE")
        pairs.append((name, value))
    return {name: _value(value) for name, value in pairs if value is not None}


def _value(text: str) -> Any:
    """A number, true or false, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
