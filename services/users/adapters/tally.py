"""Business counts as Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class PrometheusTally:
    """A Tally on a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._users_created = Counter("users_created", "Users registered.", registry=registry)
        self._logins = Counter("logins", "Log-ins, by result: ok, refused, limited.", ("result",), registry=registry)
        self._ended = Counter(
            "sessions_ended",
            "Sessions ended by their user, an admin, a refresh token used twice or one log-in too many, by reason.",
            ("reason",),
            registry=registry,
        )
        for reason in ("logged_out", "revoked", "reused", "over_limit"):
            self._ended.labels(reason)
        self._backlog = Gauge(
            "outbox_backlog",
            "Events that wait for the bus; 0 on replicas whose relay does not lead.",
            registry=registry,
        )
        self._mails_sent = Counter("mail_sent", "Mails that were handed over.", registry=registry)
        self._mails_failed = Counter(
            "mail_failed",
            "Mails not taken: unreachable (each try), or given up as refused, expired or unreadable.",
            ("reason",),
            registry=registry,
        )
        self._mails_limited = Counter(
            "mail_limited", "Mails not written: too many to one account or address.", registry=registry
        )
        self._mail_backlog = Gauge("mail_backlog", "Mails that wait; each replica tells of all.", registry=registry)
        for reason in ("unreachable", "refused", "expired", "unreadable"):
            self._mails_failed.labels(reason)
        for result in ("ok", "refused", "limited"):
            self._logins.labels(result)

    def user_created(self) -> None:
        self._users_created.inc()

    def login(self, result: str) -> None:
        self._logins.labels(result).inc()

    def session_ended(self, reason: str) -> None:
        self._ended.labels(reason).inc()

    def backlog(self, events: int) -> None:
        self._backlog.set(events)

    def mail_sent(self) -> None:
        self._mails_sent.inc()

    def mail_failed(self, reason: str) -> None:
        self._mails_failed.labels(reason).inc()

    def mail_limited(self) -> None:
        self._mails_limited.inc()

    def mail_backlog(self, mails: int) -> None:
        self._mail_backlog.set(mails)
