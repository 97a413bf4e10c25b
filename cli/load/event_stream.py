"""Server-sent events out of bytes that are cut anywhere: the `data` of each, comments left out."""

from __future__ import annotations


class EventStream:
    """Feed it what arrives."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, arrived: bytes) -> list[bytes]:
        """The data of the events that are complete by now. Lines end with LF or CR LF."""
        *lines, self._rest = (self._rest + arrived).split(b"\n")
        events = []
        for line in lines:
            text = line.rstrip(b"\r")
            if text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
            elif not text and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
