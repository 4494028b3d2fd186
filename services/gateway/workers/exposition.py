"""One exposition out of several: each worker's series with its number as the label `worker`, families kept together.

Labelled, not added up: a worker that is replaced begins at 0 again, which Prometheus understands of a series. In a sum it
would look as if the others had begun at 0 too, and be shown as a burst of all that they ever counted.
"""

from collections.abc import Mapping

from services.gateway.workers.siblings import Siblings

VERB = "metrics"
FAMILY = b"# HELP "


def merge(texts: Mapping[int, bytes]) -> bytes:
    """Return the text format (Prometheus, 0.0.4) of all workers, given that of each by its number.

    Every family in it begins with its HELP line, as prometheus_client writes them; the label `worker` must not be used.
    """
    families: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
    for number, text in texts.items():
        label = b'{worker="%d"' % number
        heads: list[bytes] = []
        samples: list[bytes] = []
        is_new = False
        # Not splitlines: a carriage return in a label's value is not escaped.
        for line in filter(None, text.split(b"\n")):
            if line.startswith(FAMILY):
                name = line.split(b" ", 3)[2]
                is_new = name not in families
                heads, samples = families.setdefault(name, ([], []))
            if line.startswith(b"#"):
                if is_new:
                    heads.append(line)
            else:
                samples.append(_labelled(line, label))
    return b"".join(b"%s\n" % line for heads, samples in families.values() for line in (*heads, *samples))


def _labelled(line: bytes, label: bytes) -> bytes:
    name, brace, rest = line.partition(b"{")
    if brace and b" " not in name:
        return b"%s%s,%s" % (name, label, rest)
    name, _, value = line.partition(b" ")
    return b"%s%s} %s" % (name, label, value)


async def of_all(siblings: Siblings) -> bytes:
    """Return one exposition of all workers' answers to `VERB`. A worker that does not answer is counted, and its series are absent."""
    replies = await siblings.gather(VERB)
    found = {reply.worker: reply.body for reply in replies if reply.body is not None}
    return merge(found) + (
        b"# HELP gateway_workers Worker processes, by whether this scrape holds their series.\n"
        b"# TYPE gateway_workers gauge\n"
        b'gateway_workers{state="answering"} %d\n'
        b'gateway_workers{state="silent"} %d\n' % (len(found), len(replies) - len(found))
    )
