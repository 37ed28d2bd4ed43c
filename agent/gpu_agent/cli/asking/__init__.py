"""Asking a registry over its operators' API: where it is, with which token, and what it answers."""
