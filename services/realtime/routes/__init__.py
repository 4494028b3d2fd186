"""The ways in: the chat socket and the event stream."""

from services.realtime.routes import chat, stream

ROUTERS = (chat.router, stream.router)
