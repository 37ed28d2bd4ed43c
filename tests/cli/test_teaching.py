import argparse

from gpu_agent.cli.outcome import ExitCode
from gpu_agent.cli.teaching import codes_in_words, teach


def test_help_has_an_example_and_the_ways_to_end() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("gpu-agent registry it", formatter_class=form)
    teach(
        parser, "Does it.", example="do it", exits={ExitCode.OK: "it is done", ExitCode.NOBODY: "by nobody"}
    )
    said = parser.format_help()
    for words in (
        "Does it.",
        "example:\n  do it\n",
        "    0  it is done\n    4  wrong",
        "    6  the registry",
        "7  by nobody",
    ):
        assert words in said


def test_codes_stand_in_a_column() -> None:
    assert list(codes_in_words({ExitCode.OK: "done", ExitCode.INTERRUPTED: "stopped"})) == [
        "    0  done",
        "  130  stopped",
    ]
