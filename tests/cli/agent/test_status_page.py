import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from gpu_agent.cli.agent.status_page import activity_in_words, machine_inventory, status_facts, status_page
from gpu_agent.cli.output.text import ASCII_GLYPHS, UNICODE_GLYPHS, line_width, plain_text
from gpu_agent.node.checks import CheckState
from gpu_agent.node.control.status import Instant
from gpu_agent.node.jobs import AnnouncedJob, Jobs, of_process
from gpu_agent.node.public_jobs import Limit, Pause, PublicJobsState
from gpu_agent.probe.snapshot import to_document
from gpu_agent.session.types import State
from gpu_agent.wire.control import SessionInfo, StatusDocument
from gpu_agent.wire.declaration import Owner
from gpu_agent.wire.inventory import (
    Gpu,
    GpuProcess,
    GpuReport,
    Health,
    HealthReason,
    Inventory,
    Model,
    ModelStatus,
    Outcome,
)
from gpu_agent.wire.messages import Check, NodeStatusMessage, StatusDetails
from gpu_agent.wire.probe_document import MachineDocument
from tests.cli.answers import model_of
from tests.cli.hosts import HOST
from tests.node.control_harness import GPU, INVENTORY, READY, jobs_in_flight, status_of

NOW = 1_700_000_000.0
JOB = AnnouncedJob("job-1", of_process(4711, 1), 2345678, NOW - 60)
INSTANT = Instant(monotonic=100.0, wall=NOW)
FAILS = StatusDetails(
    checks=(
        Check(name="gpu", ok=False, detail="no GPU is usable"),
        Check(name="models", ok=True, detail="fine"),
    ),
    clears_when="a GPU is usable again",
)
DEGRADED = NodeStatusMessage(
    node_id="node-A", status="degraded", reason="no usable GPU", reason_code="gpu_unavailable", details=FAILS
)
NOT_REGISTERED = "The agent runs, and is not registered:"


def announced_jobs(*jobs: AnnouncedJob) -> Jobs:
    """Jobs of a machine where a worker has announced one before."""
    announced = jobs_in_flight(AnnouncedJob("first", of_process(1, 1), 0, NOW), *jobs)
    announced.finish("first")
    return announced


def answer(jobs: tuple[AnnouncedJob, ...] = (), **more: object) -> StatusDocument:
    given = status_of(announced_jobs(*jobs), started_at=NOW - 9, instant=INSTANT, **more)
    return StatusDocument.model_validate(given)


def page(columns: int | None = None, **more: Any) -> list[str]:  # noqa: ANN401 - parts of a picture
    return [plain_text(one) for one in status_page(answer(**more), columns, ASCII_GLYPHS, now=NOW)]


def test_the_status_comes_first_with_its_reason() -> None:
    assert page()[:2] == ["node-A  ready  (health_checks_passed)", "3 healthy heartbeats in a row"]


def test_a_join_token_that_cannot_be_read_is_shown() -> None:
    assert not [one for one in page() if one.startswith("token")]
    problem = "no join token was sent: /etc/gpu-agent/join-token: Permission denied. Put the token there"
    (shown,) = [one for one in page(token_problem=problem) if one.startswith("token")]
    assert shown.endswith(problem)


def test_the_other_addresses_of_the_registry_are_named_where_it_has_some() -> None:
    used = "ws://r:8080/ws/node"
    assert not [one for one in page() if one.startswith("others")]
    said = page(registry_urls=("ws://a", used, "ws://b"))
    (shown,) = [one for one in said if one.startswith("others")]
    assert shown.split(maxsplit=1)[1] == "ws://a, ws://b"
    (connected,) = [one for one in said if one.startswith("registry")]
    assert f"{used} connected" in connected


def test_a_check_that_waits_to_run_again_says_for_what_beside_its_result() -> None:
    passed = CheckState(name="memory_bandwidth", scope="GPU-1", ok=True, detail="54 GB/s", at=NOW)
    waiting = replace(passed, not_repeated="1 process uses it")
    assert shown_checks(passed)[0].endswith("GPU 0: 54 GB/s")
    assert shown_checks(waiting)[0].endswith("GPU 0: 54 GB/s; not run again: 1 process uses it")


def test_gpus_with_the_same_result_of_a_check_are_one_row_and_failures_come_first() -> None:
    def check(scope: str, detail: str, *, ok: bool | None) -> CheckState:
        return CheckState(name="memory_bandwidth", scope=scope, ok=ok, detail=detail, at=NOW)

    three = tuple(replace(GPU, uuid=f"GPU-{index}", index=index) for index in range(3))
    said = page(
        inventory=replace(INVENTORY, gpu=GpuReport(outcome=Outcome.OK, gpus=three)),
        checks=(
            check("GPU-2", "it runs on request", ok=None),
            check("GPU-0", "it runs on request", ok=None),
            check("GPU-1", "the GPU is lost", ok=False),
        ),
    )
    assert [one.split(maxsplit=1)[1] for one in said if one.startswith("memory_bandwidth")] == [
        "FAILS    GPU 1: the GPU is lost",
        "not run  GPUs 0, 2: it runs on request",
    ]


