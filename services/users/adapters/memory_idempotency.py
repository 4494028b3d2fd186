"""Idempotency keys in memory."""

from datetime import datetime

from services.users.adapters.memory_database import MemoryDatabase
from services.users.domain.ports import ClaimLost, KeyReused, KeyRunning
from services.users.model.records import Answer, Finished, IdempotencyClaim


class MemoryIdempotency:
    """The idempotency keys of a MemoryDatabase; an IdempotencyStore."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def claim(self, claim: IdempotencyClaim, *, died_before: datetime) -> Answer | None:
        async with self._db.locked(self._db.idempotency):
            found = self._db.idempotency.get(claim.scope_hash.hex())
            if found is not None and found[0].expires_at > claim.started_at:
                held, answer = found
                if held.body_hash != claim.body_hash:
                    raise KeyReused
                if answer is not None:
                    return answer
                if held.started_at > died_before:
                    raise KeyRunning
            self._db.idempotency.records[claim.scope_hash.hex()] = (claim, None)
            return None

    async def finish(self, finished: Finished) -> None:
        async with self._db.locked(self._db.idempotency):
            finish_in(self._db, finished)

    async def release(self, claim: IdempotencyClaim) -> None:
        async with self._db.locked(self._db.idempotency):
            if self._db.idempotency.records.get(claim.scope_hash.hex()) == (claim, None):
                del self._db.idempotency.records[claim.scope_hash.hex()]

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        async with self._db.locked(self._db.idempotency):
            old = self._db.idempotency.find(lambda kept: kept[0].expires_at <= now, limit=limit)
            for claim, _ in old:
                del self._db.idempotency.records[claim.scope_hash.hex()]
            return len(old)


def finish_in(database: MemoryDatabase, finished: Finished) -> None:
    """Keep an answer; the caller holds the lock of `idempotency`. Raises ClaimLost."""
    key = finished.claim.scope_hash.hex()
    if database.idempotency.records.get(key) != (finished.claim, None):
        raise ClaimLost
    database.idempotency.records[key] = (finished.claim, finished.answer)
