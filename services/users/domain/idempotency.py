"""Idempotency keys: a request that is sent again under its key gets the answer it had, and is not carried out again."""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from services.users.domain.ports import ClaimLost, IdempotencyStore, KeyReused, KeyRunning
from services.users.model.records import Answer, IdempotencyClaim
from shared.errors import Conflict, FieldError, InvalidInput, Unavailable

KEPT = timedelta(hours=24)
LEASE = timedelta(seconds=15)
"""A request that runs longer, which is longer than the gateway lets one run, has died with its replica, so another may run in its
place; should it live after all, it is refused when it wants to store."""

RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request with the key it came with; `subject` is the id of who asks, empty for nobody."""

    method: str
    route: str
    subject: str
    key: str
    body: bytes


class Idempotency:
    """`secret` keys the hashes that are stored: a body may hold a password, which a plain hash would let anybody guess at."""

    def __init__(self, store: IdempotencyStore, *, secret: bytes) -> None:
        self._store = store
        self._secret = secret
        self._log = structlog.get_logger()

    async def run(
        self, request: KeyedRequest, work: Callable[[IdempotencyClaim], Awaitable[Answer]]
    ) -> tuple[Answer, bool]:
        """Return the answer kept under the key and True, else that of `work` and False.

        `work` must store its answer with what it does, in one step (`Finished`). What it refuses is not kept: nothing was done, so
        the same request may be tried again. Raises InvalidInput when the key came with another body, Conflict while it runs.
        """
        now = datetime.now(UTC)
        claim = IdempotencyClaim(
            scope_hash=self._hash(request.method, request.route, request.subject, request.key),
            body_hash=self._hash(request.body.hex()),
            started_at=now,
            expires_at=now + KEPT,
        )
        try:
            kept = await self._store.claim(claim, died_before=now - LEASE)
        except KeyReused:
            message = "this key came with another body before"
            raise InvalidInput(
                f"header.idempotency-key: {message}",
                code="idempotency_key_reused",
                errors=[FieldError("header.idempotency-key", message, "reused")],
            ) from None
        except KeyRunning:
            raise _running() from None
        if kept is not None:
            return kept, True
        try:
            return await work(claim), False
        except ClaimLost:
            raise _running() from None
        except Exception:
            await self._release(claim)
            raise

    async def _release(self, claim: IdempotencyClaim) -> None:
        try:
            await self._store.release(claim)
        except Unavailable as error:
            # The lease ends it.
            self._log.warning("idempotency_key_not_released", reason=str(error))

    def _hash(self, *parts: str) -> bytes:
        signed = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
        return hmac.digest(self._secret, signed, "sha256")


def _running() -> Conflict:
    return Conflict(
        "a request with this key is still running",
        code="idempotency_key_running",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
