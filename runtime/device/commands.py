"""The zipapp's commands: agent, work, power (what the host and the agent call), serve, probe (by hand)."""

from __future__ import annotations

import argparse
import os
import sys


def main(words: list[str]) -> int:
    """Run a command; the exit status. An expected error is one line and status 2."""
    parser = argparse.ArgumentParser(prog="edgeml-agent")
    commands = parser.add_subparsers(dest="command")
    agent = commands.add_parser("agent", help="answer a host on stdin and stdout")
    agent.add_argument("--cache", required=True)
    agent.add_argument("--lock-fd", type=int, default=None)
    commands.add_parser("work", help="one piece of work; the agent's child")
    power = commands.add_parser("power", help="set and hold a power state, as root")
    power.add_argument("--state", required=True)
    power.add_argument("--mode", type=int, default=None)
    power.add_argument("--lock-clocks", action="store_true")
    power.add_argument("--restore", action="store_true")
    power.add_argument("--root", default="/")
    commands.add_parser("probe", help="what this device is and has, as JSON")
    serve = commands.add_parser("serve", help="serve a folder that edgeml deploy --emit wrote")
    serve.add_argument("folder")
    serve.add_argument("--socket", required=True)
    serve.add_argument("--sha256", default=None, help="of engine.json; refused when it differs")
    serve.add_argument("--cache", default="~/.cache/edgeml")
    given = parser.parse_args(words)
    # Whatever started this with -c or a zip: the same program again, for children.
    program = [sys.executable, "-u", os.path.abspath(sys.argv[0])]
    if given.command == "agent":
        from .agent import Agent

        return Agent(os.path.expanduser(given.cache), program).run()
    if given.command == "work":
        from .work import work

        return work()
    if given.command == "power":
        from .power_hold import hold

        return hold(given.state, given.mode, given.lock_clocks, given.restore, given.root)
    if given.command == "probe":
        from .probe import main as probe_main

        probe_main()
        return 0
    if given.command == "serve":
        from ...errors import EdgemlError
        from .serve_folder import serve_folder

        try:
            serve_folder(given.folder, given.socket, given.sha256, os.path.expanduser(given.cache))
        except EdgemlError as e:
            sys.stderr.write(f"edgeml: {e}\n")
            return e.exit_code
        return 0
    parser.print_usage(sys.stderr)
    return 2
