"""The broker's own dialect; README.md describes it."""
