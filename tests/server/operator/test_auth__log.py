import logging
from collections.abc import AsyncIterator

import pytest

from gpu_agent.registry.credentials import Role
from tests.server.callers import Caller, logged
from tests.server.harness import running


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with running(auth_on=True) as service:
        yield Caller(service)


async def test_each_call_that_may_change_something_is_logged_with_who_made_it(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    token = await caller.token(Role.OPERATE)
    with caplog.at_level(logging.INFO):
        await caller.call("POST", "/v1/nodes/x/drain", f"Bearer {token}")
        for method, path in (("GET", "/v1/nodes"), ("POST", "/v1/dispatch/explain")):
            await caller.call(method, path, f"Bearer {token}")
        await caller.call("DELETE", "/v1/nodes/x", f"Bearer {token}")
    who = {"token_id": token.split("_")[1], "name": "ann"}
    drained = {"method": "POST", "path": "/v1/nodes/x/drain", **who, "status": 200}
    refused = {"method": "DELETE", "path": "/v1/nodes/x", **who, "needed": "admin"}
    assert logged(caplog, "operator_request") == [drained]
    assert logged(caplog, "operator_refused") == [refused]
    assert token not in caplog.text


async def test_whoever_asks_on_for_what_its_role_does_not_allow_is_logged_once_a_minute(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    token, other = [await caller.token(Role.READ) for _ in range(2)]
    with caplog.at_level(logging.INFO):
        for number in range(3):
            await caller.call("DELETE", f"/v1/nodes/{number}", f"Bearer {token}")
        await caller.call("DELETE", "/v1/nodes/x", f"Bearer {other}")
        caller.stop()
    first, second = (one.split("_")[1] for one in (token, other))
    refused = logged(caplog, "operator_refused")
    assert [(one["token_id"], one["path"]) for one in refused] == [
        (first, "/v1/nodes/0"),
        (second, "/v1/nodes/x"),
    ]
    left_out = {"offence": "operator_refused", "kind": "admin", "origin": first, "count": 2}
    assert logged(caplog, "offences_left_out") == [left_out]


async def test_who_has_no_token_of_ours_is_logged_once_a_minute_and_the_others_are_counted(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    guess = "gpuo_00000000_guess"
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await caller.call("GET", "/v1/nodes")
            await caller.call("GET", "/v1/nodes", f"Bearer {guess}")
        caller.stop()
    reasons = ["no token", "unknown token"]
    noted = [{"address": "10.0.0.9", "reason": reason} for reason in reasons]
    assert logged(caplog, "operator_unauthorized") == noted
    left_out = logged(caplog, "offences_left_out")
    assert [(one["kind"], one["origin"], one["count"]) for one in left_out] == [
        (reason, "10.0.0.9", 2) for reason in reasons
    ]
    assert guess not in caplog.text
