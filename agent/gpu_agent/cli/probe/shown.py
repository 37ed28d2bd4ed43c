"""Prints the probe's page, as the terminal or the pipe has room for it."""

import time

from gpu_agent.cli.bars import letters
from gpu_agent.cli.probe.page import probe_page
from gpu_agent.cli.terminal import columns, show
from gpu_agent.wire.inventory import Inventory


def print_inventory(inventory: Inventory) -> None:
    """Print everything: GPUs, host, models, what is wrong, the verdict."""
    show(probe_page(inventory, columns(), letters(), now=time.time()))
