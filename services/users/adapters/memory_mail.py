"""One-time tokens and mail on its way, in memory."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from services.users.adapters.memory_database import MemoryDatabase
from services.users.model.records import AuditEntry, Letter, Mail, OneTimeToken


class MemoryTokens:
    """The one-time tokens of a MemoryDatabase; a OneTimeTokens."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def issue(self, letter: Letter, *, audit: AuditEntry) -> bool:
        async with self._db.locked(self._db.users, self._db.tokens, self._db.mails, self._db.audit):
            self._db.record(audit)
            user = self._db.users.records.get(letter.token.user_id)
            if user is None or user.email != letter.token.email:
                return False
            self._db.post(letter)
            return True

    async def find(self, token_hash: bytes, *, now: datetime) -> OneTimeToken | None:
        async with self._db.locked(self._db.tokens):
            found = self._db.tokens.find(lambda token: token.hash == token_hash and token.expires_at > now)
            return found[0] if found else None

    async def living(self, token_hashes: Sequence[bytes], *, now: datetime) -> set[bytes]:
        async with self._db.locked(self._db.tokens):
            found = self._db.tokens.find(lambda token: token.hash in token_hashes and token.expires_at > now)
            return {token.hash for token in found}

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        async with self._db.locked(self._db.tokens):
            old = self._db.tokens.find(lambda token: token.expires_at <= now, limit=limit)
            self._db.drop_tokens(lambda token: token in old)
            return len(old)


class MemoryMailOutbox:
    """The mails of a MemoryDatabase; a MailOutbox."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def claim(self, now: datetime, *, until: datetime, limit: int) -> list[Mail]:
        async with self._db.locked(self._db.mails):
            due = self._db.mails.find(
                lambda mail: mail.next_try_at <= now, key=lambda mail: mail.next_try_at, limit=limit
            )
            claimed = [replace(mail, tries=mail.tries + 1, next_try_at=until) for mail in due]
            self._db.mails.records.update({str(mail.number): mail for mail in claimed})
            return claimed

    async def done(self, mail: Mail) -> None:
        async with self._db.locked(self._db.mails):
            self._db.mails.records.pop(str(mail.number), None)

    async def retry(self, mail: Mail, *, at: datetime) -> None:
        async with self._db.locked(self._db.mails):
            if str(mail.number) in self._db.mails.records:
                self._db.mails.records[str(mail.number)] = replace(mail, next_try_at=at)

    async def backlog(self) -> int:
        return len(self._db.mails.records)

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        async with self._db.locked(self._db.mails):
            old = self._db.mails.find(lambda mail: mail.expires_at <= now, limit=limit)
            for mail in old:
                del self._db.mails.records[str(mail.number)]
            return len(old)
