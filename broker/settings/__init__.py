"""Environment variables: name, default, shape and cure. Read once at the start; no other module reads the environment.

`core` has the variables of the broker itself; each provider package brings a settings class of its own. `loading` reads
them all and reports every wrong variable at once.
"""

from broker.settings.core import Settings

__all__ = ["Settings"]
