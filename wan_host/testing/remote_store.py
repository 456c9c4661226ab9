"""A store behind HTTP: a publisher plugin for tests. ``WAN_HOST_TESTING_STORE_URL`` is its address, see ``outside.py``."""

from __future__ import annotations

import http.client
import os
from urllib.parse import urlsplit

from wan_host.context import HookContext
from wan_host.errors import PublishFailed, PublishRefused
from wan_host.hookspecs import hookimpl
from wan_host.media import OutputFile, PublishedFile

URL_VARIABLE = "WAN_HOST_TESTING_STORE_URL"
_SERVER_FAULT = 500


@hookimpl
def publish(file: OutputFile, context: HookContext) -> PublishedFile:
    """PUT the file; whatever is no answer, or one that blames the server, may pass."""
    where = urlsplit(os.environ[URL_VARIABLE])
    connection = http.client.HTTPConnection(where.netloc, timeout=max(0.01, context.remaining()))
    try:
        connection.request("PUT", f"{where.path}/{file.key}", body=file.path.read_bytes())
        answer = connection.getresponse()
        size = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise PublishFailed(f"{file.key}: {type(error).__name__}") from error
    finally:
        connection.close()
    if answer.status >= _SERVER_FAULT:
        raise PublishFailed(f"{file.key}: the store answered {answer.status}")
    if answer.status != http.client.OK:
        raise PublishRefused(f"{file.key}: the store answered {answer.status}")
    return PublishedFile(url=f"store/{file.key}", file_size_bytes=int(size))
