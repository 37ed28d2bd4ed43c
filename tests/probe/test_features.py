import pytest

from gpu_agent.probe.features import FeaturePolicy, advanced, supported
from gpu_agent.wire.codes import BASE_FEATURES
from gpu_agent.wire.inventory import Model, ModelStatus

EMOTION = Model(model_id="iic/emotion2vec", version="1", kind="emotion")


def test_without_configuration_or_models_every_base_feature_is_false() -> None:
    assert supported(FeaturePolicy(), []) == dict.fromkeys(BASE_FEATURES, False)


def test_an_enabled_ready_emotion_model_proves_emotion_detection() -> None:
    assert supported(FeaturePolicy(), [EMOTION])["emotion_detection"] is True


@pytest.mark.parametrize(
    "model",
    [
        Model(model_id="m", version="1", kind="emotion", enabled=False),
        Model(model_id="m", version="1", kind="emotion", status=ModelStatus.DOWNLOADING),
        Model(model_id="m", version="1", kind="emotion", status=ModelStatus.ERROR),
        Model(model_id="emotion", version="1", kind="llm"),
    ],
)
def test_a_model_that_cannot_serve_proves_nothing(model: Model) -> None:
    assert supported(FeaturePolicy(), [model])["emotion_detection"] is False


def test_no_model_proves_what_the_configuration_forbids() -> None:
    policy = FeaturePolicy(stated={"emotion_detection": False})
    assert supported(policy, [EMOTION])["emotion_detection"] is False


def test_stated_features_are_claimed_also_those_that_the_protocol_does_not_know() -> None:
    claimed = supported(FeaturePolicy(stated={"lip_sync": True, "speech_rate_control": True}), [])
    assert claimed["lip_sync"] is claimed["speech_rate_control"] is True
    assert list(claimed) == [*BASE_FEATURES, "lip_sync"]


def test_a6_a_base_feature_among_the_advanced_ones_claims_nothing() -> None:
    policy = FeaturePolicy(advanced=("kv_cache", "emotion_detection", "kv_cache", "streaming_tts"))
    assert advanced(policy) == ("kv_cache", "streaming_tts")
    assert supported(policy, [])["emotion_detection"] is False
