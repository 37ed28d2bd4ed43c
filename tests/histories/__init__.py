"""Clients on all addresses of a registry that is killed and frozen; a checker judges what they recorded."""
