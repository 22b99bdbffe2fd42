"""`edgeml deploy`: a bundle onto devices over SSH."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FiniteFloat, json_option, write_json

if TYPE_CHECKING:
    from ..artifact.bundle import Bundle

EPILOG = """\b
Examples:
  edgeml deploy out --to jetson@orin1
  edgeml deploy out --to hosts.yaml --parallel 4
  edgeml deploy out --to orin1 --power-mode 15W --lock-clocks --duration 30 --rate 30
  edgeml deploy out --to orin1 --plan
  edgeml deploy out --to orin1 --emit systemd
  edgeml deploy --to orin1 --clean
"""


class _Score(click.ParamType):
    """all, none or a number of samples."""

    name = "all|N|none"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value in ("all", "none") or isinstance(value, int):
            return value
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is no number of samples; give all, none or a number", param, ctx)


class _Bytes(click.ParamType):
    """A size with its unit."""

    name = "SIZE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from ..artifact.budget_limit import parse_limit

        try:
            limit = parse_limit("max_size", value)
        except ValueError as e:
            self.fail(str(e).replace("--max-size", "--cache-limit"), param, ctx)
        if limit.relative:
            self.fail("give a size, as in 5GB", param, ctx)
        return int(limit.value)


class _Milliseconds(click.ParamType):
    """A time with its unit."""

    name = "TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from ..artifact.budget_limit import parse_limit

        try:
            limit = parse_limit("latency", value)
        except ValueError as e:
            self.fail(str(e), param, ctx)
        if limit.relative:
            self.fail(
                "a percentage needs what compress measured; give a time, as in 5ms", param, ctx
            )
        return limit.value


@click.command(epilog=EPILOG)
@click.argument("bundle", required=False, type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option(
    "--to",
    required=True,
    metavar="ADDRESS|HOSTS.yaml",
    help="As [ssh://][USER@]HOST[:PORT], where HOST may be an alias of ssh_config; or a list of them.",
)
@click.option("--plan", is_flag=True, help="Print what each device has and what would be built.")
@click.option(
    "--parallel", type=click.IntRange(min=1), default=4, show_default=True, help="Devices at once."
)
@click.option(
    "--target",
    metavar="NAME",
    help="What it is: arm64 and intel-cpu run ONNX Runtime [what is found there].",
)
@click.option(
    "--power-mode", metavar="MODE", help="Mode of nvpmodel, as in 15W; put back afterwards."
)
@click.option(
    "--lock-clocks", is_flag=True, help="Run jetson_clocks by sudo -n; put back afterwards."
)
@click.option(
    "--duration",
    "duration_s",
    type=FiniteFloat(min=0.05),
    default=10.0,
    show_default=True,
    help="Timed seconds an engine.",
)
@click.option(
    "--rate",
    "rate_hz",
    type=FiniteFloat(min=0, min_open=True),
    help="Frames a second to hold; tells what was held, and watts.",
)
@click.option("--score", type=_Score(), default=None, help="Samples to score there [256].")
@click.option("--data", metavar="SOURCE", help="Samples and images [the bundle's own].")
@click.option("--trust-code", is_flag=True, help="Run the user code that a bundle names.")
@click.option("--energy/--no-energy", default=None, help="Measure energy [where a meter is found].")
@click.option(
    "--max-drop", "max_drop_points", type=float, default=None, help="Points [the recipe's]."
)
@click.option(
    "--latency", "latency_ms", type=_Milliseconds(), help="The p50 that must hold, as in 5ms."
)
@click.option("--fetch-engine", is_flag=True, help="Bring the built plan home too.")
@click.option(
    "--emit",
    "emit_kind",
    type=click.Choice(["systemd", "dockerfile"]),
    help="Write beside BUNDLE what to install there to serve the chosen engine.",
)
@click.option("--cache-limit", "cache_limit_bytes", type=_Bytes(), help="Of the cache there.")
@click.option("--cache", default="~/.cache/edgeml", show_default=True, help="Folder there.")
@click.option("--clean", is_flag=True, help="Empty the cache there, or cut it to --cache-limit.")
@json_option
def deploy(
    bundle: Path | None,
    to: str,
    plan: bool,
    parallel: int,
    score: str | int | None,
    data: str | None,
    trust_code: bool,
    clean: bool,
    emit_kind: str | None,
    json_file: str | None,
    **flags: Any,
) -> int:
    """Build BUNDLE's engines on devices, check, score and time them there, and choose the fastest.

    Nothing is installed there and no root is needed: files go to a cache in the user's home, the
    device's own python3 runs them. Host keys must be known. The measurements come home into the
    bundle's measurements/ folder.
    """
    from ..artifact.bundle import open_bundle
    from ..deploy.address import read_addresses
    from ..deploy.clean import clean_devices
    from ..deploy.device_table import table_lines
    from ..deploy.fleet import deploy as deploy_to_all
    from ..deploy.fleet import exit_code
    from ..deploy.plan import options_for
    from ..errors import InputError
    from .progress import Progress

    addresses = read_addresses(to)
    with Progress() as progress:
        if clean:
            limit = flags["cache_limit_bytes"]
            records = clean_devices(addresses, flags["cache"], limit_bytes=limit, log=progress)
        elif bundle is None:
            raise InputError("no bundle: say which, as in edgeml deploy out --to orin1")
        else:
            opened = open_bundle(bundle, trust_code)
            if emit_kind:
                from ..deploy.emit import output_folder

                for address in addresses:
                    output_folder(opened.root, address.name, emit_kind)
            records = deploy_to_all(
                opened,
                addresses,
                options_for(opened, {**flags, "emit": emit_kind}),
                scorer=None if plan else _scorer(opened, data, score, trust_code, progress),
                images=[] if plan else _images(opened, data, progress),
                plan_only=plan,
                parallel=parallel,
                log=progress,
            )
    if json_file != "-":
        click.echo("\n".join(table_lines(records)))
    code = exit_code(records)
    devices = [record.model_dump(mode="json") for record in records]
    write_json({"devices": devices, "exit_code": code}, json_file)
    if emit_kind and not plan and not clean:
        _emit(opened, records, emit_kind)
    return code


def _emit(bundle: Bundle, records: list[Any], kind: str) -> None:
    """A folder for each device on which an engine was chosen; where it lies goes to stderr."""
    from ..deploy.emit import emit

    for record in records:
        if record.chosen is not None:
            click.echo(f"wrote {emit(record, bundle, kind)}", err=True)


def _scorer(
    bundle: Bundle,
    data: str | None,
    score: str | int | None,
    trust_code: bool,
    progress: Callable[[str], None],
) -> Any:
    """What scores the device's answers; None, and why, where nobody asked and there is no data."""
    from ..compress.device_score import DEFAULT_LIMIT, DeviceScorer
    from ..errors import InputError

    if score == "none":
        return None
    limit = None if score == "all" else DEFAULT_LIMIT if score is None else int(score)
    try:
        return DeviceScorer(bundle, data, limit, trust_code)
    except InputError as e:
        if score is not None or data is not None:
            raise
        progress(f"accuracy is not measured on the device: {e}")
        return None


def _images(bundle: Bundle, data: str | None, progress: Callable[[str], None]) -> list[bytes]:
    """Encoded images for end to end; none, and why, where the bundle's data holds none."""
    from ..errors import InputError
    from ..train.raw_images import raw_images

    if "preprocess.json" not in bundle.manifest.files:
        return []
    try:
        return raw_images(data, bundle.root, limit=16)
    except InputError as e:
        progress(f"end to end is not timed on the device: {e}")
        return []
