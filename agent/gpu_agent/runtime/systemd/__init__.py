"""The components as systemd services after a pip install: units, install, status."""
