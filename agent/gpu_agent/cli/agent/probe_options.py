"""What `gpu-agent probe` takes, apart from its work: with plain options that starts without click."""

from gpu_agent.cli.agent.probe import main
from gpu_agent.cli.command import ExitCode
from gpu_agent.cli.declaration import Commands, Declaration, option

DESCRIPTION = """\
Show what this machine has: GPUs with their health, host, models, and whether it could register.
A dry run: it starts no daemon, sends nothing, writes no file, and answers within its deadline
even when the driver hangs."""

EXITS = {
    ExitCode.OK: "could register",
    ExitCode.NO_GPU: "no GPU or no driver",
    ExitCode.DRIVER_BROKEN: "the driver is broken, or no GPU is usable; the output says what to do",
}


def declare() -> Declaration:
    """Declare what it takes, and its help."""
    return Declaration(
        about=DESCRIPTION,
        example="gpu-agent probe --json",
        exits=EXITS,
        asks=False,
        params=[
            option("--json", help="print the gpu-agent.probe/1 document", flag=True),
            option(
                "--register-preview",
                help="print the exact node_register that would be sent, validated",
                flag=True,
            ),
            option(
                "--watch",
                help="look again every two seconds until Ctrl-C: live on a terminal, elsewhere a line for "
                "each "
                "change, or with --json a document for each look",
                flag=True,
            ),
            option(
                "--simulate",
                metavar="SPEC",
                help="a machine that does not exist, such as 8xH100-80GB or 4xL4:lost@60s "
                "(see *Simulate machines* in the documentation)",
            ),
            option(
                "--config",
                metavar="FILE",
                help="the agent's configuration (default /etc/gpu-agent/agent.toml)",
            ),
            option(
                "--state-dir",
                metavar="DIR",
                help="where the agent keeps its identity (default: the platform's folder); only read",
            ),
        ],
    )


COMMANDS: Commands = {"probe": (declare, main)}
