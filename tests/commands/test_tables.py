"""The table of scores: which units stand beside the headline."""

from __future__ import annotations

from remanence.commands import tables
from remanence.evaluation import Protocol, Score


def test_a_unit_that_is_the_headline_but_for_rounding_is_not_told_again() -> None:
    protocol = Protocol(unit="character", memory_length=4)
    for nats in (4065.7, 12.3, 7.1):
        same, other = (
            Score(nats, 1013, 1.0, protocol, {"tokens": 1013, "bytes": size, "characters": 1013})
            for size in (1013, 2000)
        )
        close = Score(nats * (1 + 1e-13), 1013, 1.0, protocol, same.counts)
        assert not tables._tells_more([same, close], "bits_per_byte")
        assert tables._tells_more([same, other], "bits_per_byte")
        assert [column.header for column in tables.scores([other]).columns][2] == "bits per byte"
