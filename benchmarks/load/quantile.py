"""Quantiles of a sample, as the benchmarks report them."""

from collections.abc import Sequence


def quantile(sample: Sequence[float], share: float) -> float:
    """Return a quantile of a sample that is not empty."""
    return sorted(sample)[min(int(share * len(sample)), len(sample) - 1)]
