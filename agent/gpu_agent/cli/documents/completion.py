"""`gpu-agent completion`: print what lets a shell complete the words after `gpu-agent`."""

import argparse

from gpu_agent.cli.documents import completion_bash, completion_fish, completion_zsh
from gpu_agent.cli.documents.completion_words import places
from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach

SCRIPTS = {
    "bash": completion_bash.script,
    "zsh": completion_zsh.script,
    "fish": completion_fish.script,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Print a script that completes commands, options and their choices. The packages bring it; after a "
        "pip install, have your shell read it when it starts:\n\n"
        "bash: `source <(gpu-agent completion bash)` in ~/.bashrc\n\n"
        "zsh: `source <(gpu-agent completion zsh)` in ~/.zshrc, behind compinit\n\n"
        "fish: `gpu-agent completion fish | source` in config.fish",
        example="gpu-agent completion bash",
        exits={ExitCode.OK: "printed"},
        asks=False,
    )
    parser.add_argument("shell", metavar="SHELL", choices=tuple(SCRIPTS), help="bash, zsh or fish")


def main(arguments: argparse.Namespace) -> int:
    """Print it."""
    print(SCRIPTS[arguments.shell](places()), end="")
    return ExitCode.OK
