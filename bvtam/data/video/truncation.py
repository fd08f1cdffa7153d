"""Finds files that end before their container says, which FFmpeg does not notice.

Only a file that is cut for certain is refused. A size that is unknown, zero or makes no sense promises
nothing: recorders that were stopped, live streams and trailing bytes of other programs are sound.
"""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO

from . import mpeg_ts

_STEPS = 2_000_000  # parts of a file that are looked at, at most
_CUT = 'it ends in the middle of {}'


def cut_short(path: str, format: str) -> str:
    """Why the file at `path`, of FFmpeg's format `format`, is known to be cut; '' where it is not."""
    for name in format.split(','):
        if check := _CHECKS.get(name):
            with open(path, 'rb') as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                return check(file, size)
    return ''


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _mp4(file: BinaryIO, size: int) -> str:
    """ISO/IEC 14496-12: fragments cut in their table, and segments that an index promises.

    A file that ends between two fragments without an index looks like one that never had more.
    """
    place, fragments, kind = 0, False, b''
    for _ in range(_STEPS):
        if place >= size:
            break
        header = _at(file, place, 16)
        if len(header) < 8:
            kind, length = b'', 8
        else:
            length, kind = struct.unpack_from('>I4s', header)
            if length == 1 and len(header) == 16:
                (length,) = struct.unpack_from('>Q', header, 8)
        fragments |= kind == b'moof'
        if kind == b'sidx' and _segments_end(file, place, length) > size:
            return 'its index has segments after its end'
        if length < 8:
            return ''  # 0 is up to the end
        place += length
    if fragments and place > size and kind in (b'', b'moof'):
        return _CUT.format('a fragment')
    return ''


def _segments_end(file: BinaryIO, place: int, length: int) -> int:
    """Where the last segment of a 'sidx' box ends; 0 where it cannot be told."""
    box = _at(file, place + 8, min(length, 2**20) - 8) if length > 32 else b''
    wide = bool(box and box[0])
    start = 12 + (16 if wide else 8)  # version, id, timescale; time and offset
    if len(box) < start + 4:
        return 0
    (offset,) = struct.unpack_from('>Q' if wide else '>I', box, start - (8 if wide else 4))
    (count,) = struct.unpack_from('>H', box, start + 2)
    rows = box[start + 4 : start + 4 + 12 * count]
    if len(rows) < 12 * count:
        return 0
    sizes = (row[0] & 2**31 - 1 for row in struct.iter_unpack('>I8x', rows))
    return place + length + offset + sum(sizes)


def _matroska(file: BinaryIO, size: int) -> str:
    """RFC 8794, 9559: elements with a known size; segments and clusters of unknown size hold others."""
    place = 0
    for _ in range(_STEPS):
        if place >= size:
            break
        head = _at(file, place, 12)
        wide = 9 - head[0].bit_length()  # bytes of the name
        if wide > 4:
            return ''  # no element
        if len(head) <= wide or len(head) < wide + (count := 9 - head[wide].bit_length()):
            return _CUT.format('an element')
        if count > 8:
            return ''
        name = head[:wide]
        body = int.from_bytes(head[wide : wide + count]) & 2 ** (7 * count) - 1
        inside = name in (b'\x18\x53\x80\x67', b'\x1f\x43\xb6\x75')  # Segment, Cluster
        if body == 2 ** (7 * count) - 1:
            if not inside:
                return ''
            body = 0
        elif place + wide + count + body > size:
            return _CUT.format('a segment' if inside else 'an element')
        elif name == b'\x18\x53\x80\x67':
            return ''  # all of it is there
        place += wide + count + body
    return ''


def _avi(file: BinaryIO, size: int) -> str:
    """Chunks of RIFF lists, the first of which may be followed by more of OpenDML."""
    place = 0
    for _ in range(_STEPS):
        header = _at(file, place, 12)
        if len(header) < 8:
            break
        name, length = struct.unpack_from('<4sI', header)
        if name == b'RIFF' and header[8:] in (b'AVI ', b'AVIX'):
            # Some writers count the header as well.
            if length and place + length > size:
                return _CUT.format('a list')
            place += 12
            continue
        if name not in (b'LIST', b'idx1', b'JUNK', b'junk') or not length:
            return ''
        if place + 8 + length > size:
            return _CUT.format('a list' if name == b'LIST' else 'its index')
        place += 8 + length + length % 2
    return ''


def _flv(file: BinaryIO, size: int) -> str:
    """Tags, each followed by four bytes of its length; the first may tell the file's size."""
    head = _at(file, 0, 2**16)
    if (found := head.find(b'\0\x08filesize\0')) > 0 and len(head) >= found + 19:
        (promised,) = struct.unpack_from('>d', head, found + 11)
        if size < promised < 2**63:
            return f'it holds {size} of {promised:.0f} bytes'
    place = int.from_bytes(_at(file, 5, 4)) + 4
    for _ in range(_STEPS):
        if place >= size:
            break
        header = _at(file, place, 11)
        if header[0] & 0x1F not in (8, 9, 18):
            return ''
        place += 11 + int.from_bytes(header[1:4]) + 4
        if len(header) < 11 or place > size + 4:  # the last length is left out by some
            return _CUT.format('a tag')
    return ''


