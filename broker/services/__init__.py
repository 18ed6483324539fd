"""The parts of the system, and how each is made of others. `bootstrap` opens and closes the resources below them."""

from broker.services.parts import Services

__all__ = ["Services"]
