"""Clients of the dialects: one module each, with an official SDK where there is one.

Each module has `text_to_image(base_url, key, prompt)` and `image_to_image(base_url, key, prompt, image)`, which return
the bytes of an image; or `complete_flow(base_url, image)`, which registers an account and returns those of all images.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

NAMES = tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))


def load_client(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
