"""Stores of the registry's state: one contract, fulfilled in memory and on disk."""
