"""Tests of the parts that models share."""
