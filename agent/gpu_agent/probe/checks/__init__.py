"""Admission checks of this machine: what runs in a process of its own, and what its result means."""
