"""Writes docs/cli.md from the commands themselves: python docs/make_cli_reference.py"""

from __future__ import annotations

from pathlib import Path

import click
from edgeml.cli import COMMANDS, cli

PAGE = Path(__file__).with_name("cli.md")

HEAD = """# The command line

Made from the commands by `python docs/make_cli_reference.py`; do not edit it by hand.

Results go to stdout, progress and errors to stderr. `--debug`, anywhere on the line, shows tracebacks.
Exit codes: 0 done, 1 failed, 2 bad input, 3 budget missed, 130 interrupted. Values in brackets are
defaults.
"""


def reference() -> str:
    """The page: a section a command, in the order of a user's way."""
    with click.Context(cli, info_name="edgeml") as root:
        sections = [_section(root, name) for name in COMMANDS]
    return "\n".join([HEAD, *sections])


def _section(root: click.Context, name: str) -> str:
    command = cli.get_command(root, name)
    assert command is not None, name
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    usage = " ".join(["edgeml", name, "[OPTIONS]", *(_argument(p) for p in arguments)])
    prose = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    lines = [f"## edgeml {name}", "", prose, "", f"    {usage}", ""]
    lines += ["| option | meaning |", "|---|---|", *(_row(p) for p in options), ""]
    lines += ["```", *examples(command), "```", ""]
    return "\n".join(lines)


def examples(command: click.Command) -> list[str]:
    """The example lines of a command's help, as they are typed."""
    lines = (command.epilog or "").replace("\b", "").splitlines()
    return [line.removeprefix("  ") for line in lines if line.startswith("  ")]


def _argument(argument: click.Argument) -> str:
    shown = argument.metavar or (argument.name or "").upper()
    return shown if argument.required else f"[{shown}]"


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    values = "" if option.is_flag else f" {_values(option)}"
    default = f" [{option.default}]" if option.show_default and option.default is not None else ""
    meaning = f"{option.help or ''}{default}{' Repeatable.' if option.multiple else ''}"
    return f"| {names}{values} | {_cell(meaning)} |"


def _values(option: click.Option) -> str:
    if option.metavar:
        return _cell(option.metavar)
    if isinstance(option.type, click.Choice):
        return _cell("|".join(map(str, option.type.choices)))
    return {"integer": "INTEGER", "float": "NUMBER"}.get(
        option.type.name.removesuffix(" range"), option.type.name.upper()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
