"""Tests of what is shown about the memory."""
