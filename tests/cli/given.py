"""What a command is given by its words: as click reads them, without running it."""

from collections.abc import Sequence

import click

from gpu_agent.cli.command import Arguments
from gpu_agent.cli.declaration import Declaration, values_of


def given(params: Sequence[click.Parameter], *words: str) -> Arguments:
    """Read words as these options and arguments; raises `Failure`."""
    declared = Declaration(about="Does it.", example="gpu-agent it", params=params)
    return Arguments(**values_of(declared, ["gpu-agent", "it"], words))
