"""`python -m tests.benchmarks.peers`: LiteLLM, the usual design and huey, each beside the broker in the same run."""

from __future__ import annotations

import sys

from tests.benchmarks.command import run_command
from tests.benchmarks.peers.rows import PROGRAMS, huey, litellm, usual_design

if __name__ == "__main__":
    if not (PROGRAMS / "litellm").exists():
        sys.exit("the peers are not installed: use `make bench-peers`")
    paths = {"litellm": litellm, "usual": usual_design, "huey": huey}
    sys.exit(run_command("python -m tests.benchmarks.peers", paths, "peers.json"))
