"""A client's WebSocket: uvicorn's protocol with what it leaves open closed.

It feeds frames that come before the handshake is answered to a parser that is not ready for them, logs a client's bad text as an error
of ours, and closes on what is still unread, so that a client which sends too much is reset instead of told 1009.
"""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from services.gateway.lane.front import Limits

EARLY_BYTES_MAX = 64 * 1024
"""Of frames that come before the handshake is answered, for which a client should wait (RFC 6455, section 4.1)."""

INVALID_TEXT, ABNORMAL = 1007, 1006


class GatewayWebSocket(WebSocketsSansIOProtocol):
    """One WebSocket, from the head of its handshake on."""

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._early = b""
        self._is_deaf = False
        self._dropped_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > self._limits.linger_bytes:
                self.transport.abort()
        elif self.handshake_initiated and not self.handshake_complete:
            self._early += data
            if len(self._early) > EARLY_BYTES_MAX:
                self.transport.abort()
        else:
            super().data_received(data)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self._early and self.handshake_complete:
            data, self._early = self._early, b""
            if not self.close_sent and not self.transport.is_closing():
                self.data_received(data)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self.conn.send_close(INVALID_TEXT)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """Close after the client's mistake, once it has had time to read why."""
        sent = self.conn.close_sent
        code, reason = (sent.code, sent.reason) if sent is not None else (ABNORMAL, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        if self.transport.can_write_eof():
            self._is_deaf = True
            self.close_timer = self.loop.call_later(self._limits.linger_s, self.transport.abort)
            self.transport.write_eof()
            if self.read_paused:
                self.read_paused = False
                self.transport.resume_reading()
        else:
            self.transport.close()
