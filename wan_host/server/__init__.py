"""The HTTP side of a worker."""

from wan_host.server.listener import HttpServer

__all__ = ["HttpServer"]
