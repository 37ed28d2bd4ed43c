"""`gpu-agent service uninstall`: take back what `gpu-agent service install` did."""

import argparse

from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.service.place import add_half, place, refusal
from gpu_agent.cli.teaching import teach
from gpu_agent.runtime.services.installing import Plan, RefusedError, removal
from gpu_agent.runtime.services.reach import user_named
from gpu_agent.runtime.services.steps import StepError, carry_out
from gpu_agent.runtime.services.unit_files import HALVES, Half


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Stop the service, and remove what `gpu-agent service install` made of it. Settings and state stay, "
        "so that another install goes on with the same id, unless --purge deletes them. The program itself "
        "stays: `pip uninstall gpu-agent` removes that.",
        example="gpu-agent service uninstall --dry-run",
        exits={
            ExitCode.OK: "it is no service of this machine",
            ExitCode.FAILED: "a step failed; run it again when that is mended",
            ExitCode.CONFIGURATION: "refused: no systemd, not root, or it is a package's, or somebody else's",
        },
        asks=False,
    )
    add_half(parser)
    parser.add_argument(
        "--purge", action="store_true", help="delete its settings, its tokens and its state, too"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def main(arguments: argparse.Namespace) -> int:
    """Plan, and carry out."""
    half = HALVES[arguments.half]
    here = place()
    try:
        here.refuse_without_systemd()
        if not arguments.dry_run:
            here.refuse_anybody_but_root(f"gpu-agent service uninstall {half.name}")
        plan = removal(half, here, purge=arguments.purge)
    except RefusedError as error:
        raise refusal(error) from None
    if arguments.dry_run:
        print("\n".join(f"would {step}" for step in plan.steps) or "nothing would be done")
        return ExitCode.OK
    try:
        carry_out(plan.steps, lambda step: print(f"done: {step}"))
    except StepError as error:
        raise Failure(f"{error}. Mend that and run this again") from None
    print("\n".join(_said(half, plan)))
    return ExitCode.OK


def _said(half: Half, plan: Plan) -> list[str]:
    first = "is no service of this machine any more." if plan.changed else "was no service; nothing was done."
    kept = [f"Kept: {', '.join(map(str, plan.kept))}."] if plan.kept else []
    user = f"The user {half.service} stays: a file may still bear its number."
    return [f"The {half.name} {first}", *kept, *([user] if user_named(half.service).uid is not None else [])]
