"""Names and limits of the queue; `scripts/common.lua` lists every key and what it holds."""

from __future__ import annotations

import re
from typing import Final

from wan_host.errors import SettingsError

__all__ = ["DEFAULT_ENTRY_LIMIT", "DEFAULT_NAME", "DELIVERY_SECONDS", "MOVED_A_POLL", "RESERVED_SEQUENCE", "RETENTION_SECONDS"]
__all__ += ["SILENCE_SECONDS", "checked_name", "intake_key"]

DEFAULT_NAME: Final = "wan_queue"
DEFAULT_ENTRY_LIMIT: Final = 1_048_576
"""Bytes of one entry; larger ones are kept as a dead letter with their first kilobyte."""
MOVED_A_POLL: Final = 64
"""Entries that one poll moves from the producers' list at most, so that no poll holds the server for long."""
RETENTION_SECONDS: Final = 7 * 86_400
"""How long finished jobs, reports and dead letters are kept; what is still to be done is kept four times as long."""
DELIVERY_SECONDS: Final = 60.0
"""A worker that took a report has this long to deliver it before another worker may."""
SILENCE_SECONDS: Final = 15.0
"""A worker that does nothing is seen at least so often: over TCP every 5 s, over REST every 12.5 s."""
RESERVED_SEQUENCE: Final = 250
"""Sequence numbers that a run may use for its `processing` reports without asking the server.

Not more than are needed: they run ahead of the clock, which is what makes them rise when a server comes back empty."""

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")


def checked_name(name: str) -> str:
    """Return ``name`` if it can name the producers' list; raises SettingsError, because braces would move the cluster slot."""
    if not _NAME.fullmatch(name):
        raise SettingsError(f"queue name: {name!r} is not allowed; 1 to 100 of A-Z a-z 0-9 _ . : - are")
    return name


def intake_key(name: str) -> str:
    """Return the list into which a blocking read moves entries of the producers' list."""
    return f"{{{name}}}:intake"
