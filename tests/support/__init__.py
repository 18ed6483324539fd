"""Servers, fixtures and helpers of the tests."""
