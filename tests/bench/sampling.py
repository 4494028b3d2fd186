"""The highest memory of a process tree while something happens to it."""

import threading
from types import TracebackType

from tests.bench import accounting

EVERY_S = 0.02


class PeakMemory:
    """Looks every 20 ms, from a thread of its own, at the processes there are when it begins."""

    def __init__(self, pid: int) -> None:
        self._pids = accounting.tree(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory")
        self.rss_bytes = 0
        self.pss_bytes = 0
        self.samples = 0

    def _watch(self) -> None:
        while True:
            found = accounting.memory(self._pids)
            self.rss_bytes = max(self.rss_bytes, found.rss_bytes)
            self.pss_bytes = max(self.pss_bytes, found.pss_bytes)
            self.samples += 1
            if self._stop.wait(EVERY_S):
                return

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
