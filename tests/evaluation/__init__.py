"""Tests of scores and protocols."""
