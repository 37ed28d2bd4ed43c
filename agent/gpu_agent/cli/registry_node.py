"""`gpu-agent registry node`: one node in full."""

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpu_agent.cli.answers import NODE_DETAIL
from gpu_agent.cli.api import Api, add_api_option, quoted
from gpu_agent.cli.node_table import STATUS_STYLES, gpus_in_words
from gpu_agent.cli.outcome import ExitCode

SHOWN_EVENTS = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = (
        "Show one node: its status and what would change it, every health check, GPUs, models, history."
    )
    parser.add_argument("node_id", metavar="ID", help="the node, as `registry nodes` shows it")
    parser.add_argument("--json", action="store_true", help="print what GET /v1/nodes/{id} returns")
    add_api_option(parser)


def main(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    node = Api.of(arguments).get(f"/v1/nodes/{quoted(arguments.node_id)}", NODE_DETAIL)
    if arguments.json:
        print(json.dumps(node, indent=2))
    else:
        _print(node)
    return ExitCode.OK


def _print(node: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    status = str(node["status"])
    headline = Text(f"{node['node_id']}  ").append(status, style=STATUS_STYLES.get(status, ""))
    console.print(
        headline.append(f"  since {_clock(node['since'])}  ({node['reason_code']})", style="default")
    )
    console.print(Text(f"{node['reason']}"))
    if node.get("clears_when"):
        console.print(Text(f"Changes when: {node['clears_when']}"))
    connection = "connected" if node["connected"] else "not connected"
    console.print(
        Text(f"{connection}, {node['in_flight_jobs']} of {node['max_concurrent_jobs']} places taken")
    )
    console.print(Text(f"GPUs: {gpus_in_words(node['gpus'])}"))
    models = [
        f"{model['model_id']} {model['version']} {model['status']}" for model in node["installed_models"]
    ]
    console.print(Text(f"Models: {', '.join(models) or 'none'}"))
    checks = Table(box=None, pad_edge=False, show_header=False)
    for check in node["checks"]:
        mark = Text("ok", style="green") if check["ok"] else Text("FAILS", style="red")
        checks.add_row(mark, Text(check["name"]), Text(check["detail"]))
    console.print(checks)
    for event in node["events"][-SHOWN_EVENTS:]:
        console.print(Text(_event(event), style="dim"))


def _event(event: Mapping[str, Any]) -> str:
    fields = " ".join(
        f"{name}={value}" for name, value in event.get("fields", {}).items() if name != "node_id"
    )
    return f"{_clock(event['at'])} {event['event']} {fields}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
