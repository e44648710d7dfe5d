"""What two measurements must agree in: everything exactly, but numbers up to rounding."""

from __future__ import annotations

from typing import Any

import pytest


def assert_alike(found: Any, expected: Any) -> None:
    """Compares what JSON keeps: words and tokens exactly, other numbers up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_alike(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-4, abs=1e-5) if isinstance(expected, float) else expected)
