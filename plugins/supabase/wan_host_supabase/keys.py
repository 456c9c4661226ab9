"""Names of objects in a bucket."""

from __future__ import annotations

import re

_SEGMENT = re.compile(r"[A-Za-z0-9_!.*'() &$@=;:+,?-]+")
"""The characters that the storage service takes in keys. ``%`` is none of them, so nothing is ever hidden in an encoding."""

ALLOWED = "letters, digits and _ - . ! * ' ( ) & $ @ = ; : + , ? or spaces in every part, no empty part, no '.' or '..', no '%'"


def is_key(key: str) -> bool:
    """Tell whether ``key`` names one object, the same one to everybody who reads it."""
    return all(_SEGMENT.fullmatch(part) and part not in {".", ".."} and part == part.strip() for part in key.split("/"))
