"""`gpu-agent doctor`: looks at all that the agent needs, and says how to mend what is wrong.

It uses the settings that `gpu-agent run` would use, registers nothing and writes nothing.
"""

import argparse
from pathlib import Path

from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import teach
from gpu_agent.cli.tls_options import add_tls_options

DESCRIPTION = """\
Look at all that the agent needs, from the driver to the registry's door, and print a line for each: OK,
WARN (it works, and something about it should be known), FAIL (it keeps the agent from its work) or SKIP,
with how to mend it. It goes the way to the registry up to the handshake and registers nothing; tokens are
tried and never shown. Every step has a deadline. It uses the same settings as `gpu-agent run`: run it as
the agent's user."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; what is not given is left to the other layers."""
    teach(
        parser,
        DESCRIPTION,
        example="gpu-agent doctor --registry wss://registry.example:8080 --join-token-file join.token",
        exits={ExitCode.OK: "nothing fails", ExitCode.FAILED: "something fails; its line says what to do"},
        asks=False,
    )
    parser.add_argument("--json", action="store_true", help="print the gpu-agent.doctor/1 document")
    parser.add_argument(
        "--registry",
        dest="registry_url",
        metavar="URL",
        help="where the registry is: wss://HOST:8080/ws/node",
    )
    parser.add_argument(
        "--join-token-file", metavar="FILE", type=Path, help="holds the token for first contact"
    )
    parser.add_argument("--simulate", metavar="SPEC", help="GPUs that do not exist, as for `gpu-agent run`")
    parser.add_argument(
        "--state-dir", metavar="DIR", help="where the identity is kept (default: the platform's place)"
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="read this file instead of the one in /etc"
    )
    add_tls_options(parser)


def main(arguments: argparse.Namespace) -> int:
    """Look and tell."""
    from gpu_agent.cli.doctor.report import main as report

    return report(arguments)
