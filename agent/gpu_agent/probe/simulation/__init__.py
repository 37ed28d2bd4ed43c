"""Machines that do not exist: GPUs, faults and models from one line."""
