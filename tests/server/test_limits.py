"""Limits where they are counted to the last one, on real sockets against the true registry."""

import json
from functools import partial

import pytest

from gpu_agent.server.limits import Limits
from gpu_agent.server.service import RegistryService
from tests.server.frames import masked
from tests.server.harness import beat, running, until
from tests.server.malformed import REGISTER
from tests.server.raw_peer import raw


@pytest.mark.parametrize("at_once", [1, 2, 20, 60])
async def test_exactly_as_many_frames_as_are_allowed_at_once_are_heard(at_once: int) -> None:
    limits = Limits(frames_at_once=at_once, frames_per_second=1e-6)
    async with running(limits=limits) as service, raw(service) as peer:
        peer.writer.write(masked(json.dumps(REGISTER).encode()))
        await peer.text()
        for heard in range(at_once):
            await until(partial(_has_heard, service, beats=heard), what="the beat")
            peer.writer.write(masked(json.dumps(beat("node-1")).encode()))
        assert (await peer.reader.read()).rpartition(b"\x88")[2][1:3] == (1008).to_bytes(2, "big")
        assert _has_heard(service, beats=at_once - 1)


def _has_heard(service: RegistryService, *, beats: int) -> bool:
    return service.vitals.reception.beats == beats
