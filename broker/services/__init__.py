"""The parts of the system, each made once of those it needs. `bootstrap` opens and closes what they stand on."""

from broker.services.composition import DOWNLOAD_CONCURRENCY, Composition, Services, signing_keys

__all__ = ["DOWNLOAD_CONCURRENCY", "Composition", "Services", "signing_keys"]
