"""The realtime service: WebSocket and SSE fan-out."""
