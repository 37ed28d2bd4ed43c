"""gpu-agent: what each GPU machine has, and whether it may take a job.

Imports nothing: the NVML child starts from this package and must stay lean.
"""
