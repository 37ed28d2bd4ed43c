import asyncio
import logging
from pathlib import Path

import pytest

from gpu_agent.runtime.certificate import read_file
from gpu_agent.runtime.left_address import FILE, LeftAddress, found_in
from gpu_agent.runtime.pins import pin_of
from gpu_agent.server import own_address
from gpu_agent.server.address import Address
from gpu_agent.server.own_address import OwnAddress
from gpu_agent.server.tls import Encryption, TlsFiles
from tests.authority import Authority


@pytest.mark.parametrize(
    ("listens", "reached"),
    [
        (Address("127.0.0.1", 8081), "http://127.0.0.1:8081"),
        (Address("0.0.0.0", 8081), "http://127.0.0.1:8081"),
        (Address("::", 8081), "http://[::1]:8081"),
        (Address("10.0.0.1", 80), "http://10.0.0.1:80"),
    ],
)
async def test_it_is_left_as_this_machine_reaches_it(tmp_path: Path, listens: Address, reached: str) -> None:
    await OwnAddress(tmp_path, listens, None).leave()
    assert found_in(tmp_path) == LeftAddress(reached)


async def test_a_key_that_changed_is_told_and_all_is_removed_at_the_end(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    own, next_one = authority.issue(), authority.issue()
    assert own.key_file is not None
    assert next_one.key_file is not None
    encryption = Encryption(TlsFiles(own=own))
    left = OwnAddress(tmp_path, Address("127.0.0.1", 8081), encryption)
    await left.leave()
    assert found_in(tmp_path) == LeftAddress("https://127.0.0.1:8081", pin_of(read_file(own.cert_file)))
    next_one.key_file.replace(own.key_file)
    next_one.cert_file.replace(own.cert_file)
    assert await encryption.reload()
    assert found_in(tmp_path) == LeftAddress("https://127.0.0.1:8081", pin_of(read_file(own.cert_file)))
    staying = asyncio.ensure_future(left.stay())
    await asyncio.sleep(0)
    staying.cancel()
    await asyncio.wait([staying])
    assert not (tmp_path / FILE).exists()


async def test_without_a_directory_nothing_is_left() -> None:
    left = OwnAddress(None, Address("127.0.0.1", 8081), None)
    await left.leave()
    staying = asyncio.ensure_future(left.stay())
    await asyncio.sleep(0)
    staying.cancel()
    await asyncio.wait([staying])


async def test_a_disk_that_refuses_it_or_does_not_answer_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await OwnAddress(tmp_path / "absent", Address("127.0.0.1", 8081), None).leave()
    monkeypatch.setattr(own_address, "WRITE_SECONDS", 0.0)
    await OwnAddress(tmp_path, Address("127.0.0.1", 8081), None).leave()
    told = [vars(one)["fields"]["problem"] for one in caplog.records]
    assert told == ["No such file or directory", "the disk does not answer"]
