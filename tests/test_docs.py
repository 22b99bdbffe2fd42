"""The documents say what the tool does: commands, options, links, examples."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from edgeml.cli import COMMANDS, cli

ROOT = Path(__file__).parents[1]


def tracked(*patterns: str) -> list[Path]:
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *patterns]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in found.split("\0") if name and (ROOT / name).is_file()]


DOCUMENTS = tracked("*.md")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def make_cli_reference():
    script = ROOT / "docs" / "make_cli_reference.py"
    spec = importlib.util.spec_from_file_location("make_cli_reference", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(name: str) -> click.Command:
    return cli.get_command(click.Context(cli), name)


# ---- commands and options ----


def test_the_reference_is_what_the_commands_say(make_cli_reference):
    written = make_cli_reference.PAGE.read_text(encoding="utf-8")
    assert written == make_cli_reference.reference(), "run python docs/make_cli_reference.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_reference_with_a_sentence(name):
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", page.split(f"## edgeml {name}\n")[1], flags=re.MULTILINE)[0]
    for option in command(name).params:
        if isinstance(option, click.Option):
            assert re.match(r"[A-Z0-9]", option.help or ""), f"{option.opts} has no help"
            for spelling in option.opts:
                assert f"`{spelling}`" in section, spelling


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_ends_its_help_in_examples(name, make_cli_reference):
    assert re.search(rf"edgeml {name}\b", (ROOT / "README.md").read_text(encoding="utf-8"))
    lines = make_cli_reference.examples(command(name))
    assert [line for line in lines if line.startswith(f"edgeml {name}")]


def shell_lines() -> list[str]:
    """Every `edgeml …` line of the documents' code blocks and of the commands' own examples."""
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    blocks = [b for text in texts for b in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)]
    joined = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [line.strip().removeprefix("$ ") for line in joined]
    # The reference has the examples of the commands' help.
    return sorted({line for line in lines if re.match(r"edgeml +\w", line)})


@pytest.mark.parametrize("line", shell_lines())
def test_every_command_line_in_the_documents_parses(line):
    words = shlex.split(line, comments=True)[1:]
    group = cli.make_context("edgeml", words)
    rest = (
        [*group._protected_args, *group.args] if hasattr(group, "_protected_args") else group.args
    )
    name, found, arguments = cli.resolve_command(group, rest)
    assert name in COMMANDS, line
    if "--help" not in arguments:
        found.make_context(name, list(arguments), parent=group)


# ---- links ----


def links(document: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_point_to_what_exists(document):
    for link in links(document):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = (document.parent / target).resolve() if target else document
        assert place.is_relative_to(ROOT) and place.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), flags=re.M)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, link


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_named_in_documents_exist(document):
    """`compress/budget.py` in the prose means a file of the root or of the document's folder."""
    folders = "|".join(sorted({path.relative_to(ROOT).parts[0] for path in tracked("*/*")}))
    named = re.findall(
        rf"`((?:{folders})/[\w/.-]+\.(?:py|md))`", document.read_text(encoding="utf-8")
    )
    missing = [n for n in named if not (ROOT / n).exists() and not (document.parent / n).exists()]
    assert missing == []


# ---- examples in docstrings ----


def modules_with_examples() -> list[str]:
    found = []
    for path in tracked("*.py"):
        relative = path.relative_to(ROOT)
        inside = relative.parts[0] not in ("tests", "benchmarks", "examples", "docs")
        if inside and ">>> " in path.read_text(encoding="utf-8"):
            parts = relative.with_suffix("").parts
            found.append(".".join(("edgeml", *(p for p in parts if p != "__init__"))))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_give_what_they_say(name):
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed
