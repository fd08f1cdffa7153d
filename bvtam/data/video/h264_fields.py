"""Finds packets of H.264 that hold one field, half of an interlaced frame (ITU-T H.264, 7.3)."""

from __future__ import annotations

from collections.abc import Iterator

# profile_idc of those that tell the format of their colours in the sequence parameter set
_WITH_COLOURS = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}


class _Bits:
    def __init__(self, data: bytes) -> None:
        data = data.replace(b'\0\0\3', b'\0\0')
        self.text, self.place = f'{int.from_bytes(b"1" + data):b}'[6:], 0

    def u(self, count: int) -> int:
        self.place += count
        return int(self.text[self.place - count : self.place] or '0', 2)

    def ue(self) -> int:
        zeros = self.text.index('1', self.place) - self.place
        self.place += zeros
        return self.u(zeros + 1) - 1


class FieldFinder:
    """Tells packets of one field; `possible` is False where the stream can have none.

    `extradata` is that of the stream's codec, as 'avcC' of MP4 or as units after start codes.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self.possible, self._sizes = False, 0
        self._frame_num = self._planes = 0
        extradata = extradata or b''
        if extradata[:1] == b'\1' and len(extradata) > 8:
            self._sizes = (extradata[4] & 3) + 1
            units = [extradata[8 : 8 + int.from_bytes(extradata[6:8])]]
        else:
            units = [unit for unit in _units(extradata, 0) if unit[0] & 31 == 7]
        for unit in units:
            try:
                self._learn(_Bits(unit[1:500]))
            except ValueError:  # cut short
                return

    def _learn(self, bits: _Bits) -> None:
        profile = bits.u(8)
        bits.u(16), bits.ue()
        planes = 0
        if profile in _WITH_COLOURS:
            if bits.ue() == 3:
                planes = bits.u(1)
            bits.ue(), bits.ue(), bits.u(1)
            if bits.u(1):  # scaling lists are rare with fields, and long
                self.possible = True
                return
        frame_num = bits.ue() + 4
        if (kind := bits.ue()) == 0:
            bits.ue()
        elif kind == 1:
            bits.u(1), bits.ue(), bits.ue()
            for _ in range(min(bits.ue(), 255)):
                bits.ue()
        bits.ue(), bits.u(1), bits.ue(), bits.ue()
        if not bits.u(1):  # frame_mbs_only_flag
            self.possible, self._frame_num, self._planes = True, frame_num, planes

    def is_field(self, packet: bytes) -> bool:
        """Whether the first slice of the packet is of a field, or cannot be read."""
        for unit in _units(packet, self._sizes):
            if unit[0] & 31 in (1, 5) and self._frame_num:
                bits = _Bits(unit[1:40])
                try:
                    bits.ue(), bits.ue(), bits.ue()
                except ValueError:
                    return True
                bits.u(2 * self._planes + self._frame_num)
                return bool(bits.u(1))
        return True


def _units(data: bytes, sizes: int) -> Iterator[bytes]:
    """Units after start codes, or, with `sizes`, after so many bytes of their length."""
    place = 0
    if not sizes:
        yield from (unit for unit in data.split(b'\0\0\1')[1:] if unit)
    while sizes and place + sizes < len(data):
        length = int.from_bytes(data[place : place + sizes])
        if length:
            yield data[place + sizes : place + sizes + min(length, 500)]
        place += sizes + length