def _asf(file: BinaryIO, size: int) -> str:
    """The file's size, in its properties, unless it was sent as it was made."""
    head = _at(file, 0, 2**16)
    place = head.find(bytes.fromhex('a1dcab8c47a9cf118ee400c00c205365'))
    if place < 0 or len(head) < place + 92:
        return ''
    (promised,) = struct.unpack_from('<Q', head, place + 40)
    live = head[place + 88] & 1
    return '' if live or promised <= size else f'it holds {size} of {promised} bytes'


def _mxf(file: BinaryIO, size: int) -> str:
    """SMPTE ST 377-1: the place of the last partition, in the first."""
    head = _at(file, 0, 2**16 + 64)
    place = head.find(bytes.fromhex('060e2b34020501010d01020101'))
    if place < 0 or len(head) < place + 64:
        return ''
    length = head[place + 16]
    body = place + 17 + (length & 0x7F if length & 0x80 else 0)
    (footer,) = struct.unpack_from('>Q', head, body + 24)
    return 'its footer is missing' if footer >= size else ''


def _ogg(file: BinaryIO, size: int) -> str:
    """RFC 3533: pages."""
    place = 0
    for _ in range(_STEPS):
        if place >= size:
            break
        header = _at(file, place, 27 + 255)
        if not b'OggS'.startswith(header[:4]) and header[:4] != b'OggS':
            return ''
        place += 27 + header[26] + sum(header[27 : 27 + header[26]]) if len(header) > 26 else size
        if len(header) < 27 or place > size:
            return _CUT.format('a page')
    return ''


def _program_stream(file: BinaryIO, size: int) -> str:
    """ISO/IEC 13818-1: packs and packets, all of known length."""
    place = 0
    for _ in range(_STEPS):
        header = _at(file, place, 14)
        if len(header) < 6 or header[:3] != b'\0\0\1' or header[3] < 0xB9:
            break
        if header[3] == 0xB9:
            length = 4
        elif header[3] == 0xBA:
            old = header[4] >> 4 == 2
            length = 12 if old else 14 + (header[13] & 7 if len(header) == 14 else 0)
        else:
            length = 6 + int.from_bytes(header[4:6])
        place += length
        if place > size:
            return _CUT.format('a packet')
    return ''


def _gif(file: BinaryIO, size: int) -> str:
    """Blocks of up to 255 bytes."""

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    head = _at(file, 0, 13)
    place = 13 + table(head[10]) if len(head) == 13 else size + 1
    for _ in range(_STEPS):
        block = _at(file, place, 11)
        if not block or block[0] not in (0x21, 0x2C):
            break
        if block[0] == 0x2C:
            place += 11 + (table(block[9]) if len(block) == 11 else size)
        else:
            place += 2
        while (length := file.seek(place) < size and file.read(1)[0]) > 0:
            place += 1 + length
        place += 1
        if place > size:
            return _CUT.format('a block')
    return _CUT.format('a block') if place > size else ''


def _y4m(file: BinaryIO, size: int) -> str:
    """Frames of one size, each after a line of its own."""
    head = _at(file, 0, 256).split(b'\n')[0]
    fields = {tag[:1]: tag[1:].decode('ascii', 'replace') for tag in head.split()[1:]}
    kind = re.fullmatch(r'(420|411|422|444|mono)(\D*)(\d*)', fields.get(b'C', '420'))
    try:
        width, height = int(fields[b'W']), int(fields[b'H'])
    except (KeyError, ValueError):
        return ''
    if not kind or min(width, height) < 1:
        return ''
    layout, more, bits = kind.groups()
    colours = -(-width // {'420': 2, '422': 2, '411': 4}.get(layout, 1))  # pixels of a line
    colours *= -(-height // 2) if layout == '420' else height
    length = width * height * (2 if more == 'alpha' else 1) + (layout != 'mono') * 2 * colours
    length *= 2 if bits and int(bits) > 8 else 1
    place = len(head) + 1
    for _ in range(_STEPS):
        line = _at(file, place, 256)
        if not line.startswith(b'FRAME'):
            return _CUT.format('a frame') if line and b'FRAME'.startswith(line) else ''
        place += line.find(b'\n') + 1 + length if b'\n' in line else size
        if place > size:
            return _CUT.format('a frame')
    return ''


_CHECKS = {
    'mp4': _mp4,
    'matroska': _matroska,
    'avi': _avi,
    'flv': _flv,
    'asf': _asf,
    'mxf': _mxf,
    'ogg': _ogg,
    'mpeg': _program_stream,
    'mpegts': mpeg_ts.cut_short,
    'mpegvideo': mpeg_ts.cut_short,  # for which FFmpeg takes a few packets
    'gif': _gif,
    'yuv4mpegpipe': _y4m,
}
