"""Telling the function ``update-worker-url`` where the worker is, for as long as it lives.

The receiver calls ``{worker_url}/health`` before it answers, and knows one address at a time, so the address is told again and
again: a receiver that forgot it, or heard of another worker since, learns it anew.
"""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import structlog

from wan_host_supabase.answers import Answer, unheard
from wan_host_supabase.connection import USER_AGENT, trust
from wan_host_supabase.patience import backoff

if TYPE_CHECKING:
    from wan_host import WorkerInfo
    from wan_host_supabase.settings import SupabaseSettings

FUNCTION = "update-worker-url"
STOP_SECONDS = 5.0
"""How long the stop waits for a call that is under way and for the one that takes the address back, together."""
_TIMEOUT = 15.0
"""The receiver waits 5 seconds for the worker's health."""
_FIRST_PAUSE = 1.0
log = structlog.get_logger("wan_host_supabase.registration")
_running: dict[str, Registration] = {}
_lock = threading.Lock()


def start(worker: WorkerInfo, settings: SupabaseSettings) -> None:
    """Begin to register the worker, once; say why not where that cannot be."""
    if settings.supabase_url is None or not settings.registers:
        return
    if settings.missing:
        log.warning("worker is not registered: a setting is missing", missing=settings.missing)
        return
    if not worker.url:
        log.warning("worker is not registered: no public address is known; set WAN_HOST_PUBLIC_URL", worker=worker.worker_id)
        return
    with _lock:
        if worker.worker_id in _running:
            return
        registration = _running[worker.worker_id] = Registration(worker, settings)
    registration.start()


def stop(worker: WorkerInfo) -> None:
    """Take the worker's address back and end, within ``STOP_SECONDS``."""
    with _lock:
        registration = _running.pop(worker.worker_id, None)
    if registration is not None:
        registration.stop()


class Registration:
    """One worker's registration: a thread that tells its address."""

    def __init__(self, worker: WorkerInfo, settings: SupabaseSettings) -> None:
        """Call nothing yet."""
        self._settings = settings
        self._address = worker.url.rstrip("/")  # the receiver appends /health
        of_pod = f"https://{settings.runpod_pod_id}-{worker.port}.proxy.runpod.net"
        self._detection = "RUNPOD_POD_ID" if self._address == of_pod else "WAN_HOST_PUBLIC_URL"
        self._stopping = threading.Event()
        # A daemon: a call that hangs must not keep the process.
        self._thread = threading.Thread(target=self._run, name="wan-host-supabase-registration", daemon=True)
        self._state: str | None = ""  # what the last call came to; no call has been made

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take the address back; return when that is done, or when it takes too long."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            log.warning("worker may still be registered: the receiver did not answer in time", url=self._address)

    def _run(self) -> None:
        headers = {"User-Agent": USER_AGENT, "Connection": "close"}  # calls are minutes apart
        with httpx.Client(headers=headers, timeout=_TIMEOUT, verify=trust()) as http:
            faults = 0
            while not self._stopping.is_set():
                trouble = self._call(http, self._registration(), _TIMEOUT)
                self._tell(trouble)
                faults = faults + 1 if trouble else 0
                self._stopping.wait(self._pause(faults))
            # Taken back even where every call failed: one of them may have been heard.
            if trouble := self._call(http, self._withdrawal(), STOP_SECONDS):
                log.info("worker could not be deregistered; the receiver's health check will find it gone", reason=trouble)
            else:
                log.info("worker deregistered", url=self._address)

    def _pause(self, faults: int) -> float:
        every = self._settings.register_seconds
        return backoff(faults - 1, _FIRST_PAUSE, every) if faults else every * random.uniform(0.8, 1.2)  # noqa: S311  # no secret

    def _call(self, http: httpx.Client, fields: dict[str, Any], timeout: float) -> str | None:
        """Call the function; return what went wrong, None where nothing did."""
        url = f"{self._settings.supabase_url}/functions/v1/{FUNCTION}"
        try:
            response = http.post(url, json=fields, headers=self._settings.auth_headers(), timeout=timeout)
        except httpx.HTTPError as error:
            return str(unheard(error, FUNCTION, timeout))
        return None if response.is_success else self._settings.without_secrets(f"{FUNCTION} answered {Answer.of(response)}")

    def _tell(self, trouble: str | None) -> None:
        """Log what changed, not every call."""
        if trouble == self._state:
            return
        self._state = trouble
        if trouble is None:
            log.info("worker registered", url=self._address)
        else:
            log.warning("worker is not registered; it goes on trying", url=self._address, reason=trouble)

    def _registration(self) -> dict[str, Any]:
        return self._fields(self._address, registered=True, method="wan_worker_self_registration")

    def _withdrawal(self) -> dict[str, Any]:
        """Return the message that takes the address back: no address, and which one it was."""
        return self._fields("", registered=False, method="wan_worker_deregistration") | {"previous_worker_url": self._address}

    def _fields(self, url: str, *, registered: bool, method: str) -> dict[str, Any]:
        return {
            "worker_url": url,
            "auto_registered": registered,
            "registration_method": method,
            "detection_method": self._detection,
            "timestamp": datetime.now(UTC).isoformat(),
        }
