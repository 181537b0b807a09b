"""Tests of the data layer: text in, lanes of tokens out."""