def test_a_ready_node_with_a_faulty_gpu_is_not_plain_green() -> None:
    lost = GpuReport(outcome=Outcome.OK, gpus=(replace(GPU, health=Health.LOST),))
    for gpus, style in ((INVENTORY.gpu, "green"), (lost, "yellow")):
        first, *_ = status_page(answer(inventory=replace(INVENTORY, gpu=gpus)), None, ASCII_GLYPHS, now=NOW)
        assert [piece.style for piece in first if piece.text == "ready"] == [style]


def shown_checks(*checks: CheckState) -> list[str]:
    return [one for one in page(checks=checks) if one.startswith("memory_bandwidth")]


def test_a_degraded_machine_says_what_would_change_it_and_which_check_fails() -> None:
    said = page(registry_status=DEGRADED)
    assert said[:3] == [
        "node-A  degraded  (gpu_unavailable)",
        "no usable GPU",
        "Changes when: a GPU is usable again",
    ]
    checks = said.index("CHECK  DETAIL")
    assert said[checks + 1 : checks + 3] == ["gpu    no GPU is usable", ""]


@pytest.mark.parametrize(
    ("stands", "head"),
    [
        (
            {"state": State.BACKING_OFF, "last_refusal": "connection refused", "registry_status": DEGRADED},
            [
                "node-A  not connected",
                f"{NOT_REGISTERED} it waits to try again: connection refused.",
            ],
        ),
        (
            {"state": State.YIELDED},
            [
                "node-A  not connected",
                f"{NOT_REGISTERED} a newer session has its id. `gpu-agent resume` has it try again.",
            ],
        ),
        (
            {"state": State.DRAINED, "drain_reason": "new fans", "drain_until": 1.0},
            [
                "node-A  drained",
                "Drained by its owner: new fans. `gpu-agent resume` puts it back into service.",
            ],
        ),
        (
            {"registry_status": None, "node_id": None},
            ["no id yet  connected", "The registry has not sent this node's status yet."],
        ),
    ],
    ids=["away", "yielded", "drained", "fresh"],
)
def test_every_state_has_its_headline(stands: dict[str, Any], head: list[str]) -> None:
    said = page(**stands)
    assert said[:2] == head
    assert not any(one.startswith("CHECK") for one in said)


def test_jobs_gpus_and_models_have_their_tables() -> None:
    said = "\n".join(page(jobs=(JOB,)))
    assert "\njob-1  " in said
    assert "process 4711\n" in said
    assert "\n0    L4    ok      1/24 GiB" in said
    assert "\nNo models: none found in the caches, none declared" in said


