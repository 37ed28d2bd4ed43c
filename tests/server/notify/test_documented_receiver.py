"""The receiver in docs/howto/alarms.md believes what the registry signs, and nothing else."""

import asyncio
import json
import re
import sys
from pathlib import Path

import httpx

from gpu_agent.server.notify.settings import ReceiverSettings
from gpu_agent.server.notify.webhook import post_message
from gpu_agent.wire.notification import Notification
from tests.alarm_receiver import SECRET
from tests.programs import free_port

PAGE = (Path(__file__).parents[3] / "docs" / "howto" / "alarms.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The last block of the page in a language."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return blocks[-1]


def test_the_documented_message_is_one() -> None:
    document = json.loads(block("json"))
    message = Notification.model_validate(document)
    assert document.keys() == Notification.model_fields.keys()
    assert message.delivery_id == f"ops:{message.event_ids[0]}-{message.event_ids[-1]}"


async def test_the_documented_receiver_takes_what_is_signed(tmp_path: Path) -> None:
    port = free_port()
    for name, secret in (("right", SECRET), ("wrong", "x" * 32)):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(secret)
    program = (
        block("python").replace("/etc/alarms.secret", str(tmp_path / "right")).replace("9000", str(port))
    )
    receiver = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )

    async def post(secret: str) -> str | None:
        url = f"http://127.0.0.1:{port}/"
        ops = ReceiverSettings(name="ops", url=url, secret_file=tmp_path / secret)
        return (await post_message(ops, block("json").encode(), delivery_id="ops:1-2")).problem

    try:
        listens = False
        while not listens:
            listens = "not reached" not in (await post("wrong") or "")
        assert "HTTP 403" in (await post("wrong") or "")
        async with httpx.AsyncClient() as client:
            for signature in (None, "", "nonsense", "t=1", f"t=x,v1={'0' * 64}", "t=1,v1=\u00e9"):
                headers = [] if signature is None else [(b"X-Gpu-Agent-Signature", signature.encode())]
                refused = await client.post(f"http://127.0.0.1:{port}/", content=b"{}", headers=headers)
                assert refused.status_code == 403, signature
        assert await post("right") is None
        assert receiver.stdout is not None
        assert (await receiver.stdout.readline()).decode().startswith("2 events of 2 nodes")
    finally:
        receiver.kill()
        await receiver.wait()
