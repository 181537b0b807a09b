"""Faults that really happen: processes killed, disks filled, files damaged, links cut. Shared by the tests and by
`benchmarks/faults.py`, which counts them.
"""
