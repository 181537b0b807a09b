"""Tests of sampling and sessions."""
