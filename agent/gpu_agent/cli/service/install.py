"""`gpu-agent service install`: make either half a service of a machine where it came from pip."""

import argparse
from collections.abc import Iterator

from gpu_agent.cli.configuration.read import HALVES as CONFIGURATIONS
from gpu_agent.cli.outcome import ExitCode, Failure
from gpu_agent.cli.service.place import add_half, place, program, refusal
from gpu_agent.cli.teaching import teach
from gpu_agent.runtime.layers import SettingsError
from gpu_agent.runtime.services.installing import Plan, Program, RefusedError, installation
from gpu_agent.runtime.services.reach import closed, user_named
from gpu_agent.runtime.services.steps import Run, Step, StepError, carry_out, ran
from gpu_agent.runtime.services.unit_files import HALVES, Half


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    teach(
        parser,
        "Make the agent, or the registry, a service of this machine, as the packages do: the systemd unit "
        "with this environment's program, the user it runs as, and settings to begin with where there are "
        "none. Settings that are there stay. Run it again after each upgrade by pip: it brings the unit up "
        "to date, and a service that runs goes on in the new version.\n\n"
        "Refused, with nothing changed: without systemd, for anybody but root, where a package has brought "
        "the service, and where the service's user could not get at this environment.",
        example="gpu-agent service install --dry-run",
        exits={
            ExitCode.OK: "it is a service of this machine",
            ExitCode.FAILED: "a step failed; what was done before it stays: mend that, run it again",
            ExitCode.CONFIGURATION: "refused, or with --now not started, as its settings are not ready",
        },
        asks=False,
    )
    add_half(parser)
    parser.add_argument("--now", action="store_true", help="start it too, now and at every boot")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def main(arguments: argparse.Namespace) -> int:
    """Plan, and carry out."""
    half = HALVES[arguments.half]
    here = place()
    try:
        here.refuse_without_systemd()
        here.refuse_beside_a_package(half)
        own = program(half.name)
        if not arguments.dry_run:
            here.refuse_anybody_but_root(f"{own.path} service install")
        plan = installation(half, own, place=here, user=user_named(half.service))
    except RefusedError as error:
        raise refusal(error) from None
    steps = (*plan.steps, *_restarting(half, plan))
    if arguments.dry_run:
        print("\n".join(f"would {step}" for step in steps))
        return ExitCode.OK
    _carried_out(steps)
    print(_summary(half, own, plan))
    return _started(half, plan) if arguments.now else _not_started(half, plan)


def _carried_out(steps: tuple[Step, ...]) -> None:
    try:
        carry_out(steps, lambda step: print(f"done: {step}"))
    except StepError as error:
        raise Failure(f"{error}. Mend that and run this again: what is done already stays") from None


def _restarting(half: Half, plan: Plan) -> Iterator[Step]:
    """One that runs goes on as what is installed now; one that does not stays so."""
    if plan.changed:
        yield Run(("systemctl", "try-restart", half.unit))


def _summary(half: Half, own: Program, plan: Plan) -> str:
    done = "is now" if plan.changed else "was already, and is,"
    return f"The {half.name} of version {own.version} {done} the service {half.service}, run from {own.path}."


def _started(half: Half, plan: Plan) -> int:
    why_not = _unready(half, plan)
    if why_not is not None:
        raise Failure(
            f"it is installed, and not started: {why_not}\nThen: `systemctl enable --now {half.service}`",
            ExitCode.CONFIGURATION,
        )
    _carried_out((Run(("systemctl", "enable", "--now", half.unit)),))
    print(f"Look at it with `gpu-agent service status {half.name}`.")
    return ExitCode.OK


def _not_started(half: Half, plan: Plan) -> int:
    if ran(("systemctl", "is-active", "--quiet", half.unit))[0] == 0:
        print(f"It runs. Look at it with `gpu-agent service status {half.name}`.")
        return ExitCode.OK
    steps = [
        *([_NAMING] if half.name == "agent" and plan.new_settings else []),
        *([_JOINING] if half.name == "agent" and plan.new_settings else []),
        f"`systemctl enable --now {half.service}`, which starts it now and at every boot",
    ]
    print("\n".join(["What comes next:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))]))
    return ExitCode.OK


_NAMING = "name your registry in /etc/gpu-agent/agent.toml; `gpu-agent config check agent` looks it through"
_JOINING = (
    "put a join token into /etc/gpu-agent/join-token, mode 0600; `gpu-agent registry token create` makes one"
)


def _unready(half: Half, plan: Plan) -> str | None:
    """Say why it should not be started yet, with what to do."""
    if half.name == "agent" and plan.new_settings:
        return f"it has no registry of yours to go to. First {_NAMING}"
    try:
        CONFIGURATIONS[half.name].load({}, None)
    except SettingsError as error:
        return f"its settings cannot be used:\n{error}"
    settings = place().at(half.settings_file)
    found = closed([settings], user_named(half.service), unit="")
    if found is not None:
        return f"its user {half.service} cannot read {settings}: closed to it is {found}. First open that"
    return None
