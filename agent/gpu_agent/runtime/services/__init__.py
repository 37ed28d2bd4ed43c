"""The two halves as systemd services of a machine where they come from pip: put there, removed, looked at."""
