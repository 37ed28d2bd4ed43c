"""Watches a list of nodes in the form that suits whoever looks; loaded only where something is watched."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from gpu_agent.cli.asking.api import Api
from gpu_agent.cli.asking.following import followed
from gpu_agent.cli.interruption import Interruption
from gpu_agent.cli.live import LiveLines
from gpu_agent.cli.nodes.sheet import node_lines
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.terminal import columns, show
from gpu_agent.cli.watching.view import ScreenView, json_view, lines_view
from gpu_agent.cli.watching.watch import View, Watch

Read = Callable[[], Mapping[str, Any]]


def main(api: Api, read: Read, *, as_json: bool) -> int:
    """Watch until interrupted, which is its good end; raises `Failure`."""
    if as_json or not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        _until_interrupted(api, read, json_view() if as_json else lines_view())
        return ExitCode.OK
    seen: list[Mapping[str, Any]] = []

    def reading() -> Mapping[str, Any]:
        seen[:] = [read()]
        return seen[0]

    reading()  # a registry that does not answer is told in the open, not on a screen that goes
    with LiveLines(Console(), whole_screen=True) as live:
        _until_interrupted(api, reading, ScreenView(live))
    show(node_lines(seen[0], columns(), now=time.time()))
    return ExitCode.OK


def _until_interrupted(api: Api, read: Read, view: View) -> None:
    with Interruption() as interruption:
        try:
            Watch(read, lambda: followed(api, answered=True), view).run()
        except KeyboardInterrupt:
            interruption.finish()
