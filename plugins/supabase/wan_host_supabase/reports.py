"""Reports to the function ``job-callback``."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING

import httpx

from wan_host import Delivery
from wan_host_supabase.answers import Answer, json_object, unheard
from wan_host_supabase.connection import USER_AGENT, trust
from wan_host_supabase.settings import SupabaseSettings, read_settings

if TYPE_CHECKING:
    from wan_host import HookContext, Report

FUNCTION = "job-callback"
_ANSWER_LIMIT = 64 << 10
_SHORTEST_TIMEOUT = 0.01


class JobCallback:
    """Posts reports over kept connections. Safe from several threads."""

    def __init__(self, settings: SupabaseSettings) -> None:
        """Open nothing yet."""
        self._settings = settings
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()

    def deliver(self, report: Report, context: HookContext) -> Delivery | None:
        """Post one report; None where no project is set. A network fault, 408, 425, 429 or 5xx is worth a retry."""
        settings = self._settings
        if settings.supabase_url is None:
            return None
        if settings.missing:  # kept for a worker that has the key
            return Delivery(outcome="retry", note=f"{FUNCTION} needs {settings.missing}")
        if (lacking := _asset_without_url(report)) is not None:
            return Delivery(outcome="refused", note=f"asset {lacking} has no url: {FUNCTION} would drop it and answer 200")
        context.check()
        body = report.body()
        timeout = max(_SHORTEST_TIMEOUT, min(settings.callback_timeout, context.remaining()))
        url = f"{settings.supabase_url}/functions/v1/{FUNCTION}"
        try:
            with self._connected().stream(
                "POST", url, content=body, headers=self._headers(report, body), timeout=timeout
            ) as response:
                return self._judge(response, _beginning(response, context))
        except httpx.HTTPError as error:
            return Delivery(outcome="retry", note=str(unheard(error, FUNCTION, timeout)))

    def close(self) -> None:
        """Drop the connections; a later delivery opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(headers={"User-Agent": USER_AGENT}, verify=trust())
            return self._client

    def _headers(self, report: Report, body: bytes) -> dict[str, str]:
        secret = self._settings.job_callback_secret
        return {
            **self._settings.auth_headers(),
            **report.headers(body, secret.get_secret_value() if secret is not None else None),
        }

    def _judge(self, response: httpx.Response, body: bytes) -> Delivery:
        answer = Answer.read(response, body)
        note = self._settings.without_secrets(f"{FUNCTION}: {answer}")
        if response.is_success:
            said = json_object(body) or {}
            if said.get("skipped") is True:
                return Delivery(outcome="accepted", note=f"{note}, but the receiver skipped it")
            return Delivery(outcome="accepted", note=note)
        if answer.may_pass:
            return Delivery(outcome="retry", note=note, retry_after=answer.retry_after)
        return Delivery(outcome="refused", note=note + self._advice(answer))

    def _advice(self, answer: Answer) -> str:
        if answer.says("signature"):
            state = "is not set here" if self._settings.job_callback_secret is None else "is another one there"
            return f"; JOB_CALLBACK_SECRET {state}"
        if answer.status in {401, 403}:
            return "; is SUPABASE_SERVICE_ROLE_KEY the service role key of this project?"
        if answer.status == httpx.codes.NOT_FOUND:
            return f"; is the function {FUNCTION} deployed?"
        return "; redirects are not followed, set the final address" if 300 <= answer.status < 400 else ""  # noqa: PLR2004  # 3xx


def _asset_without_url(report: Report) -> int | None:
    assets = report.payload.get("assets") or ()
    return next((index for index, asset in enumerate(assets) if not asset.get("url")), None)


def _beginning(response: httpx.Response, context: HookContext) -> bytes:
    """Read the answer up to a limit: its words decide nothing but a note, so a fault in them is no failed delivery."""
    answer = b""
    try:
        for chunk in response.iter_bytes():
            answer += chunk
            if len(answer) > _ANSWER_LIMIT or context.remaining() <= 0:
                return b""
    except httpx.HTTPError:
        return b""
    return answer


@cache
def callback() -> JobCallback:
    """Return the process's callback."""
    return JobCallback(read_settings())
