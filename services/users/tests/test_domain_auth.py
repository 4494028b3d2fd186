"""AuthService: log-in by username or e-mail address."""

import asyncio
import inspect

import pytest

from services.users.adapters.memory_audit import MemoryAudit
from services.users.adapters.memory_sessions import MemorySessions
from services.users.adapters.memory_users import MemoryUsers
from services.users.domain.auth import AuthService
from services.users.domain.counters import Counters
from services.users.domain.events import event_of
from services.users.domain.lockout import AccountLocks
from services.users.domain.throttle import FailedLogins
from services.users.model.records import Client
from shared.cache.memory import MemoryCache
from shared.errors import TooManyRequests, Unauthorized, Unavailable


@pytest.fixture
def make_service(database, passwords, tally, make_sessions):
    def make(**values):
        counters = values.pop("counters", None) or Counters(MemoryCache())
        standard = {
            "users": MemoryUsers(database),
            "sessions": make_sessions(),
            "passwords": passwords,
            "failed": FailedLogins(counters, failures_max=3, window_s=60),
            "locks": AccountLocks(counters, failures_max=5, lock_s=60, lock_max_s=600),
            "audit": MemoryAudit(database),
            "tally": tally,
        }
        return AuthService(**{**standard, **values})

    return make


@pytest.fixture
def service(make_service):
    return make_service()


async def log_in(service, login="ada", password="correct horse", address="192.0.2.1"):
    return await service.log_in(login, password, Client(address))


@pytest.mark.parametrize("login", ["Ada", "ADA", " ada ", "ada@example.com", "ADA@EXAMPLE.COM"])
async def test_a_login_is_taken_in_every_spelling(service, ada, login, tally):
    tokens = await log_in(service, login)

    assert tokens.access_token.split()[0] == ada.id
    assert tokens.expires_in_s == 600
    assert tally.logins == ["ok"]


@pytest.mark.parametrize(
    ("login", "password"),
    [
        ("ada", "wrong"),
        ("nobody", "correct horse"),
        ("nobody@example.com", "correct horse"),
        ("ada\x00", "correct horse"),
        ("", "correct horse"),
        ("ada", "correct horse\x00"),
        ("ada", "x" * 5000),
        ("ada", "\ud800"),
        ("a" * 10_000, "x"),
    ],
)
async def test_every_wrong_login_gets_the_same_answer_for_the_same_work(
    service, ada, login, password, passwords, tally, database
):
    with pytest.raises(Unauthorized) as caught:
        await log_in(service, login, password)

    assert (caught.value.detail, caught.value.problem_code) == ("username or password is wrong", "invalid_credentials")
    assert len(passwords.verified) == 1
    assert tally.logins == ["refused"]
    assert not database.sessions.records


async def test_an_unknown_user_is_checked_against_the_decoy(service, passwords):
    with pytest.raises(Unauthorized):
        await log_in(service, "nobody")

    assert passwords.verified == [passwords.decoy]


async def test_a_password_is_compared_in_its_composed_form(service, database, make_user):
    user = make_user("bob")
    await MemoryUsers(database).add(user, "hash of caf\u00e9 au lait", event_of(user, "created"))

    assert await log_in(service, "bob", "cafe\u0301 au lait")


async def test_an_outdated_hash_is_renewed_at_login(service, database, ada):
    database.credentials.records[ada.id] = "hash of correct horse (old)"

    await log_in(service)

    assert database.credentials.records[ada.id] == "hash of correct horse"


async def test_a_login_does_not_fail_for_a_hash_that_cannot_be_renewed(make_service, database, ada, passwords):
    database.credentials.records[ada.id] = "hash of correct horse (old)"

    async def busy(_):
        raise Unavailable("too many")

    passwords.hash = busy
    assert await log_in(make_service())
    assert database.credentials.records[ada.id] == "hash of correct horse (old)"


async def test_too_many_failures_of_an_address_are_refused_even_with_the_right_password(service, ada, tally, passwords):
    for _ in range(3):
        with pytest.raises(Unauthorized):
            await log_in(service, password="wrong")

    with pytest.raises(TooManyRequests) as caught:
        await log_in(service)

    assert 0 < int(caught.value.headers["Retry-After"]) <= 60
    assert tally.logins == ["refused"] * 3 + ["limited"]
    assert len(passwords.verified) == 3
    assert await log_in(service, address="192.0.2.2")


async def test_a_user_deleted_during_the_login_gets_nothing(make_service, make_sessions, database, ada):
    class Late(MemorySessions):
        async def open(self, session, *, audit=None):
            database.users.records.clear()
            return await super().open(session, audit=audit)

    with pytest.raises(Unauthorized):
        await log_in(make_service(sessions=make_sessions(Late(database))))


