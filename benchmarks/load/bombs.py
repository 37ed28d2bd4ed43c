"""Messages of up to a mebibyte that cost as much as they can: deep, wide, huge, double, or no JSON at all."""

from collections.abc import Iterator

from benchmarks.load import node_frames

_FULL = 1024 * 1024 - 4096
_USAGE = '"resource_usage":{"cpu_percent":1,"mem_percent":1,"running_jobs":0}'


def bombs(node_id: str = "node-0") -> Iterator[bytes]:
    """Yield one after the other, for a node of that id where one is named."""
    for text in (
        _registration('"x":' + "[" * 400_000 + "]" * 400_000),
        _registration('"x":[' + _filled("[" * 100 + "]" * 100) + "]"),
        _registration('"x":' + "9" * _FULL),
        _registration('"x":[' + _filled("1e999") + "]"),
        _registration('"x":[' + _filled("1") + ",NaN]"),
        _registration(_filled('"a":1')),
        _registration(",".join(f'"{number:x}":1' for number in range(80_000))),
        _registration('"labels":{' + ",".join(f'"{number:x}":1' for number in range(80_000)) + "}"),
        _registration('"capability_state":{' + ",".join(f'"{n:x}":1' for n in range(80_000)) + "}"),
        _registration('"installed_models":[' + _filled("{}") + "]"),
        _registration('"installed_models":[' + _filled('{"model_id":"a","version":"1"}') + "]"),
        _registration('"advanced_features":{' + ",".join(f'"{n:x}":true' for n in range(70_000)) + "}"),
        _registration('"hardware":{"cpu_cores":1,"memory_gb":1,"gpus":[' + _filled("{}") + "]}"),
        _heartbeat(node_id, '"gpus":[' + _filled('{"uuid":"a"}') + "]"),
        _heartbeat(node_id, '"installed_models":[' + _models(12_000) + "]"),
        _heartbeat(node_id, '"running_jobs":[' + ",".join(f'"{number}"' for number in range(20_000)) + "]"),
        '{"type":"node_error","code":"x","details":{"a":[' + _filled("[]") + "]}}",
        '{"type":[' + _filled("1") + "]}",
        "[" + _filled("1") + "]",
        '"' + "\\ud800" * 150_000 + '"',
    ):
        yield text.encode()
    yield b'{"type":"' + b"\xff" * _FULL + b'"}'
    yield node_frames.registration("bomb", node_id="x" * 100_000, gpus=1)
    yield node_frames.registration("bomb", node_id=None, gpus=1024)


def _registration(fields: str) -> str:
    return (
        '{"type":"node_register","version":"1","hardware":{"cpu_cores":1,"memory_gb":1,'
        f'"gpus":[{{"name":"x","memory_gb":1}}]}},{fields}}}'
    )


def _heartbeat(node_id: str, fields: str) -> str:
    return f'{{"type":"node_heartbeat","node_id":"{node_id}","timestamp":1,{_USAGE},{fields}}}'


def _models(count: int) -> str:
    return ",".join(f'{{"model_id":"m{number}","version":"1","kind":"llm"}}' for number in range(count))


def _filled(unit: str) -> str:
    return ",".join([unit] * (_FULL // (len(unit) + 1)))
