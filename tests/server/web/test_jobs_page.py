"""The page of jobs, as a browser without the script gets it: the queue, each node's answer, claims."""

import asyncio
import re
from contextlib import suppress

import httpx
import pytest

from gpu_agent.registry.job import Job
from gpu_agent.server.service import RegistryService
from gpu_agent.server.web import live
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
