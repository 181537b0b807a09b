"""Tests of the models: one suite for all, and what is particular to each."""
