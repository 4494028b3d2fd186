"""The drain: sends every peer away with a hint when to come again, spread over a time, before the server itself stops."""

import asyncio
from math import ceil

import structlog

from services.realtime.hub.hub import Hub
from services.realtime.hub.peers import RESTART
from services.realtime.model import bye

SLICE_S = 0.02
SLICE_PEERS_MIN = 10
RETRY_MS = (200, 5000)


async def send_away(hub: Hub, draining: asyncio.Event, *, within_s: float) -> None:
    """Wait for the drain, then close all peers in slices over at most `within_s`; latecomers are closed as they appear."""
    await draining.wait()
    slice_peers = max(SLICE_PEERS_MIN, ceil(len(hub.peers) * SLICE_S / max(within_s, SLICE_S)))
    structlog.get_logger().info("sending_away", peers=len(hub.peers), at_once=slice_peers)
    farewell = bye(RETRY_MS)
    while True:
        staying = [peer for peer in hub.peers.values() if not peer.closing.is_set()]
        for peer in staying[:slice_peers]:
            peer.notice(farewell)
            peer.close(RESTART, "this replica is stopping")
        await asyncio.sleep(SLICE_S)