def test_a_machine_that_has_no_gpu_or_only_pretends_says_so() -> None:
    no_driver = replace(INVENTORY, gpu=GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver: install it"))
    assert "no driver: install it" in page(inventory=no_driver)
    none = replace(INVENTORY, gpu=GpuReport(outcome=Outcome.OK))
    assert "No GPU was found." in page(inventory=none)
    assert "SIMULATED: these GPUs do not exist" in page(inventory=replace(INVENTORY, simulated=True))


def test_before_the_first_probe_there_is_a_page_too() -> None:
    said = page(inventory=None)
    assert said[-1].endswith("none has ended yet")


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_it_fits_the_terminal(columns: int) -> None:
    whole = answer(jobs=(JOB,), registry_status=DEGRADED, drain_reason="new fans", drain_until=200.0)
    assert all(line_width(one) <= columns for one in status_page(whole, columns, UNICODE_GLYPHS, now=NOW))


def test_the_registrys_words_cannot_steer_the_terminal() -> None:
    evil = READY.model_copy(update={"reason": "\x1b[2J", "reason_code": "\x1b"})
    assert not any("\x1b" in one for one in page(registry_status=evil))


def facts(*, announced: bool = False, **more: object) -> dict[str, str]:
    """Return the facts of an agent, by name."""
    jobs = announced_jobs() if announced else Jobs()
    answer = StatusDocument.model_validate(status_of(jobs, started_at=NOW - 3600, instant=INSTANT, **more))
    return {name: plain_text(words) for name, words in status_facts(answer, now=NOW)}


def test_a_connected_agent_shows_its_link_its_status_and_its_heartbeats() -> None:
    said = facts()
    assert said["registry"].startswith("ws://r:8080/ws/node connected since ")
    assert said["registry"].endswith("(95 s), last heartbeat 70 s ago (one every 15 s)")
    assert said["status"] == "ready, received 80 s ago"
    assert said["probe"] == "GPUs read 1 s ago"
    assert "up 60 min" in said["agent"]
    assert "next" not in said
    assert "drain" not in said


def test_while_the_registry_is_away_the_next_attempt_and_the_age_of_the_status_are_shown() -> None:
    said = facts(state=State.BACKING_OFF, next_attempt_at=112.0, last_refusal="connection refused")
    assert "not connected since" in said["registry"]
    assert said["next"].startswith("tries again in 12 s, at ")
    assert said["status"] == "ready, received 80 s ago, before the connection was lost"


def test_before_anything_is_known_nothing_is_guessed() -> None:
    said = facts(
        state=State.WAITING_GPU,
        registry_status=None,
        inventory=None,
        link_since=None,
        last_heartbeat_at=None,
        interval_seconds=None,
    )
    assert said["registry"] == "ws://r:8080/ws/node not connected, no heartbeat yet"
    assert said["status"].startswith("none yet")
    assert said["probe"] == "none has ended yet"


@pytest.mark.parametrize(
    ("stands", "words"),
    [
        (
            {"drain_reason": "new fans", "drain_until": 160.0},
            "by its owner: new fans; over in 60 s at the latest",
        ),
        (
            {"drain_reason": "new fans", "drain_until": 160.0, "state": State.DRAINED},
            "over: new fans; `gpu-agent resume` puts the machine back into service",
        ),
    ],
)
def test_a_drain_is_shown(stands: dict[str, Any], words: str) -> None:
    assert facts(**stands)["drain"] == words


def test_jobs_are_shown_with_the_slots_and_with_how_they_are_counted() -> None:
    four = Owner(max_concurrent_jobs=4)
    assert facts(announced=True, owner=four)["jobs"] == "0 in flight, of 4 slots"
    assert facts()["jobs"] == "none announced: processes on the GPUs are counted instead"


def test_public_jobs_are_accepted_paused_with_the_reasons_or_not_wanted() -> None:
    pauses = (Pause(Limit.SCHEDULE, "outside the hours"), Pause(Limit.TEMPERATURE, "GPU 0 is at 85 C"))
    assert facts()["public"] == "accepted"
    assert (
        facts(public_jobs=PublicJobsState(wanted=False))["public"]
        == "not accepted: accept_public_jobs is false"
    )
    paused = facts(public_jobs=PublicJobsState(wanted=True, pauses=pauses))["public"]
    assert paused == "paused: outside the hours; GPU 0 is at 85 C"


def test_labels_and_models_left_out_are_shown() -> None:
    said = facts(owner=Owner(labels={"zone": "a", "rack": "7"}), models_left_out=("m", "n"))
    assert said["labels"] == "rack=7, zone=a"
    assert said["probe"] == "GPUs read 1 s ago; 2 models are not declared, for want of room"


def test_what_it_does_meanwhile_is_shown_with_the_reason() -> None:
    away = model_of(SessionInfo, {"state": "backing_off", "why": "it is away."})
    assert activity_in_words(away) == "it waits to try again: it is away"
    assert activity_in_words(model_of(SessionInfo, {"state": "dancing"})) == "dancing"


def test_an_agent_that_was_stopped_and_waits_for_its_jobs_says_so() -> None:
    assert facts(state=State.LEAVING)["agent"].endswith("; it was stopped, and waits for its jobs to end")


REASON = HealthReason(code="gpu_lost", detail="gone", action="reboot", since=1.5)
LOST = Gpu(
    uuid="GPU-1",
    name="L4",
    health=Health.LOST,
    reasons=(REASON,),
    processes=(GpuProcess(pid=7, ours=True),),
    events={"xid_79": 1},
    unknowns={"power_w": "not supported"},
    throttle_reasons=("hw_slowdown",),
)
MODEL = Model(model_id="m", version="1", status=ModelStatus.ERROR, detail="a shard is missing")


def inventories() -> Iterator[Inventory]:
    yield Inventory(host=HOST, gpu=GpuReport(outcome=Outcome.NO_DRIVER, detail="no driver"))
    yield Inventory(
        host=HOST,
        gpu=GpuReport(outcome=Outcome.OK, gpus=(LOST,), driver_version="570", cuda_version="12.8"),
        models=(MODEL,),
        models_complete=False,
        models_unsearched={"/srv": "no permission"},
        features_supported={"emotion_detection": True},
        advanced_features=("kv_cache",),
        simulated=True,
        took_ms=3.5,
    )


@pytest.mark.parametrize("inventory", [*inventories()], ids=["no driver", "one lost"])
def test_what_an_agent_reports_of_its_machine_is_read_back_whole(inventory: Inventory) -> None:
    document = json.loads(json.dumps(to_document(inventory)))
    assert machine_inventory(model_of(MachineDocument, {**document, "probe_age_seconds": 1.0})) == inventory
