"""Alarms: what receivers in the settings get of the registry's events (docs/howto/alarms.md)."""
