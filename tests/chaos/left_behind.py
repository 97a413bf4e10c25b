"""What must not be there when the last request has ended, however it ended."""

from __future__ import annotations

import time

from tests.chaos.gauges import BUSY, busy, pages
from tests.chaos.scene import Scene
from ziya.bus import READY, WORK
from ziya.work_stream import DEAD

GROUP = "qformer"
# Streams that live as long as Redis does; each has a largest length.
STREAMS = {WORK, READY, DEAD}
SETTLE_SECONDS = 15.0


def left_behind(scene: Scene) -> dict[str, int]:
    """Counts of what is left; all of them zero on a clean stack. Waits a while for what is just being put away."""
    ends = time.monotonic() + SETTLE_SECONDS
    while any((left := _look(scene)).values()) and time.monotonic() < ends:
        time.sleep(0.2)
    return left


def _look(scene: Scene) -> dict[str, int]:
    with scene.client as client:
        pending = sum(group["pending"] for group in client.xinfo_groups(WORK)) if client.exists(WORK) else 0
        lasting = [key for key in client.scan_iter(count=1000) if client.ttl(key) == -1 and key.decode() not in STREAMS]
        found = {"stream entries": client.xlen(WORK), "entries pending": pending, "keys without an end": len(lasting)}
    return found | {f"held by {name}": int(busy(page, name)) for name, page in pages(scene).items() if name in BUSY}
