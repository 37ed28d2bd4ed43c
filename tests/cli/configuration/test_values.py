from pathlib import Path

import pytest
from pydantic import SecretStr

from gpu_agent.cli.configuration.values import plain, toml
from gpu_agent.node.settings import DeclaredModel
from gpu_agent.runtime.redaction import REDACTED
from gpu_agent.server.address import Address


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "none"),
        ("none", '"none"'),
        (True, "true"),
        (5.0, "5"),
        (0.25, "0.25"),
        (Address("::1", 1), '"[::1]:1"'),
        (Path("/srv/a"), '"/srv/a"'),
        ((Path("/a"), Path("/b")), '["/a", "/b"]'),
        ({}, "{}"),
        ({"zone": "a", "my rack": "b"}, '{ zone = "a", "my rack" = "b" }'),
        ((DeclaredModel(model_id="m", hidden=True),), '[{ model_id = "m", hidden = true }]'),
        (SecretStr("s3cret"), f'"{REDACTED}"'),
        ("gpuj_0123abcd_s3cret", f'"gpuj_0123abcd_{REDACTED}"'),
        (["http://me:s3cret@proxy"], f'["http://me:{REDACTED}@proxy"]'),
    ],
)
def test_a_value_is_written_as_in_the_file(value: object, written: str) -> None:
    assert toml(value) == written


def test_what_json_has_no_kind_for_is_written_down() -> None:
    assert plain({"where": Address("h", 1), "folders": (Path("/a"),)}) == {"where": "h:1", "folders": ["/a"]}
