"""AuthService: log-in, refresh and the end of sessions."""

import base64

import pytest

from services.users.adapters.memory import MemorySessions
from services.users.adapters.memory_database import MemoryDatabase
from services.users.adapters.memory_users import MemoryUsers
from services.users.domain.auth import FAMILY_BYTES, SECRET_BYTES, AuthService
from services.users.domain.events import event_of
from services.users.domain.throttle import FailedLogins
from services.users.model.records import Actor
from shared.cache.memory import MemoryCache
from shared.errors import TooManyRequests, Unauthorized, Unavailable
from shared.ids import new_id


class ReadableTokens:
    lasts_s = 600

    def issue(self, user, session_id):
        return f"{user.id} {session_id} {user.role}"


@pytest.fixture
def database():
    return MemoryDatabase()


@pytest.fixture
async def ada(database, make_user):
    user = make_user("Ada")
    await MemoryUsers(database).add(user, "hash of correct horse", event_of(user, "created"))
    return user


@pytest.fixture
def make_service(database, passwords, tally):
    def make(**values):
        standard = {
            "users": MemoryUsers(database),
            "sessions": MemorySessions(database),
            "passwords": passwords,
            "issuer": ReadableTokens(),
            "failed": FailedLogins(MemoryCache(), failures_max=3, window_s=60),
            "tally": tally,
            "session_lasts_s": 3600,
        }
        return AuthService(**{**standard, **values})

    return make


@pytest.fixture
def service(make_service):
    return make_service()


async def log_in(service, login="ada", password="correct horse", address="192.0.2.1"):
    return await service.log_in(login, password, address=address)


def actor_of(tokens):
    user_id, session_id, role = tokens.access_token.split(" ")
    return Actor(user_id, role, session_id)


@pytest.mark.parametrize("login", ["Ada", "ADA", " ada ", "ada@example.com", "ADA@EXAMPLE.COM"])
async def test_a_login_is_taken_in_every_spelling(service, ada, login, tally):
    tokens = await log_in(service, login)

    assert (await service.user_of(actor_of(tokens))) == ada
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


async def test_a_user_deleted_during_the_login_gets_nothing(make_service, database, ada):
    class Late(MemorySessions):
        async def open(self, session):
            database.users.records.clear()
            await super().open(session)

    with pytest.raises(Unauthorized):
        await log_in(make_service(sessions=Late(database)))


async def test_refresh_tokens_are_random_and_only_their_hashes_are_kept(service, ada, database):
    first, second = await log_in(service), await log_in(service)
    raw = base64.urlsafe_b64decode(first.refresh_token)

    assert len(raw) == FAMILY_BYTES + SECRET_BYTES
    assert first.refresh_token != second.refresh_token
    session = database.sessions.records[actor_of(first).session_id]
    assert raw[:FAMILY_BYTES] != session.family_hash
    assert raw[FAMILY_BYTES:] != session.refresh_hash


async def test_a_refresh_keeps_the_session_and_gives_new_tokens(service, ada):
    tokens = await log_in(service)

    fresh = await service.refresh(tokens.refresh_token)

    assert fresh.refresh_token != tokens.refresh_token
    assert actor_of(fresh) == actor_of(tokens)
    assert await service.user_of(actor_of(fresh)) == ada
    assert await service.refresh(fresh.refresh_token)


async def test_any_old_refresh_token_ends_the_session(service, ada):
    for generations in (1, 4):
        tokens = await log_in(service)
        newest = tokens
        for _ in range(generations):
            newest = await service.refresh(newest.refresh_token)

        with pytest.raises(Unauthorized) as caught:
            await service.refresh(tokens.refresh_token)
        assert caught.value.problem_code == "refresh_invalid"

        with pytest.raises(Unauthorized):
            await service.refresh(newest.refresh_token)
        with pytest.raises(Unauthorized) as caught:
            await service.user_of(actor_of(newest))
        assert caught.value.problem_code == "session_ended"


@pytest.mark.parametrize("text", ["", "x", "\u00e9" * 64, "A" * 64, "A" * 65, "=" * 64, "\ud800", "A" * 100_000])
async def test_a_refresh_token_that_is_none_is_refused(service, text, ada):
    tokens = await log_in(service)

    with pytest.raises(Unauthorized):
        await service.refresh(text)

    assert await service.user_of(actor_of(tokens)) == ada


async def test_a_refreshed_token_has_the_new_role(service, ada, database):
    tokens = await log_in(service)
    promoted = type(ada)(**{**{f: getattr(ada, f) for f in ada.__slots__}, "role": "admin"})
    database.users.records[ada.id] = promoted

    assert actor_of(await service.refresh(tokens.refresh_token)).role == "admin"


async def test_logging_out_ends_this_session_only(service, ada):
    here, there = await log_in(service), await log_in(service)

    await service.log_out(actor_of(here))
    await service.log_out(actor_of(here))

    with pytest.raises(Unauthorized):
        await service.user_of(actor_of(here))
    with pytest.raises(Unauthorized):
        await service.refresh(here.refresh_token)
    assert await service.user_of(actor_of(there)) == ada


async def test_a_session_is_only_good_for_its_own_user(service, ada):
    tokens = await log_in(service)

    for actor in (
        Actor(new_id(), "user", actor_of(tokens).session_id),
        Actor(ada.id, "user", new_id()),
        Actor(ada.id, "user", "no id"),
    ):
        with pytest.raises(Unauthorized):
            await service.user_of(actor)


async def test_a_session_ends_with_its_time(make_service, ada):
    service = make_service(session_lasts_s=0)
    tokens = await log_in(service)

    with pytest.raises(Unauthorized):
        await service.user_of(actor_of(tokens))
    with pytest.raises(Unauthorized):
        await service.refresh(tokens.refresh_token)
