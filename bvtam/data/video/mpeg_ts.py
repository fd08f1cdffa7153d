"""MPEG transport streams (ISO/IEC 13818-1), read byte by byte: FFmpeg does not tell where one is cut.

A packet of a stream ('PES') begins in a transport packet of its own, so the last one of each is
filled up with stuffing, but for one in 184. Where there is none the stream may go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO, NamedTuple

_NULL = 0x1FFF
_TAIL = 4096  # packets that are looked at at the end
_MOST = 64 << 20  # bytes between two keyframes or so
_ENOUGH = 8  # of what must be seen for a habit of the writer
# distance of packets, and bytes before each: with its time before, with a checksum after it
_LAYOUTS = ((188, 0), (192, 4), (204, 0))


class _Packet(NamedTuple):
    """One of those that carry something."""

    pid: int
    starts: bool  # a packet of a stream, or a table
    counter: int
    payload: bytes
    padded: bool

    @property
    def is_table(self) -> bool:
        return self.starts and self.payload[:3] != b'\0\0\1'

    @property
    def promised(self) -> int:
        """Bytes of the packet of a stream that starts here; 0 where it does not say."""
        length = int.from_bytes(self.payload[4:6])
        return length + 6 if self.starts and not self.is_table and length else 0


def _packets(data: bytes, step: int) -> Iterator[_Packet | None]:
    """The packets in `data`, one in each `step` bytes; None where there is none."""
    for place in range(0, len(data) - 187, step):
        block = data[place : place + 188]
        pid = int.from_bytes(block[1:3]) & 0x1FFF
        if block[0] != 0x47:
            yield None
        elif block[3] & 0x10 and pid != _NULL:
            start, padded = 4, False
            if block[3] & 0x20:
                start += 1 + block[4]
                padded = block[4] > 183 or _fields(block) < block[4]
            counter = block[3] & 15
            yield _Packet(pid, bool(block[1] & 0x40), counter, block[start:], padded)


def _fields(block: bytes) -> int:
    """Bytes of a packet's adaptation field that tell something."""
    flags = block[5] if block[4] else 0
    if not flags:
        return -1
    count = 1 + 6 * (flags >> 4 & 1) + 6 * (flags >> 3 & 1) + (flags >> 2 & 1)
    for _ in range((flags >> 1 & 1) + (flags & 1)):
        count += 1 + block[min(5 + count, 187)]
    return count


def _read(file: BinaryIO, start: int, count: int) -> tuple[bytes, int]:
    """`count` bytes from the packet at `start` on, and the distance of packets in them."""
    file.seek(start)
    data = file.read(count)
    for step, before in _LAYOUTS:
        if set(data[before : before + 3 * step : step]) == {0x47}:
            return data[before:], step
    return b'', 188


def end_of(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Bytes from the file's start to the first byte of its last packet, the distance of packets,
    and the bytes before each; zeros where there are none at its end."""
    start = max(0, size - 204 * 32)
    file.seek(start)
    tail = file.read(size - start)
    for step, before in _LAYOUTS:
        for last in range(len(tail) - 1, max(len(tail) - 1 - step, 4 * step - 1), -1):
            if set(tail[last - 4 * step : last + 1 : step]) == {0x47}:
                return start + last, step, before
    return 0, 0, 0


def cut_short(file: BinaryIO, size: int) -> str:
    """Why the file is known to be cut; '' where it is not."""
    last, step, before = end_of(file, size)
    if not step:
        return ''
    left = size - last
    if left < (step if step == 204 else 188) or (before and 188 < left <= 192):
        return 'it ends in the middle of a packet'
    return _cut_between(_tail(file, last, step))


def _tail(file: BinaryIO, last: int, step: int) -> list[_Packet]:
    start = last - step * min(_TAIL, last // step)
    file.seek(start)
    data = file.read(last + 188 - start)
    return [packet for packet in _packets(data, step) if packet]


def _cut_between(tail: list[_Packet]) -> str:
    """Why a stream is cut of which each packet stands in one piece, as programs write it.

    Broadcasts mix the packets of their streams; what was recorded of one may end anywhere.
    """
    tables = {packet.pid for packet in tail if packet.is_table}
    pieces = groups = promised = length = 0
    before: _Packet | None = None
    for packet in tail:
        if packet.pid in tables:
            groups += before is not None and before.pid not in tables
        elif packet.starts:
            promised, length = packet.promised, len(packet.payload)
        elif before is None or packet.pid == before.pid:
            pieces += before is not None
            length += len(packet.payload)
        else:
            return ''
        before = packet
    if before is None or pieces < _ENOUGH:
        return ''
    if before.pid in tables:
        return 'nothing follows its last tables' if groups > _ENOUGH else ''
    return 'it ends in the middle of a packet' if length < promised else ''


def ends_whole(file: BinaryIO, size: int, pid: int) -> bool:
    """Whether the last packet of a stream is known to be whole."""
    last, step, _ = end_of(file, size)
    mine = [p for p in _tail(file, last, step) if p.pid == pid] if step else []
    return not mine or _is_whole(mine)


def _is_whole(packets: list[_Packet]) -> bool:
    """Whether the last packet of a stream is known to be whole; FFmpeg marks those that are shorter
    than they say."""
    first = max((i for i, p in enumerate(packets) if p.starts), default=0)
    return packets[-1].padded or bool(packets[first].promised)


def breaks_between(file: BinaryIO, start: int, end: int, pid: int) -> bool | None:
    """Whether a stream's counter breaks at the packet at `end`, and what begins before it is whole.

    None where the last packet of the stream before may be whole, but does not say so.
    """
    data, step = _read(file, start, min(end - start, _MOST) + 204)
    packets = list(_packets(data[: end - start + step], step))
    *mine, after = [p for p in packets if p and p.pid == pid] or [None]
    if None in packets or not mine or end - start > _MOST:
        return False
    *within, last = ((b.counter - a.counter) % 16 for a, b in pairwise([*mine, after]))
    if last == 1 or set(within) - {0, 1}:
        return False
    return _is_whole(mine) or None


def begins_anew(file: BinaryIO, place: int) -> bool:
    """Whether a stream's packet and the tables before it have the counters of the file's first ones."""
    data, step = _read(file, 0, 64 * 204)
    first: dict[int, int] = {}
    for packet in filter(None, _packets(data, step)):
        first.setdefault(packet.pid, packet.counter)
    start = max(0, place - 8 * step)
    data, step = _read(file, start, place + step - start)
    *tables, packet = list(_packets(data, step)) or [None]
    counters = {packet.pid: packet.counter} if packet else {}
    for packet in reversed(tables):
        if packet is None or not packet.is_table:
            break
        counters[packet.pid] = packet.counter
    return 0 in counters and len(counters) > 2 and counters.items() <= first.items()
