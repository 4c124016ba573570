"""A light HTTP client for load: whole requests go out as they are, of replies the status is read and the rest dropped.

It does no more than that for a request, because on a small machine client and server share the cores.
"""

from __future__ import annotations

__all__ = ["HttpPool", "Reply"]

import asyncio
import ssl
from dataclasses import dataclass

from deploykit.runners.triton_wire import Address

_END = b"\r\n\r\n"
_SHOWN = 200


@dataclass(frozen=True)
class Reply:
    """A reply's status and the beginning of its body."""

    status: int
    body: bytes


class _Connection(asyncio.Protocol):
    """A kept connection with one request under way at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[Reply] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            reply = _complete(self._received)
        except ValueError as error:
            self._end(ConnectionError(f"a reply that can't be read: {error}"))
            self.close()
            return
        if reply is not None:
            self._received.clear()
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionError(f"the server ended the connection: {exc or 'no reason given'}"))

    def send(self, request: bytes) -> asyncio.Future[Reply]:
        """Sends a request; the future has its reply, or ConnectionError."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._end(ConnectionError("the server ended the connection"))
        else:
            self._transport.write(request)
        return self._answer

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Ends the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: ConnectionError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


class HttpPool:
    """As many connections to one server as requests are under way; each is used again.

    Args:
        address: of the server.
        timeout_s: the longest that a request may take.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._tls = ssl.create_default_context() if address.tls else None
        self._idle: list[_Connection] = []

    async def send(self, request: bytes) -> Reply:
        """The reply to one whole request.

        Raises:
            TimeoutError: it did not come in time.
            OSError: no connection came about, or it was lost.
        """
        while self._idle and not self._idle[-1].usable:
            self._idle.pop()
        connection: _Connection | None = self._idle.pop() if self._idle else None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = connection or await self._connect()
                reply = await connection.send(request)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._idle.append(connection)
        return reply

    def close(self) -> None:
        """Ends the connections."""
        while self._idle:
            self._idle.pop().close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._address.host, self._address.port, ssl=self._tls)
        return connection


def _complete(received: bytearray) -> Reply | None:
    """The reply, once all of it is there; ValueError where it is none, or says no length."""
    end = received.find(_END)
    if end < 0:
        return None
    status_line, *fields = bytes(received[:end]).split(b"\r\n")
    words = status_line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise ValueError(status_line[:_SHOWN].decode(errors="replace"))
    status = int(words[1])
    for field in fields:
        name, _, value = field.partition(b":")
        if name.strip().lower() == b"content-length":
            start = end + len(_END)
            if len(received) < start + int(value):
                return None
            return Reply(status, bytes(received[start : start + _SHOWN]))
    raise ValueError("it says no Content-Length")
