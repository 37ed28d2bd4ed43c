"""A stand-in for the older scheduler of §9, as it was seen on the wire; also a program:

    python tests/older_scheduler.py [--port 0] [--heartbeats-needed 3]

It answers bad frames with silence, says `error` instead of `node_error`, knows schema 1.0 only and
states no versions when it refuses another, keeps an id in conflict for ever, acknowledges with four
fields, never answers a WebSocket close, and never pings.
"""

import argparse
import asyncio
import json
import secrets
import sys
import time
from typing import Any, Self

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

_SILENCE_SECONDS = 15.0


class OlderScheduler:
    """Listens on 127.0.0.1 while the block lasts. What it has seen is there to be looked at."""

    def __init__(self, *, port: int = 0, heartbeats_needed: int = 3, chatty: bool = False) -> None:
        self.port = port
        self.heartbeats_needed = heartbeats_needed
        self.statuses: dict[str, str] = {}
        """By node id; an id once known stays known."""
        self.frames: list[dict[str, Any]] = []
        self.ready = asyncio.Event()
        self._chatty = chatty
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/node"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """End as a killed process does: without a word."""
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    def drop_connections(self) -> None:
        """Cut every connection without a close frame."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await _Connection(self, writer).talk(reader)
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def heard(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        if self._chatty:
            print(json.dumps(frame), flush=True)  # noqa: T201 - a program's output


class _Connection:
    def __init__(self, scheduler: OlderScheduler, writer: asyncio.StreamWriter) -> None:
        self._scheduler = scheduler
        self._writer = writer
        self._protocol = ServerProtocol()
        self._node_id: str | None = None
        self._beats = 0

    async def talk(self, reader: asyncio.StreamReader) -> None:
        while True:
            patience = _SILENCE_SECONDS if self._node_id else None
            try:
                async with asyncio.timeout(patience):
                    data = await reader.read(65536)
            except TimeoutError:
                self._scheduler.statuses[str(self._node_id)] = "offline"
                return
            if not data:
                return
            self._protocol.receive_data(data)
            for event in self._protocol.events_received():
                if isinstance(event, Request):
                    self._protocol.send_response(self._protocol.accept(event))
                    continue
                assert isinstance(event, Frame)
                if event.opcode is Opcode.CLOSE:
                    self._protocol.data_to_send()  # the answer it owes, and never gives
                    await reader.read()
                    return
                if event.opcode is Opcode.TEXT:
                    self._hear(bytes(event.data))
            self._writer.write(b"".join(self._protocol.data_to_send()))

    def _hear(self, data: bytes) -> None:
        try:
            frame = json.loads(data)
        except ValueError:
            return
        if not isinstance(frame, dict):
            return
        self._scheduler.heard(frame)
        if frame.get("type") == "node_register" and _parses(frame):
            self._register(frame)
        elif frame.get("type") == "node_heartbeat":
            self._beat(frame)

    def _register(self, frame: dict[str, Any]) -> None:
        version = frame.get("capability_schema_version") or "1.0"
        node_id = frame.get("node_id")
        if version != "1.0":
            self._refuse("INVALID_CAPABILITY_SCHEMA", f"不支持的能力描述版本: {version}")
        elif not frame["hardware"]["gpus"]:
            self._refuse("NO_GPU_AVAILABLE", "节点必须有 GPU 才能注册为算力提供方")
        elif node_id in self._scheduler.statuses:
            self._refuse("NODE_ID_CONFLICT", "节点 ID 冲突，请清除本地 node_id 后重新注册")  # noqa: RUF001 - exact
        else:
            self._node_id = node_id or f"node-{secrets.token_hex(4).upper()}"
            self._scheduler.statuses[self._node_id] = "registering"
            self._say(
                {
                    "type": "node_register_ack",
                    "node_id": self._node_id,
                    "message": "registered",
                    "status": "registering",
                }
            )

    def _beat(self, frame: dict[str, Any]) -> None:
        if frame.get("node_id") != self._node_id or not isinstance(frame.get("resource_usage"), dict):
            return
        self._beats += 1
        if self._beats == self._scheduler.heartbeats_needed:
            self._scheduler.statuses[str(self._node_id)] = "ready"
            self._scheduler.ready.set()
            self._say(
                {
                    "node_id": self._node_id,
                    "reason": "健康检查通过",
                    "status": "ready",
                    "timestamp": int(time.time()),
                    "type": "node_status",
                }
            )

    def _refuse(self, code: str, message: str) -> None:
        self._say({"type": "error", "code": code, "message": message})

    def _say(self, frame: dict[str, Any]) -> None:
        self._protocol.send_text(json.dumps(frame, ensure_ascii=False).encode())


def _parses(frame: dict[str, Any]) -> bool:
    """Whether its strict reader accepts the frame; others it drops in silence."""
    hardware = frame.get("hardware")
    if not isinstance(hardware, dict) or not isinstance(hardware.get("gpus"), list):
        return False
    models = frame.get("installed_models")
    return (
        _is_integer(hardware.get("cpu_cores"))
        and _is_integer(hardware.get("memory_gb"))
        and all(
            isinstance(gpu.get("name"), str) and _is_integer(gpu.get("memory_gb")) for gpu in hardware["gpus"]
        )
        and isinstance(frame.get("platform"), str)
        and isinstance(frame.get("features_supported"), dict)
        and isinstance(models, list)
        and all(isinstance(model.get("kind"), str) for model in models)
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


async def _main(arguments: argparse.Namespace) -> None:
    scheduler = OlderScheduler(
        port=arguments.port, heartbeats_needed=arguments.heartbeats_needed, chatty=True
    )
    async with scheduler:
        print(json.dumps({"listening": scheduler.url}), flush=True)  # noqa: T201 - a program's output
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The older scheduler of §9.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--heartbeats-needed", type=int, default=3)
    try:
        asyncio.run(_main(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
