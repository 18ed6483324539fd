"""Checks of a configuration and its environment, each with a cure. They change nothing."""
