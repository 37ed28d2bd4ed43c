"""The features that this machine claims.

They come from the configuration, plus what its models prove: an enabled, ready `emotion` model is
emotion detection. It refuses to claim more than the configuration allows: a feature set to false
there stays false whatever the models prove, and no base feature comes from the advanced ones (A-6).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gpu_agent.wire.codes import BASE_FEATURES, PROVEN_BY_KIND
from gpu_agent.wire.inventory import Model, ModelStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePolicy:
    """What the configuration says about features."""

    stated: Mapping[str, bool] = field(default_factory=dict)
    """True claims a feature, false forbids it; what is not named is left to the models."""
    advanced: tuple[str, ...] = ()


def supported(policy: FeaturePolicy, models: Iterable[Model]) -> dict[str, bool]:
    """`features_supported`: every base feature and every stated one, true or false."""
    proven = {
        PROVEN_BY_KIND[model.kind]
        for model in models
        if model.kind in PROVEN_BY_KIND and model.enabled and model.status is ModelStatus.READY
    }
    names = dict.fromkeys((*BASE_FEATURES, *sorted(policy.stated)))
    return {name: policy.stated.get(name, name in proven) for name in names}


def advanced(policy: FeaturePolicy) -> tuple[str, ...]:
    """`advanced_features`: the stated ones that are no base features, each once, in the stated order."""
    return tuple(name for name in dict.fromkeys(policy.advanced) if name not in BASE_FEATURES)
