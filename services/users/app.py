"""Assembly: from settings to open parts, and the application that serves them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from services.users.adapters.database import Store, open_store
from services.users.adapters.derive import derived_key
from services.users.adapters.heap import HeapTrimmer, keep_one_arena
from services.users.adapters.keys import SigningKeys, successor_key
from services.users.adapters.mail import open_post
from services.users.adapters.passwords import Argon2Passwords
from services.users.adapters.seal import AesSeal
from services.users.adapters.strength import GuessEstimate
from services.users.adapters.tally import PrometheusTally
from services.users.domain.accounts import AccountService
from services.users.domain.auth import AuthService
from services.users.domain.batch import BatchService
from services.users.domain.cleaning import Cleaner
from services.users.domain.counters import Counters
from services.users.domain.events import versions_told
from services.users.domain.idempotency import Idempotency
from services.users.domain.keys import KeyPolicy, KeyRotation
from services.users.domain.letters import Letters
from services.users.domain.lockout import AccountLocks
from services.users.domain.mail_text import MailText
from services.users.domain.ports import AuditLog
from services.users.domain.reads import AWAY, UserReads
from services.users.domain.relay import OutboxRelay
from services.users.domain.sender import MailSender
from services.users.domain.sessions import Endings, SessionService
from services.users.domain.strength import PasswordStrength
from services.users.domain.throttle import FailedLogins
from services.users.domain.users import UserService
from services.users.domain.watched import WatchedUsers, watched_units
from services.users.model.records import Event, StoredKey
from services.users.model.text import normalise_email, normalise_password
from services.users.routes import account, audit, auth, batch, collection, keys, reads, sessions, users
from services.users.routes.cursors import Cursors
from services.users.routes.guard import guarded
from services.users.settings import UsersSettings
from shared.app import Application, Opened, Runtime, build
from shared.bus.base import Bus
from shared.bus.connect import connect as connect_bus
from shared.bus.connect import connected
from shared.cache.base import Cache
from shared.cache.connect import connect as connect_cache
from shared.cache.entries import CacheConfig
from shared.cache.tiered import TieredCache
from shared.errors import Conflict
from shared.revocation import RevocationFeed, follow
from shared.tokens import LEEWAY_S, TokenVerifier

JWKS_MAX_AGE_S = 300
"""So long others may keep the public keys; a key is published for no less before it signs."""

KEY_MARGIN_S = 60.0
"""More time for a retired key: a replica may sign with it a little longer than the one that retired it."""

MAIL_LEFT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Parts:
    """What routes and dependencies find while the service runs."""

    users: UserService
    reads: UserReads
    auth: AuthService
    accounts: AccountService
    sessions: SessionService
    keys: SigningKeys
    rotation: KeyRotation
    batches: BatchService
    idempotency: Idempotency
    audit: AuditLog
    cursors: Cursors
    origins: Collection[str]
    verifier: TokenVerifier
    store: Store


def create(settings: UsersSettings) -> Application:
    """Return the users service for these settings."""
    keep_one_arena()

    def wrap(app: ASGIApp) -> ASGIApp:
        assert isinstance(app, FastAPI)
        traces = bool(settings.otlp_endpoint)
        return reads.HotReads(collection.HotCollection(app, app.state, traces=traces), app.state, traces=traces)

    return build(
        settings,
        routers=guarded([module.router for module in (users, batch, reads, auth, account, sessions, keys, audit)]),
        resources=_resources,
        title="Roundhouse users",
        wrap=wrap,
    )


@asynccontextmanager
async def _resources(settings: UsersSettings, runtime: Runtime) -> AsyncIterator[Opened[Parts]]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            open_store(
                settings.database_url.get_secret_value(),
                name=settings.replica_name,
                connections_max=settings.database_connections_max,
            )
        )
        seal = _seal(settings)
        lasts_s, max_age_s = settings.access_token_lasts_s, min(JWKS_MAX_AGE_S, int(settings.key_ahead_s))
        signing = await SigningKeys.load(store.keys, seal, lasts_s=lasts_s, max_age_s=max_age_s)
        yield await _assemble(settings, runtime, store, signing, await asyncio.to_thread(successor_key, seal), stack)


async def _assemble(
    settings: UsersSettings,
    runtime: Runtime,
    store: Store,
    signing: SigningKeys,
    successors: bytes,
    stack: AsyncExitStack,
) -> Opened[Parts]:
    cache = connect_cache(settings.redis_url.get_secret_value())
    stack.push_async_callback(cache.close)
    passwords = _open_passwords(settings, runtime, stack)
    tally = PrometheusTally(runtime.metrics.registry)

    bus = partial(connect_bus, settings.nats_url.get_secret_value(), name=settings.replica_name)
    records = _open_records(settings, runtime, cache, bus, stack)
    store = replace(store, users=WatchedUsers(store.users, records), unit=watched_units(store.unit, records))
    relay = OutboxRelay(store.outbox, bus, tally=tally, relayed=_teller(records))
    verifier = TokenVerifier(signing)
    endings, feed = await _follow(settings, runtime, relay, verifier)
    strength = PasswordStrength(GuessEstimate(settings.password_score_min))
    counters = Counters(cache)
    stack.push_async_callback(counters.close)
    locks = _locks(settings, counters)
    letters = _letters(settings, runtime, store, successors, counters, tally)
    user_service = UserService(
        store.users,
        passwords,
        tally=tally,
        announce=relay.wake,
        strength=strength,
        endings=endings,
        letters=letters,
        requires_match=settings.require_if_match,
    )
    session_service = SessionService(
        store.sessions, signing, endings, tally, successor_key=successors, lasts_s=settings.session_lasts_s
    )
    await _ensure_admin(settings, user_service)
    runtime.tasks.start("outbox-relay", relay.run)
    runtime.tasks.start("cleaner", _cleaner(settings, store, user_service).run)
    parts = Parts(
        users=user_service,
        reads=UserReads(store.users, records),
        auth=_auth_service(settings, store, session_service, passwords, counters, locks, tally),
        accounts=_accounts(store, letters, passwords, strength, locks, endings, relay),
        sessions=session_service,
        batches=BatchService(store.unit, passwords, strength=strength, tally=tally, announce=relay.wake),
        idempotency=Idempotency(store.idempotency, secret=derived_key(_seal(settings), "idempotency")),
        keys=signing,
        rotation=_rotation(settings, runtime, store, signing, verifier, feed),
        audit=store.audit,
        cursors=Cursors(derived_key(_seal(settings), "cursors")),
        origins=settings.origin_names,
        verifier=verifier,
        store=store,
    )
    # While known records are read from memory, being sent no requests would help nobody.
    return Opened(parts, {"postgres": store.ping}, {"postgres": settings.stale_max_s})


async def _follow(
    settings: UsersSettings, runtime: Runtime, relay: OutboxRelay, verifier: TokenVerifier
) -> tuple[Endings, RevocationFeed]:
    """Return how sessions end for every service, and what this one hears of those that end at other replicas."""
    nats_url = settings.nats_url.get_secret_value()
    name = settings.replica_name
    feed = await follow(runtime.tasks, verifier, lambda: connected(nats_url, name=name), issuer="users")

    async def tell(event: Event) -> None:
        relay.wake()
        await feed.announce(event.payload)

    return Endings(token_lasts_s=settings.access_token_lasts_s, tell=tell), feed


def _rotation(
    settings: UsersSettings,
    runtime: Runtime,
    store: Store,
    signing: SigningKeys,
    verifier: TokenVerifier,
    feed: RevocationFeed,
) -> KeyRotation:
    policy = KeyPolicy(
        lasts=timedelta(days=settings.key_lasts_days),
        ahead=timedelta(seconds=settings.key_ahead_s),
        kept=timedelta(seconds=settings.access_token_lasts_s + LEEWAY_S + KEY_MARGIN_S),
    )

    async def changed(found: Sequence[StoredKey]) -> None:
        if await signing.take(found):
            verifier.renew()

    rotation = KeyRotation(store.keys, policy, make=signing.make, changed=changed, tell=feed.announce_keys)
    feed.on_keys_changed.append(rotation.wake)
    runtime.tasks.start("keys", rotation.run)
    return rotation


def _open_passwords(settings: UsersSettings, runtime: Runtime, stack: AsyncExitStack) -> Argon2Passwords:
    heap = HeapTrimmer()
    runtime.tasks.start("heap-trimmer", heap.run)
    passwords = Argon2Passwords(memory_kib=settings.hash_memory_kib, passes=settings.hash_passes, on_use=heap.used)
    stack.callback(passwords.close)
    return passwords


def _open_records(
    settings: UsersSettings,
    runtime: Runtime,
    cache: Cache,
    bus: Callable[[], Awaitable[Bus]],
    stack: AsyncExitStack,
) -> TieredCache:
    config = CacheConfig(
        ttl_s=settings.cache_ttl_s, stale_s=settings.stale_max_s, bytes_max=settings.cache_mib * 1024 * 1024
    )
    remote = cache if settings.cache_shared else None
    found = TieredCache("users", config, remote=remote, connect=bus, away=AWAY)
    stack.callback(found.close)
    runtime.metrics.caches.watch("records", lambda: found.statistics)
    runtime.tasks.start("records", found.run)
    return found


def _teller(records: TieredCache) -> Callable[[Sequence[Event]], Awaitable[None]]:
    """Return a second way for what a writer could not tell the other replicas itself."""

    async def tell(events: Sequence[Event]) -> None:
        await records.changed_all(versions_told(events))

    return tell


def _auth_service(
    settings: UsersSettings,
    store: Store,
    sessions: SessionService,
    passwords: Argon2Passwords,
    counters: Counters,
    locks: AccountLocks,
    tally: PrometheusTally,
) -> AuthService:
    return AuthService(
        users=store.users,
        sessions=sessions,
        passwords=passwords,
        failed=FailedLogins(
            counters, failures_max=settings.failed_logins_max, window_s=settings.failed_logins_window_s
        ),
        locks=locks,
        audit=store.audit,
        tally=tally,
    )


def _accounts(
    store: Store,
    letters: Letters,
    passwords: Argon2Passwords,
    strength: PasswordStrength,
    locks: AccountLocks,
    endings: Endings,
    relay: OutboxRelay,
) -> AccountService:
    return AccountService(
        store.users,
        store.tokens,
        letters,
        passwords,
        strength=strength,
        locks=locks,
        endings=endings,
        announce=relay.wake,
    )


def _locks(settings: UsersSettings, counters: Counters) -> AccountLocks:
    return AccountLocks(
        counters,
        failures_max=settings.account_failures_max,
        lock_s=settings.account_lock_s,
        lock_max_s=settings.account_lock_max_s,
    )


def _letters(
    settings: UsersSettings, runtime: Runtime, store: Store, root: bytes, counters: Counters, tally: PrometheusTally
) -> Letters:
    """Return what writes mails; their sender is started where there is a place to send them to."""
    url = settings.mail_url.get_secret_value()
    # From a key that was derived slowly: the seal may be a passphrase, and what is sealed here lies in the database.
    seal = AesSeal(derived_key(root, "mail"))
    posted = None
    if url:
        text = MailText(
            sender=settings.mail_from,
            public_url=settings.public_url,
            links={"verify": settings.mail_link_verify, "reset": settings.mail_link_reset},
        )
        sender = MailSender(store.mails, store.tokens, seal, text.compose, open_post(url), tally=tally)
        runtime.tasks.start("mail-sender", sender.run)
        posted = sender.wake
    else:
        structlog.get_logger().warning(
            "mail_not_set_up",
            consequence="no mail is sent, and requests for one answer 503",
            fix="set RH_USERS_MAIL_URL to smtp://, smtps:// or file:///folder",
        )
    return Letters(seal, counters, tally=tally, per_hour_max=settings.mails_per_hour_max, posted=posted)


def _cleaner(settings: UsersSettings, store: Store, users: UserService) -> Cleaner:
    audit_kept = timedelta(days=settings.audit_kept_days)
    return Cleaner(
        {
            "deleted users": partial(users.purge_old, kept=timedelta(days=settings.deleted_kept_days)),
            "audit": lambda limit: store.audit.remove_before(datetime.now(UTC) - audit_kept, limit=limit),
            "idempotency keys": lambda limit: store.idempotency.remove_expired(datetime.now(UTC), limit=limit),
            "one-time tokens": lambda limit: store.tokens.remove_expired(datetime.now(UTC), limit=limit),
            # The sender does so first, and counts them; only where there is none any more they are left.
            "mails": lambda limit: store.mails.remove_expired(datetime.now(UTC) - MAIL_LEFT, limit=limit),
        },
        every_s=settings.cleaning_every_s,
    )


def _seal(settings: UsersSettings) -> str:
    # Without one the store is memory, and the keys end with the process anyway.
    return settings.key_seal.get_secret_value() or secrets.token_urlsafe(32)


async def _ensure_admin(settings: UsersSettings, service: UserService) -> None:
    if settings.admin_password is None:
        return
    log = structlog.get_logger()
    try:
        made = await service.ensure_admin(
            email=normalise_email(settings.admin_email),
            password=normalise_password(settings.admin_password.get_secret_value()),
        )
    except Conflict as error:
        log.warning("admin_not_made", reason=f"there is no admin, and a user who is none stands in the way: {error}")
        return
    if made:
        log.info("admin_made", username="admin")
