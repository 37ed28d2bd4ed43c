"""The page of jobs, as a browser without the script gets it: the queue, each node's answer, claims."""

import asyncio
import re
from contextlib import suppress

import httpx
import pytest

from gpu_agent.registry.job import Job
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web import jobs, live, why
from tests.server.harness import until
from tests.server.sse import Parser, Stream
from tests.server.web.fleet import Fleet, Machine, busy


async def test_an_empty_fleet_says_how_to_claim(played: Fleet, admin: httpx.AsyncClient) -> None:
    text = (await admin.get("/jobs")).text
    assert "No job waits and none is claimed" in text
    assert "gpu-agent registry claim create" in text
    await played.join(Machine("gpu-1", count=2))
    assert "2 GPUs are free" in (await admin.get("/jobs")).text


async def test_a_job_that_waits_shows_what_it_needs_and_why_it_waits(
    played: Fleet, admin: httpx.AsyncClient
) -> None:
    machine = await played.join(Machine("gpu-1", count=2))
    await played.claim("first", machine, gpu_count=1)
    waiting = asyncio.ensure_future(
        played.service.claim(Job(job_id="second", gpu_count=2, gpu_name="L4", priority=7, wait_seconds=60.0))
    )
    await until(lambda: played.service.waiting_jobs, what="a job waits")
    text = (await admin.get("/jobs")).text
    row = re.findall(r'<tr role="row" id="q-second".*?</tr>', text, re.DOTALL)[0]
    assert "2 \N{MULTIPLICATION SIGN} L4" in row
    assert "priority 7" in row
    assert "1 capacity_exceeded" in row
    answer = (await admin.get("/jobs?job=second")).text
    assert "No node can take it now. Nearest: gpu-1, 1 free of 2" in answer
    assert '<input name="gpus" inputmode="numeric" value="2"' in answer
    assert "capacity_exceeded" in answer
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


async def test_the_form_answers_node_by_node_and_by_pages(played: Fleet, admin: httpx.AsyncClient) -> None:
    await played.join(Machine("l4", count=2))
    await played.join(Machine("h100", "NVIDIA H100", count=4))
    cordoned = await played.join(Machine("out", "NVIDIA H100", count=4))
    await played.service.cordon(cordoned.node_id, reason="a fan")
    fits = (await admin.get("/jobs?gpus=4&gpu=H100")).text
    assert "It fits now: 1 node can take it." in fits
    names = re.findall(r'<a class="one" href="/nodes/[^"]+" title="([^"]+)"', fits.split('id="why"')[1])
    assert names == ["h100", "l4", "out"]
    assert "an operator lifts the cordon" in fits
    one = (await admin.get("/jobs?gpus=4&gpu=H100&reason=cordoned")).text
    assert re.findall(r'class="one" href="/nodes/[^"]+" title="([^"]+)"', one.split('id="why"')[1]) == ["out"]
    none = (await admin.get("/jobs?gpus=8&gpu=H100")).text
    assert "0 of 3 nodes eligible." in none


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("gpus=many", "GPUs on each node: write a whole number."),
        ("gpus=9999", "gpu_count:"),
        ("mem=x", "write a number of GiB"),
        ("mem=nan", "write a number of GiB"),
        ("label=zone", "write each as name=value"),
        ("sharing=memory&gpus=1", "min_gpu_memory_mb"),
    ],
)
async def test_a_form_that_cannot_be_read_says_why(
    admin: httpx.AsyncClient, query: str, problem: str
) -> None:
    answer = await admin.get(f"/jobs?{query}")
    assert answer.status_code == 200
    assert problem in answer.text
    assert 'role="alert" id="why-problem"' in answer.text


