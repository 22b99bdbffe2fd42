"""The command line: one file a command; each parses, calls one function, prints."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from .. import __version__
from ..artifact.interrupt import listen_for_interrupt
from ..errors import EdgemlError, nearest, one_line

# Command → its module, in the order of a user's way. Only the one that is called is imported.
COMMANDS = {
    "demo": "The whole way on a small network, in three minutes.",
    "train": "Train a network, or fine-tune your own.",
    "compress": "Make the fastest engine that keeps the accuracy budget.",
    "export": "A graph for TensorRT, its engine, or the command that builds it on the device.",
    "lint": "What a TensorRT version rejects, gets wrong or runs slowly, and the mend.",
    "run": "Run an engine on photos, texts or arrays and print its answer.",
    "bench": "Time engines; compare two or more.",
    "deploy": "Build, check, score and time a bundle's engines on devices, over SSH.",
    "sweep": "Try many configurations of a network: the front of accuracy, speed and size.",
    "report": "Print a bundle's table; write it as Markdown, CSV, JSON.",
    "doctor": "What works on this machine, and what to install.",
}


class LazyGroup(click.Group):
    """Imports a command's module only when it is called, so that `edgeml --help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", __name__)
        return getattr(module, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}, {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    epilog="Start with `edgeml demo`; then `edgeml compress model.onnx --data imagefolder:photos --int8 -o out`.",
)
@click.version_option(__version__, prog_name="edgeml")
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
def cli() -> None:
    """From a trained network to a measured engine on an edge device."""


def main(args: list[str] | None = None) -> None:
    """Entry point: every error becomes one line and an exit code, here and nowhere else.

    Exit codes: 0 done, 1 failed, 2 bad input, 3 budget missed, 130 interrupted.
    """
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    # --debug is understood anywhere on the line, because it is added after something went wrong.
    args = [arg for arg in args if arg != "--debug"]
    listen_for_interrupt()
    try:
        code = cli.main(args=args, prog_name="edgeml", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; the same command goes on where it stopped", 130, debug)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as e:
        hint = (
            f" (edgeml {e.ctx.info_name} --help)"
            if getattr(e, "ctx", None) and e.ctx.parent
            else ""
        )
        _fail(f"{one_line(Exception(e.format_message()))}{hint}", 2, debug)
    except EdgemlError as e:
        _fail(str(e), e.exit_code, debug)
    except OSError as e:
        _fail(f"{e.strerror or one_line(e)}: {e.filename}" if e.filename else one_line(e), 1, debug)
    except SystemExit as e:
        _fail(
            f"the model's, the task's or a library's code ended the run: sys.exit({e.code!r})",
            2,
            debug,
        )
    except MemoryError:
        _fail("out of memory; try a smaller --batch or fewer --calibration-samples", 1, debug)
    except Exception as e:
        # A bug of ours, or of a library that we did not foresee: still one line, and how to see more.
        _fail(f"internal error: {type(e).__name__}: {one_line(e)} (--debug shows where)", 1, debug)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise  # called from an except block only
    # One line, whatever a library put into its message.
    line = " ".join(message.split())
    # Names in archives and graphs may hold characters that steer a terminal.
    click.echo(f"edgeml: {''.join(c if c.isprintable() else '?' for c in line)}", err=True)
    sys.exit(code)
