"""How often our gateway asks the shared store while it serves."""

from redis import Redis

TIMEOUT_S = 2.0


class Store:
    """Reads the server's own count of what clients sent it: a pipeline is one read, and so one round trip."""

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
        self._asked = 0

    def round_trips(self) -> int:
        """Return the reads so far that were not this one's own."""
        found = int(self._client.info("stats")["total_reads_processed"]) - self._asked
        self._asked += 1
        return found

    def close(self) -> None:
        self._client.close()