async def fail(service, *, times, login="ada", password="wrong"):
    for number in range(times):
        with pytest.raises(Unauthorized) as caught:
            await log_in(service, login, password, address=f"198.51.100.{number}")
    return caught.value


async def test_a_locked_account_answers_like_a_wrong_password_for_the_same_work(
    service, ada, passwords, tally, database
):
    wrong = await fail(service, times=5)
    passwords.verified.clear()

    locked = await fail(service, times=1, password="correct horse")

    assert (locked.detail, locked.problem_code, locked.headers) == (wrong.detail, wrong.problem_code, wrong.headers)
    assert len(passwords.verified) == 1
    assert tally.logins == ["refused"] * 5 + ["locked"]
    assert not database.sessions.records
    assert [entry.action for entry in database.audit.records.values()][-1] == "login.locked"


async def test_a_name_that_nobody_has_is_locked_like_an_account(service, ada, passwords, tally, database):
    await fail(service, times=6, login="nobody")

    assert tally.logins == ["refused"] * 5 + ["locked"]
    assert len(passwords.verified) == 6
    assert not database.audit.records


async def test_username_and_address_are_counted_as_one_account(service, ada, tally):
    await fail(service, times=3)
    await fail(service, times=2, login="ada@example.com")

    await fail(service, times=1, password="correct horse")
    assert tally.logins[-1] == "locked"


async def test_an_address_that_was_used_lately_is_not_locked_out(service, ada):
    await log_in(service, address="192.0.2.1")
    await fail(service, times=8)

    assert await log_in(service, address="192.0.2.1")


async def test_a_success_forgets_the_failures(service, ada, tally):
    await fail(service, times=4)
    await log_in(service, address="192.0.2.1")
    await fail(service, times=4)

    assert "locked" not in tally.logins


async def test_an_account_is_locked_though_the_audit_log_is_away(make_service, ada, tally):
    class Away:
        async def add(self, entry):
            raise Unavailable("no store")

    await fail(make_service(audit=Away()), times=6)
    assert tally.logins[-1] == "locked"


class Steps:
    """Passes calls on, and notes the name of each."""

    def __init__(self, of, told):
        self._of = of
        self._told = told

    def __getattr__(self, name):
        found = getattr(self._of, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def noted(*values, **named):
            self._told.append(name)
            return await found(*values, **named)

        return noted


@pytest.fixture
def steps_of(make_service, database, passwords):
    """Log in with everything outside noted: one list of steps for each call."""
    told = []
    counters = Counters(MemoryCache())
    service = make_service(
        users=Steps(MemoryUsers(database), told),
        passwords=Steps(passwords, told),
        counters=Steps(counters, told),
        failed=FailedLogins(Steps(counters, told), failures_max=1000, window_s=60),
    )

    async def run(login, password):
        told.clear()
        with pytest.raises(Unauthorized):
            await log_in(service, login, password)
        return list(told)

    return run


async def test_a_refusal_takes_the_same_steps_whatever_its_reason(steps_of, ada, database):
    unknown = await steps_of("nobody", "correct horse")
    wrong = await steps_of("ada", "wrong")
    unreadable = await steps_of("ada", "\x00")
    for _ in range(3):
        await steps_of("ada", "wrong")
    locked = await steps_of("ada", "wrong")
    locked_but_right = await steps_of("ada", "correct horse")
    database.credentials.records[ada.id] = "hash of correct horse (old)"
    locked_but_right_and_outdated = await steps_of("ada", "correct horse")

    assert wrong.count("find_login") == wrong.count("verify") == 1
    assert "hash" not in wrong
    assert unknown == wrong == unreadable == locked == locked_but_right == locked_but_right_and_outdated, (
        "whoever measures could tell them apart"
    )
    assert database.credentials.records[ada.id].endswith("(old)")


async def test_of_many_guesses_at_once_the_right_one_comes_too_late(make_service, ada, passwords, tally):
    line = asyncio.Lock()
    verify = passwords.verify

    async def one_at_a_time(password, password_hash):
        async with line:
            # As a thread would: the loop goes on meanwhile.
            for _ in range(20):
                await asyncio.sleep(0)
            return await verify(password, password_hash)

    passwords.verify = one_at_a_time
    service = make_service()
    guesses = [f"guess {number}" for number in range(20)] + ["correct horse"]
    answers = await asyncio.gather(
        *(log_in(service, "ada", guess, f"198.51.100.{number}") for number, guess in enumerate(guesses)),
        return_exceptions=True,
    )

    assert all(isinstance(answer, Unauthorized) for answer in answers)
    assert tally.logins.count("refused") == 5


async def test_many_right_logins_at_once_all_succeed(make_service, ada, tally):
    service = make_service()
    await asyncio.gather(*(log_in(service, address=f"198.51.100.{number}") for number in range(20)))

    assert tally.logins == ["ok"] * 20
