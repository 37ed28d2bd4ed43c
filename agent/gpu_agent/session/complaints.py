"""Errors that come while registered, counted by the beats that they follow.

One about a single beat is forgiven: the next may be right. Several beats in a row that were
complained about are no accident. Decides nothing about what is done then.
"""

FORGIVEN = 2
"""So many beats in a row may be complained about; the next one that is has gone too far."""


class Complaints:
    """How many beats in a row the registry complained about; several errors about one count once."""

    def __init__(self) -> None:
        self._beats = 0
        self._about_the_last = False

    def registered(self) -> None:
        """Begin anew."""
        self._beats, self._about_the_last = 0, False

    def beat_sent(self) -> None:
        """Take note of a beat; if nothing was said about the one before, what came earlier is forgiven."""
        if not self._about_the_last:
            self._beats = 0
        self._about_the_last = False

    def persist(self) -> bool:
        """Take note of an error; returns True when it is not forgiven."""
        if not self._about_the_last:
            self._beats += 1
        self._about_the_last = True
        return self._beats > FORGIVEN
