"""`python -m broker` is `broker`."""

from __future__ import annotations

from broker.cli.commands import main

if __name__ == "__main__":
    main()