async def test_claims_with_a_fault_come_first_and_show_it(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await played.join(Machine("gpu-1", count=2))
    await played.claim("a-well", machine, gpu_count=1)
    await played.claim("b-faulty", machine, gpu_count=1)
    (faulty,) = [one for one in played.service.claims() if one.job_id == "b-faulty"]
    place = machine.uuids().index((faulty.gpu_uuids or ("",))[0])
    machine.figures[place] = {"health": "lost", "reasons": ["xid_79"], "utilization_percent": None}
    machine.figures[1 - place] = busy(80)
    await played.beat(machine, 2)
    text = (await admin.get("/jobs")).text
    assert re.findall(r'<tr role="row" id="c-([^"]+)"', text) == ["b-faulty", "a-well"]
    row = re.findall(r'<tr role="row" id="c-b-faulty".*?</tr>', text, re.DOTALL)[0]
    assert '<span class="mk l">' in row
    assert "Release" in row


async def test_a_claim_shows_its_history_also_after_its_end(played: Fleet, admin: httpx.AsyncClient) -> None:
    machine = await played.join(Machine("gpu-1", count=1))
    await played.claim("<b>job</b>", machine, gpu_count=1)
    await played.service.release("<b>job</b>")
    text = (await admin.get("/jobs?job=%3Cb%3Ejob%3C/b%3E&ended=1")).text
    assert "granted on" in text
    assert "Ended within the hour" in text
    assert "<b>job" not in text
    assert "released" in text


async def test_the_stream_counts_claims_without_sorting_them(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await played.join(Machine("gpu-1", count=2))
    page = (await admin.get("/jobs")).text
    since, order = re.findall(r'data-(?:since|order)="([^"]*)"', page)
    query = {"page": "jobs", "since": since, "order": order}
    async with admin.stream("GET", "/web/stream", params=query, timeout=30) as response:
        stream = Stream(response, Parser())
        await stream.next()
        monkeypatch.setattr(live, "ORDER_SECONDS", 3600.0)
        monkeypatch.setattr(RegistryService, "claims_for_people", None)
        await played.claim("first", machine, gpu_count=1)
        sent = (await stream.until("parts"))[-1].document
    assert "1 claim ·" in sent["jobs-head"]


async def test_the_stream_has_each_jobs_row_as_it_changes_and_none_that_is_new(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "ORDER_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "QUEUE_SECONDS", 0.1)
    machine = await played.join(Machine("gpu-1", count=2))
    await played.claim("runs", machine, gpu_count=2)
    machine.figures = {0: busy(80), 1: busy(60)}
    job = Job(job_id="waits", gpu_count=1, wait_seconds=60.0)
    waiting = asyncio.ensure_future(played.service.claim(job))
    await until(lambda: played.service.waiting_jobs, what="a job waits")
    page = (await admin.get("/jobs")).text
    assert set(re.findall(r'<tr role="row" id="([^"]+)"', page)) == {"q-waits", "c-runs"}
    since, order = re.findall(r'data-(?:since|order)="([^"]*)"', page)
    sent: dict[str, str] = {}
    async with admin.stream(
        "GET", "/web/stream", params={"page": "jobs", "since": since, "order": order}, timeout=30
    ) as response:
        stream = Stream(response, Parser())

        async def receive(row: str, words: str) -> None:
            while words not in sent.get(row, ""):
                for one in await stream.until("parts"):
                    sent.update(one.document if one.name == "parts" else {})

        await played.beat(machine, 2)
        await receive("c-runs", "70 %")
        machine.figures[1] = {"health": "lost", "reasons": ["xid_79"], "utilization_percent": None}
        await played.beat(machine, 2)
        await receive("c-runs", "GPU 1 of gpu-1 became unusable")
        await played.service.release("runs")
        machine.figures.clear()
        await played.beat(machine, 2)
        await receive("q-waits", "waits got its claim")
        await receive("c-runs", "released")
    assert "c-waits" not in sent
    await waiting


async def test_the_answer_of_nodes_and_the_claims_have_pages_before_and_behind(
    played: Fleet, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(why, "PAGE_ROWS", 2)
    monkeypatch.setattr(jobs, "PAGE_CLAIMS", 2)
    for number in range(5):
        machine = await played.join(Machine(f"gpu-{number}", count=1))
        await played.claim(f"job-{number}", machine, gpu_count=1)
    for path, part, pattern in (
        ("/jobs?gpus=1", 'id="why"', r'class="one" href="/nodes/[^"]+" title="([^"]+)"'),
        ("/jobs", 'aria-labelledby="h-c"', r'<tr role="row" id="c-([^"]+)"'),
    ):
        pages, following = [], path
        for rel in ("next", "next", "prev", "prev", "next"):
            text = (await admin.get(following)).text.split(part)[1].split("</section>")[0]
            pages.append(re.findall(pattern, text))
            following = re.findall(rf'rel="{rel}" href="([^"]+)"', text)[0].replace("&amp;", "&")
        assert [len(one) for one in pages] == [2, 2, 1, 2, 2]
        assert pages[:2] == pages[:-3:-1]
        assert len({one for page in pages for one in page}) == 5
