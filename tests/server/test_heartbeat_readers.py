"""Two readers of one message: whatever the fast one reads, the models of the protocol read the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies
from hypothesis.strategies import SearchStrategy

from gpu_agent.server.heartbeat_reader import read_heartbeat
from gpu_agent.wire.codec import FrameError, decode_from_node
from gpu_agent.wire.heartbeat import GpuColumns, Heartbeat, Parts
from gpu_agent.wire.messages import (
    MAX_GPUS,
    MAX_JOBS,
    MAX_MODELS,
    MAX_NAME,
    MAX_REASONS,
    GpuFigures,
    InstalledModel,
    NodeHeartbeat,
    ResourceUsage,
)
from tests.server.harness import heartbeat

ORDINARY: dict[str, Any] = {
    "type": "node_heartbeat",
    "node_id": "node-1",
    "timestamp": 1_790_000_000_000,
    "resource_usage": {"cpu_percent": 12.5, "mem_percent": 50, "gpu_percent": 1e2, "running_jobs": 1},
    "gpus": [
        {"uuid": "GPU-1", "memory_used_mb": 100, "temperature_c": 40, "processes": 0, "reasons": ["xid_79"]},
        {"uuid": "GPU-2", "health": "lost", "power_w": -0.0, "memory_total_mb": None},
    ],
    "installed_models": [
        {"model_id": "a", "version": "1", "kind": "asr", "enabled": False, "size_bytes": 7},
        {"model_id": "b", "version": "", "status": "downloading", "src_lang": None},
    ],
    "capability_state": {"a": "ready", "ü": "x"},
    "probe_age_seconds": 0.5,
    "running_jobs": ["job-1"],
    "sequence": 7,
}


class Word(str):
    """A part of a frame that is written as it is."""

    __slots__ = ()


WORDS = strategies.sampled_from(
    [
        "-0",
        "-0.0",
        "1e3",
        "1E+2",
        "24.0",
        "0.5",
        "1.5",
        "2.5",
        "1e15",
        "1000000000000000.0625",
        "1e400",
        "-1e400",
        "1e-400",
        "9007199254740992",
        "9007199254740993",
        "9007199254740993.0",
        "18446744073709551616",
        "1" * 400,
        "-1",
        "01",
        "+1",
        "1.",
        ".5",
        "0x10",
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "True",
        '"12"',
        '"NaN"',
        r'"\ud800"',
        r'"\udc00"',
        r'"\ud83d\ude00"',
        r'"\ud83dA"',
        r'"\u0000"',
        r'"\x"',
        '"a\tb"',
        '"a\x00b"',
        '"\x7f"',
        "[" * 300 + "]" * 300,
        '{"a":' * 300 + "1" + "}" * 300,
        "",
        "/**/1",
        "1,",
        "undefined",
    ]
).map(Word)

SCALARS = (
    strategies.none()
    | strategies.booleans()
    | strategies.integers(-2, 2)
    | strategies.integers(-(2**70), 2**70)
    | strategies.floats(allow_nan=False)
    | strategies.text(max_size=4)
    | strategies.sampled_from(["ok", "ready", "node_heartbeat", "é" * MAX_NAME, "x" * (MAX_NAME + 1)])
    | WORDS
)
VALUES = strategies.recursive(
    SCALARS,
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = strategies.sampled_from(
    [
        *NodeHeartbeat.model_fields,
        *ResourceUsage.model_fields,
        *GpuFigures.model_fields,
        *InstalledModel.model_fields,
        "surprise",
        "",
        "node\\u005fid",
    ]
)


def written(value: object) -> str:
    """Write JSON by hand: with words that are none, and with names that appear twice."""
    if isinstance(value, Word):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f'"{name}":{written(one)}' for name, one in value.items()) + "}"
    if isinstance(value, Doubled):
        return "{" + ",".join(f'"{name}":{written(one)}' for name, one in value.entries) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


class Doubled:
    """An object of which one name may appear twice."""

    def __init__(self, entries: list[tuple[str, object]]) -> None:
        self.entries = entries


@strategies.composite
def frames(draw: strategies.DrawFn) -> bytes:
    """Draw an ordinary heartbeat with a few changes anywhere in it."""
    document = json.loads(json.dumps(ORDINARY))
    for name in draw(strategies.lists(strategies.sampled_from([*ORDINARY]), max_size=3)):
        if name not in ("type", "node_id"):
            document.pop(name, None)
    objects = [document, document.get("resource_usage"), *document.get("gpus", ())]
    objects += document.get("installed_models", ())
    changed: object = document
    for _ in range(draw(strategies.integers(0, 3))):
        target = draw(strategies.sampled_from([one for one in objects if one is not None]))
        known = strategies.sampled_from([*target]) if target else NAMES
        target[draw(known | known | NAMES)] = draw(VALUES)
    if draw(strategies.booleans()):
        twice = draw(strategies.sampled_from([*document]))
        entries = [*document.items()]
        entries.insert(draw(strategies.integers(0, len(entries))), (twice, draw(VALUES)))
        changed = Doubled(entries)
    text = written(changed).encode(errors="surrogatepass")
    return text[: draw(strategies.integers(0, len(text)))] if draw(strategies.integers(0, 9)) == 0 else text


@strategies.composite
def damaged(draw: strategies.DrawFn) -> bytes:
    """Draw a heartbeat with any bytes in any place."""
    frame = json.dumps(ORDINARY).encode()
    place = draw(strategies.integers(0, len(frame)))
    length = draw(strategies.integers(0, 3))
    noise: SearchStrategy[bytes] = strategies.binary(max_size=4) | strategies.sampled_from(
        [
            b"\xed\xa0\x80",
            b"\xff",
            b"\xc0\xaf",
            b"\xf4\x90\x80\x80",
            b"\xef\xbb\xbf",
            b"\x00",
            b" ",
            b"\x0b",
            b"\x85",
        ]
    )
    return frame[:place] + draw(noise) + frame[place + length :]


def exact(value: object) -> str:
    """Write a value so that 1, 1.0 and True differ; only the sign of a zero does not count."""
    return repr(value).replace("-0.0", "0.0")


def compare(frame: bytes) -> bool:
    """Compare the readers; returns whether the fast one read the frame."""
    fast = read_heartbeat(frame)
    if fast is None:
        return False
    message = decode_from_node(frame)
    assert isinstance(message, NodeHeartbeat)
    assert exact(fast) == exact(Heartbeat.of(message))
    return True


@settings(max_examples=600)
@given(frames())
@example(b'{"type":"node_register","type":"node_heartbeat","node_id":"a","timestamp":0,"resource_usage":{}}')
def test_what_the_fast_reader_reads_the_models_read_the_same(frame: bytes) -> None:
    compare(frame)


@settings(max_examples=600)
@given(damaged())
def test_bytes_in_the_wrong_place_deceive_neither_reader(frame: bytes) -> None:
    compare(frame)


@settings(max_examples=300)
@given(
    strategies.fixed_dictionaries(
        {},
        optional={
            name: strategies.sampled_from([part, None])
            for name, part in ORDINARY.items()
            if name not in ("type", "node_id", "timestamp", "resource_usage")
        },
    )
)
def test_the_fast_reader_reads_each_ordinary_heartbeat(parts: dict[str, Any]) -> None:
    always = {name: ORDINARY[name] for name in ("type", "node_id", "timestamp", "resource_usage")}
    assert compare(json.dumps({**always, **parts}).encode())
    assert compare(json.dumps({**parts, **always}, ensure_ascii=False, indent=1).encode())


@pytest.mark.parametrize(
    "parts",
    [
        {"accept_public_jobs": True},
        {"labels": {"zone": "a"}},
        {"max_concurrent_jobs": 3},
        {"hardware": {"cpu_cores": 1, "memory_gb": 1, "gpus": [{"name": "A", "memory_gb": 24}]}},
        {"checks": []},
        {"timestamp": 1.5},
        {"sequence": 24.0},
        {"surprise": [{}]},
    ],
)
def test_what_is_no_everyday_part_is_left_to_the_models(parts: dict[str, Any]) -> None:
    frame = json.dumps(heartbeat("node-1", **parts)).encode()
    assert read_heartbeat(frame) is None
    message = decode_from_node(frame)
    assert isinstance(message, NodeHeartbeat)
    read = Heartbeat.of(message).parts or Parts()
    replaced = {name: part for name, part in parts.items() if name in Parts._fields}
    assert [*read].count(None) == len(Parts._fields) - len(replaced)


@pytest.mark.parametrize(
    ("part", "limit"),
    [
        (lambda count: {"gpus": [{"uuid": "GPU"}] * count}, MAX_GPUS),
        (lambda count: {"gpus": [{"uuid": "GPU", "reasons": ["x"] * count}]}, MAX_REASONS),
        (lambda count: {"installed_models": [{"model_id": "m", "version": "1"}] * count}, MAX_MODELS),
        (lambda count: {"capability_state": {f"m{n}": "ready" for n in range(count)}}, MAX_MODELS),
        (lambda count: {"running_jobs": ["j"] * count}, MAX_JOBS),
        (lambda count: {"gpus": [{"uuid": "é" * count}]}, MAX_NAME),
        (lambda count: {"gpus": [{"uuid": "𝄞" * count}]}, MAX_NAME),
        (lambda count: {"node_id": "n" * count}, 128),
        (lambda count: {"timestamp": 2 * count}, 2**52),
        (lambda count: {"probe_age_seconds": count}, 10**15),
    ],
)
def test_both_readers_have_the_same_limits(part: Callable[[int], dict[str, Any]], limit: int) -> None:
    def frame(count: int) -> bytes:
        return json.dumps({**ORDINARY, **part(count)}).encode()

    assert compare(frame(limit))
    assert read_heartbeat(frame(limit + 1)) is None
    with pytest.raises(FrameError):
        decode_from_node(frame(limit + 1))


@pytest.mark.parametrize("name", [b"installed_models", b"installed\\u005fmodels"])
@pytest.mark.parametrize("hidden", [b'"\xff"', b"1e400", b"[]", b"7"])
def test_models_that_were_read_before_hide_no_others(name: bytes, hidden: bytes) -> None:
    known = json.dumps(ORDINARY, ensure_ascii=False).encode()
    assert compare(known)
    compare(b'{"%b":%b,%b' % (name, hidden, known[1:]))


def test_the_same_models_are_read_once_and_their_states_each_time() -> None:
    def parts(states: object) -> Parts | None:
        frame = json.dumps({**ORDINARY, "installed_models": [{"model_id": "m", "version": "7"}]})
        read = read_heartbeat(json.dumps({**json.loads(frame), "capability_state": states}).encode())
        assert read is not None
        return read.parts

    first = parts({"m": "ready"})
    assert parts({"m": "ready"}) is first
    assert parts({"m": "error"}) == Parts(
        (("m", "7", *[None] * 4, True, "ready", *[None] * 4),), {"m": "error"}
    )
    assert parts(None) == Parts(first[0] if first else None, None)


def test_more_models_than_are_remembered_are_read_too() -> None:
    for number in range(3000):
        models = [{"model_id": f"m{number}", "version": "1"}]
        assert compare(json.dumps({**ORDINARY, "installed_models": models}).encode())


@pytest.mark.parametrize("node_id", ["", "node 1", "node-1\n", "nöde", "n" * 129])
def test_an_id_that_is_none_is_left_to_the_models(node_id: str) -> None:
    assert read_heartbeat(json.dumps({**ORDINARY, "node_id": node_id}).encode()) is None


def test_a_list_without_gpus_is_no_missing_list() -> None:
    frame = json.dumps({**ORDINARY, "gpus": []}).encode()
    assert compare(frame)
    read = read_heartbeat(frame)
    assert read is not None
    assert read.gpus == GpuColumns()


def test_each_field_of_a_heartbeat_has_its_place_in_the_record() -> None:
    renamed = {"resource_usage": "usage"}
    left_out = {"type", "timestamp", "sequence"}
    fields = [renamed.get(name, name) for name in NodeHeartbeat.model_fields if name not in left_out]
    assert sorted({*Heartbeat._fields, *Parts._fields} - {"parts"}) == sorted(fields)
    assert list(GpuColumns._fields) == list(GpuFigures.model_fields)
    assert sorted(Heartbeat.__annotations__["usage"]._fields) == sorted(ResourceUsage.model_fields)


EMBEDDED = """
import asyncio, sys
for name in ("fastapi", "starlette", "uvicorn", "httptools", "prometheus_client", "msgspec", "uvloop"):
    sys.modules[name] = None
from gpu_agent.server.message_handler import read_ordinary_heartbeat
from tests.server.harness import node, running
async def main():
    async with running() as service, node(service) as peer:
        await peer.become_ready()
        print(read_ordinary_heartbeat(b"", None), [one.status for one in service.nodes()])
asyncio.run(main())
"""


def test_a_registry_without_its_extra_reads_heartbeats_by_the_models() -> None:
    ended = subprocess.run([sys.executable, "-c", EMBEDDED], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "None ['ready']\n"
