"""What may stand in arguments besides words: whole numbers and labels, read as argparse types.

A fault is a sentence that says how to write it. Lengths of time have `durations`.
"""

import argparse


def whole(text: str) -> int:
    """Read a whole number."""
    return int(text)


def at_least_one(text: str) -> int:
    """Read a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


whole.__name__ = at_least_one.__name__ = "whole number"  # so argparse names what is no number at all


def label(text: str) -> tuple[str, str]:
    """Read `key=value`."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no label: write it like zone=a")
    return key, value
