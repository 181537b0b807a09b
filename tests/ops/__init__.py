"""Tests of the operations: every fast path against its naive truth."""
