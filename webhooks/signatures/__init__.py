"""Signature schemes, both directions: each module signs and verifies by one scheme. Pure; keys are passed in."""
