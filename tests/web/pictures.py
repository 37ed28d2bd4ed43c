"""Pictures of every page: of three machines, of one in each state, and of ten thousand.

    python -m tests.web.pictures FOLDER [--fleet few|each|many] [--see forced|grey|red-blind|green-blind]

Each page is taken light and dark, on a desk's screen and on a telephone, by the machine's own chromium.
`--see` shows the pages in the colours that a person has chosen for all programs, or as some people see.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, expect

from gpu_agent.registry.job import Job
from gpu_agent.registry.tokens import Role
from tests.server.harness import until
from tests.server.web.fleet import CALM, Fleet, Machine, ServedFleet, busy, populate, write_past
from tests.web.chromium import SIZES, launched
from tests.web.large_fleet import beat_again, join_many, waiting_jobs

MANY, AT_ONCE = 10_000, 100
IDLE_SECONDS = 1.0
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
THRESHOLDS = replace(CALM, heartbeat_interval_seconds=600.0, claim_idle_seconds=IDLE_SECONDS)
"""Machines that are played without sockets report once."""
DEFICIENCIES = {"grey": "achromatopsia", "red-blind": "protanopia", "green-blind": "deuteranopia"}
SEEN = ("forced", *DEFICIENCIES)


def main() -> int:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fleet", choices=FLEETS, action="append", help="only this fleet (repeatable)")
    parser.add_argument("--see", choices=SEEN, help="as somebody else sees it")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with launched() as browser:
        for name in arguments.fleet or FLEETS:
            with ServedFleet(populated=name == "each", thresholds=THRESHOLDS) as served:
                FLEETS[name](served)
                _take_all(browser, served, arguments.folder, name, see=arguments.see)
    return 0


def paths_of(served: ServedFleet) -> dict[str, str]:
    """The pages by name, each state of a node among them."""
    of = {host: f"/nodes/{machine.node_id}" for host, machine in served.fleet.machines.items()}
    waits = next(iter(served.fleet.waiting), None)
    pages = {
        "overview": "/",
        "nodes": "/nodes",
        "nodes-compact": "/nodes?rows=compact",
        "nodes-none": "/nodes?q=nothing-has-this-name",
        "node-lost": of.get("h100-02"),
        "node-draining": of.get("h100-04"),
        "node-offline": of.get("h200-01"),
        "node-mig": of.get("a100-02"),
        "jobs": "/jobs",
        "jobs-why": None if waits is None else f"/jobs?job={waits}",
        "events": "/events",
        "drain": f"{of['h100-02']}/drain" if "h100-02" in of else None,
    }
    return {name: path for name, path in pages.items() if path is not None}


def _take_all(browser: Browser, served: ServedFleet, folder: Path, fleet: str, *, see: str | None) -> None:
    for scheme in SCHEMES if see != "forced" else SCHEMES[:1]:
        for size, viewport in SIZES.items():
            page = browser.new_context(
                viewport=viewport,
                color_scheme=scheme,
                forced_colors="active" if see == "forced" else "none",
            ).new_page()
            if see in DEFICIENCIES:
                emulation = {"type": DEFICIENCIES[see]}
                page.context.new_cdp_session(page).send("Emulation.setEmulatedVisionDeficiency", emulation)
            page.goto(served.url)

            def take(name: str, page: Page = page, mark: str = f"{see or scheme}-{size}") -> None:
                page.screenshot(path=folder / f"{fleet}-{name}-{mark}.png", full_page="telephone" in mark)

            take("signin")
            page.get_by_label("Operator token").fill(served.tokens[Role.ADMIN])
            page.get_by_role("button", name="Sign in").click()
            for name, path in paths_of(served).items():
                page.goto(served.url + path)
                if page.locator("[data-live]").count():
                    expect(page.locator("#live")).to_contain_text("Live", timeout=60_000)
                take(name)
            page.context.close()


def _few(served: ServedFleet) -> None:
    """Three machines: one at work, one with a lost GPU, one that idles."""
    served.do(_join_few(served.fleet))


async def _join_few(fleet: Fleet) -> None:
    h100 = ("NVIDIA H100 80GB HBM3", 8, 81_920, {"zone": "a"}, ("llama-3.3-70b-instruct",))
    works, broken = [await fleet.join(Machine(f"h100-0{number}", *h100)) for number in (1, 2)]
    await fleet.join(Machine("l4-01", "NVIDIA L4", 8, 23_034, {"zone": "b"}, ("bge-m3",)))
    await fleet.claim("train-llm-70b", works, gpu_count=8)
    works.jobs = ("train-llm-70b",)
    works.figures = {place: busy(60 + 5 * place, 44_000 + 4_000 * place) for place in range(8)}
    broken.figures[3] = {"health": "lost", "reasons": ["xid_79", "gpu_lost"], "utilization_percent": None}
    for machine in (works, broken):
        await fleet.beat(machine, 3)
        write_past(fleet, machine)


def _each(served: ServedFleet) -> None:
    """One machine in each state, and jobs that wait."""
    served.do(
        _wait_for(served.fleet, [Job(job_id="eval-7", gpu_count=8, gpu_name="H100", wait_seconds=3600)])
    )


def _many(served: ServedFleet) -> None:
    """Ten thousand machines, among them one in each state."""
    served.do(populate(served.fleet))
    idle = []
    for first in range(0, MANY - len(served.fleet.machines), AT_ONCE):
        idle += served.do(join_many(served.fleet, first=first, machines=AT_ONCE))
    time.sleep(IDLE_SECONDS)
    served.do(beat_again(idle))
    served.do(_wait_for(served.fleet, waiting_jobs(40)))


async def _wait_for(fleet: Fleet, jobs: list[Job]) -> None:
    for job in jobs:
        fleet.wait_for(job)
    await until(lambda: fleet.service.waiting_jobs == len(jobs), what="the jobs wait")


FLEETS: dict[str, Callable[[ServedFleet], None]] = {"few": _few, "each": _each, "many": _many}


if __name__ == "__main__":
    sys.exit(main())
