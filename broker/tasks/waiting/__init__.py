"""Waiting for tasks."""
