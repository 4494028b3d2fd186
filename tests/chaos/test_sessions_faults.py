"""What becomes of a log-out while NATS, which carries it to the others, is dead or hangs."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.chaos.users_rig import UsersRig, standing_users

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ANSWERED_WITHIN_S = 2.0
RECOVERED_WITHIN_S = 5.0


async def status(rig: UsersRig, place: int, headers: dict[str, str]) -> int:
    """Ask a replica what it answers by the token alone."""
    return (await rig.client.get(f"{rig.url(place)}/auth/sessions", headers=headers)).status_code


@pytest.mark.parametrize("fault", ["killed", "hung"])
async def test_a_log_out_without_nats_is_answered_and_reaches_the_others_when_it_is_back(
    tmp_path: Path, fault: str
) -> None:
    async with standing_users(tmp_path, replicas=2) as rig:
        user = (await rig.register()).json()
        ends, lives = await rig.bearer(user["username"]), await rig.bearer(user["username"])
        for place in (0, 1):
            assert [await status(rig, place, each) for each in (ends, lives)] == [200, 200]

        await asyncio.to_thread(rig.nats.kill if fault == "killed" else rig.nats.pause)
        begun = time.monotonic()
        answer = await rig.client.post(f"{rig.url(0)}/auth/logout", headers=ends)
        assert answer.status_code == 204
        assert time.monotonic() - begun < ANSWERED_WITHIN_S
        assert await status(rig, 0, ends) == 401
        # The other one knows nothing of it yet, and goes on for everybody; a write asks for the session and is refused already.
        assert [await status(rig, 1, each) for each in (ends, lives)] == [200, 200]
        changed = await rig.client.patch(f"{rig.url(1)}/users/{user['id']}", json={"full_name": "x"}, headers=ends)
        assert changed.status_code == 401

        await asyncio.to_thread(rig.nats.start if fault == "killed" else rig.nats.resume)
        async with asyncio.timeout(RECOVERED_WITHIN_S):
            while await status(rig, 1, ends) != 401:
                await asyncio.sleep(0.02)
        assert await status(rig, 1, lives) == 200


@pytest.mark.parametrize(("off", "answered"), [("", 401), ("reading-back", 200)], ids=["protected", "unprotected"])
async def test_a_replica_that_starts_knows_which_sessions_ended_before(tmp_path: Path, off: str, answered: int) -> None:
    async with standing_users(tmp_path, replicas=2, off=off) as rig:
        user = (await rig.register()).json()
        ends = await rig.bearer(user["username"])
        assert (await rig.client.post(f"{rig.url(0)}/auth/logout", headers=ends)).status_code == 204
        await rig.until_drained()

        await rig.replicas[1].stop()
        await rig.replicas[1].start()

        assert await status(rig, 1, ends) == answered
