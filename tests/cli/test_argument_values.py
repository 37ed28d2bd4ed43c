import argparse

import pytest

from gpu_agent.cli.argument_values import at_least_one, label, whole


def test_numbers_and_labels_are_read() -> None:
    assert (whole("-5"), at_least_one("1"), label("rack=7=b"), label("zone=")) == (
        -5,
        1,
        ("rack", "7=b"),
        ("zone", ""),
    )


@pytest.mark.parametrize(("text", "hint"), [("zone", "zone=a"), ("=a", "zone=a"), ("", "zone=a")])
def test_what_is_no_label_is_refused_with_how_to_write_one(text: str, hint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=hint):
        label(text)


@pytest.mark.parametrize(("text", "hint"), [("0", "at least 1"), ("few", "invalid whole number value")])
def test_what_is_no_number_is_named(text: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=at_least_one)
    with pytest.raises(SystemExit):
        parser.parse_args([text])
    assert hint in capsys.readouterr().err
