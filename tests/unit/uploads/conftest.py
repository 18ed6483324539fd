"""The intake of these tests."""

from __future__ import annotations

from tests.support.intake import harness

__all__ = ["harness"]
