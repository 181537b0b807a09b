"""Tests of the sub-commands as a user calls them."""
