"""The sender: takes mails from the outbox to the mail server, tries again while that is away, and gives up when the token is over.

Every replica runs one; a mail belongs for a time to who claimed it. One who dies between sending and forgetting leaves it to another,
so a mail may come twice but is never lost.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage

import structlog

from services.users.domain.letters import binding, hash_of
from services.users.domain.ports import (
    MailOutbox,
    MailRefused,
    MailUnavailable,
    OneTimeTokens,
    Post,
    Seal,
    SealBroken,
    Tally,
)
from services.users.model.records import Mail
from shared.errors import Unavailable
from shared.log import mask_email

BATCH_MAX = 20
AT_ONCE = 4
LEASE_S = 180.0
"""Longer than a batch takes at worst: five rounds of the post's 30 s."""

POLL_S = 2.0
"""Mails of other replicas, and those to be tried again, come without a call."""

RETRY_S = 2.0
RETRY_MAX_S = 300.0


class MailSender:
    """`compose` makes a message of a mail and its token."""

    def __init__(
        self,
        outbox: MailOutbox,
        tokens: OneTimeTokens,
        seal: Seal,
        compose: Callable[[Mail, str], EmailMessage],
        post: Post,
        *,
        tally: Tally,
        poll_s: float = POLL_S,
        retry_s: float = RETRY_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._outbox = outbox
        self._tokens = tokens
        self._seal = seal
        self._compose = compose
        self._post = post
        self._tally = tally
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._lease = timedelta(seconds=lease_s)
        self._woken = asyncio.Event()
        self._failing = ""
        self._is_server_away = False
        self._log = structlog.get_logger()

    def wake(self) -> None:
        """Look into the outbox now rather than at the next poll."""
        self._woken.set()

    async def run(self) -> None:
        """Send for ever; a service runs it as a background task."""
        while True:
            self._woken.clear()
            try:
                count = await self.send_due()
            except Unavailable as error:
                self._note(str(error))
            else:
                self._note("")
                # While the server is away each poll tries a batch: a large backlog must not keep the store busy for nothing.
                if count == BATCH_MAX and not self._is_server_away:
                    continue
            await self._sleep()

    async def send_due(self) -> int:
        """Claim a batch of mails and send it; return how many those were. Raises Unavailable."""
        now = datetime.now(UTC)
        mails = await self._outbox.claim(now, until=now + self._lease, limit=BATCH_MAX)
        if mails:
            opened = {mail.number: self._open(mail) for mail in mails}
            hashes = {number: hash_of(token) for number, token in opened.items()}
            living = await self._tokens.living(list(hashes.values()), now=now)
            free = asyncio.Semaphore(AT_ONCE)

            async def settle(mail: Mail) -> None:
                async with free:
                    await self._settle(mail, opened[mail.number], is_living=hashes[mail.number] in living)

            async with asyncio.TaskGroup() as group:
                for mail in mails:
                    group.create_task(settle(mail))
        self._tally.mail_backlog(await self._outbox.backlog())
        return len(mails)

    def _open(self, mail: Mail) -> str:
        """Return the token of a mail, empty where the seal does not open it."""
        try:
            return self._seal.open(mail.sealed, bound_to=binding(mail.id, mail.kind, mail.recipient))
        except SealBroken:
            return ""

    async def _settle(self, mail: Mail, token: str, *, is_living: bool) -> None:
        try:
            if not token:
                await self._give_up(mail, "unreadable")
            elif mail.expires_at <= datetime.now(UTC):
                await self._give_up(mail, "expired")
            elif not is_living:
                # A newer one has taken its place, or it was used already: nobody waits for it.
                await self._outbox.done(mail)
            else:
                await self._send(mail, token)
        except Unavailable as error:
            # Its claim runs out, and it is sent again.
            self._note(str(error))

    async def _send(self, mail: Mail, token: str) -> None:
        try:
            await self._post.send(self._compose(mail, token))
        except MailRefused as error:
            await self._give_up(mail, "refused", detail=str(error))
        except MailUnavailable as error:
            self._tally.mail_failed("unreachable")
            self._note_server(mail, str(error))
            wait_s = random.uniform(0, min(RETRY_MAX_S, self._retry_s * 2 ** min(mail.tries, 20)))
            await self._outbox.retry(mail, at=datetime.now(UTC) + timedelta(seconds=wait_s))
        else:
            self._tally.mail_sent()
            self._note_server(mail, "")
            await self._outbox.done(mail)

    async def _give_up(self, mail: Mail, reason: str, *, detail: str = "") -> None:
        self._tally.mail_failed(reason)
        to = mask_email(mail.recipient)
        self._log.warning("mail_given_up", mail=mail.id, kind=mail.kind, to=to, reason=reason, detail=detail)
        await self._outbox.done(mail)

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await self._woken.wait()
        except TimeoutError:
            return

    def _note(self, failing: str) -> None:
        if failing and not self._failing:
            self._log.warning("mail_sender_waits", reason=failing)
        self._failing = failing

    def _note_server(self, mail: Mail, failing: str) -> None:
        """Say once that mails wait, and once that they go out again: each of many mails fails many times."""
        if failing and not self._is_server_away:
            self._log.warning("mail_waits", mail=mail.id, tries=mail.tries, reason=failing)
        elif self._is_server_away and not failing:
            self._log.info("mail_goes_on")
        self._is_server_away = bool(failing)
