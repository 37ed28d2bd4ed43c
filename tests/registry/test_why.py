from gpu_agent.registry.why import ModelVersion
from tests.registry.fleets import Registry, figures, model


def test_a_node_that_takes_jobs_has_limits_only() -> None:
    registry = Registry()
    registry.ready(accept_public_jobs=True)
    account = registry.fleet.why("node-1", registry.now)
    assert account is not None
    assert (account.node_id, account.objections, account.model) == ("node-1", (), None)
    assert len(account.limits) == 6
    assert not account.refuses_every_job


def test_a_node_that_is_degraded_says_what_would_clear_it() -> None:
    registry = Registry()
    registry.ready(accept_public_jobs=True)
    registry.beat(gpus=figures(health="lost", reasons=("xid_79",)))
    account = registry.fleet.why("node-1", registry.now)
    assert account is not None
    status, gpu = account.objections
    assert (status.reason, status.have) == ("status_not_ready", "degraded (gpu_unavailable)")
    assert status.clears_when.startswith("3 more healthy beats in a row; failing now: gpus")
    assert gpu.reason == "gpu_unavailable"
    assert account.refuses_every_job


def test_the_state_of_one_model_is_told_version_by_version() -> None:
    registry = Registry()
    versions = (model("m", status="downloading"), model("m", enabled=False))
    registry.register(installed_models=versions, capability_state={"m": "error"})
    account = registry.fleet.why("node-1", registry.now, "m")
    assert account is not None
    assert account.model is not None
    assert (account.model.ready, account.model.state, account.model.reported) == (False, "error", "error")
    assert account.model.versions == (
        ModelVersion(version="1", enabled=True, status="downloading"),
        ModelVersion(version="1", enabled=False, status="ready"),
    )


def test_a_model_that_is_ready_is_told_so() -> None:
    registry = Registry()
    registry.ready(installed_models=(model("m"),))
    account = registry.fleet.why("node-1", registry.now, "m")
    assert account is not None
    assert account.model is not None
    assert (account.model.ready, account.model.state, account.model.reported) == (True, "ready", None)


def test_nothing_is_said_of_a_node_that_is_not_known() -> None:
    registry = Registry()
    assert registry.fleet.why("node-9", registry.now) is None
