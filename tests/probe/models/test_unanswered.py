import pytest

from gpu_agent.probe.models import declared
from gpu_agent.probe.models.unanswered import DETAIL, unanswered
from gpu_agent.wire.inventory import Model, ModelStatus


@pytest.mark.parametrize("status", [ModelStatus.READY, ModelStatus.DOWNLOADING])
def test_a_found_model_is_in_error_with_the_reason(status: ModelStatus) -> None:
    model = Model(model_id="a/b", version="1", source="ollama", status=status, size_bytes=7)
    (told,) = unanswered([model])
    assert (told.status, told.detail, told.size_bytes) == (ModelStatus.ERROR, DETAIL, 7)


@pytest.mark.parametrize(
    "model",
    [
        Model(model_id="a/b", version="1", source=declared.SOURCE),
        Model(model_id="a/b", version="1", source="ollama", status=ModelStatus.ERROR, detail="a part lacks"),
        Model(model_id="a/b", version="1", source="ollama", status=ModelStatus.NOT_INSTALLED),
    ],
    ids=["declared", "in error", "not installed"],
)
def test_what_is_declared_and_what_could_not_serve_stays(model: Model) -> None:
    assert unanswered([model]) == (model,)
