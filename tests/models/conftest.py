"""Every test that asks for `variant` runs on all of them; `compiled_variant` are those that are worth seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from tests.models.unchecked import without_checks
from tests.models.variants import VARIANTS, Variant


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    """One configuration of one architecture."""
    return VARIANTS[request.param]


@pytest.fixture(params=[name for name, variant in VARIANTS.items() if variant.memory_length])
def remembering(request: pytest.FixtureRequest) -> Variant:
    """A variant with memory."""
    return VARIANTS[request.param]


@pytest.fixture(params=[name for name, variant in VARIANTS.items() if variant.compiled])
def compiled_variant(request: pytest.FixtureRequest) -> Variant:
    """A variant that stands for its architecture where tests are slow."""
    return VARIANTS[request.param]


@pytest.fixture(scope="module", autouse=True)
def shapes_checked_where_that_is_tested(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shapes are checked in `test_shapes.py`, which makes every kind of call."""
    with nullcontext() if request.module.__name__.endswith("test_shapes") else without_checks():
        yield
