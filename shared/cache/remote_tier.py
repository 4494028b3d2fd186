"""The tier that replicas share: a cache whose entries carry their versions and the generations of their tags.

A tag's generation is a random text under a key of its own. Letting go of a tag writes a new one, and every entry that names the old one
is no longer taken: no key is searched for. Whatever fails is counted and is no answer.
"""

import os
import random
from collections.abc import Sequence

import orjson

from shared.cache.base import KEY_BYTES_MAX, VALUE_BYTES_MAX, Cache, CacheUnavailable
from shared.cache.entries import FLOOR_S, JITTER, Loaded

GENERATION_LASTS_S = 24 * 3600.0
"""Longer than any entry, so that none outlives the generation it names."""

_VALUE, _MISSING, _FLOOR = b"+", b"-", b"!"
Generations = dict[str, str]


class RemoteTier:
    """`name` begins every key: `<name>:cache:<key>` and `<name>:generation:<tag>`."""

    def __init__(self, name: str, cache: Cache) -> None:
        self.errors = 0
        self._name = name
        self._cache = cache

    def _key(self, kind: str, name: str) -> str:
        return f"{self._name}:{kind}:{name}"

    async def find(self, key: str, tags: Sequence[str]) -> tuple[Loaded | None, Generations | None]:
        """Return what is kept of a key, and what its tags are at; None for nothing, None where it cannot be asked nor told.

        What names other generations is nothing.
        """
        try:
            generations = {tag: await self._generation(tag) for tag in tags}
            return await self._read(key, generations), generations
        except CacheUnavailable:
            self.errors += 1
            return None, None

    async def _generation(self, tag: str) -> str:
        key = self._key("generation", tag)
        found = await self._cache.get(key)
        if found is None:
            ours = _new_generation()
            if await self._cache.add(key, ours, ttl_s=GENERATION_LASTS_S):
                return ours.decode()
            found = await self._cache.get(key)
            if found is None:
                raise CacheUnavailable("a generation came and went")
        return found.decode("latin-1")

    async def renew(self, tag: str) -> None:
        """Let go of everything that names a tag."""
        try:
            await self._cache.set(self._key("generation", tag), _new_generation(), ttl_s=GENERATION_LASTS_S)
        except CacheUnavailable:
            self.errors += 1

    async def _read(self, key: str, generations: Generations) -> Loaded | None:
        found = await self._cache.get_newest(self._key("cache", key))
        if found is None or found.value[:1] not in (_VALUE, _MISSING):
            return None
        head, _, value = found.value[1:].partition(b"\n")
        if head != _head(generations):
            return None
        return Loaded(value if found.value[:1] == _VALUE else None, found.version)

    async def write(self, key: str, loaded: Loaded, generations: Generations, *, ttl_s: float) -> None:
        """Keep what was loaded, unless something newer is kept."""
        kind = _MISSING if loaded.value is None else _VALUE
        packed = kind + _head(generations) + b"\n" + (loaded.value or b"")
        await self._put(key, packed, version=loaded.version, ttl_s=ttl_s * random.uniform(1 - JITTER, 1))

    async def forbid(self, key: str, version: int) -> None:
        """Let go of a key, and keep nothing older than `version` for a while; 0: whatever is loaded next is taken."""
        if version:
            await self._put(key, _FLOOR, version=version, ttl_s=FLOOR_S)
            return
        try:
            await self._cache.delete(self._key("cache", key))
        except CacheUnavailable:
            self.errors += 1

    async def _put(self, key: str, packed: bytes, *, version: int, ttl_s: float) -> None:
        whole = self._key("cache", key)
        if len(packed) > VALUE_BYTES_MAX or len(whole.encode()) > KEY_BYTES_MAX:
            return
        try:
            await self._cache.set_newer(whole, packed, version=version, ttl_s=ttl_s)
        except CacheUnavailable:
            self.errors += 1


def _head(generations: Generations) -> bytes:
    return orjson.dumps(generations, option=orjson.OPT_SORT_KEYS) if generations else b""


def _new_generation() -> bytes:
    return os.urandom(9).hex().encode()
