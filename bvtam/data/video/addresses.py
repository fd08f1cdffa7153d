"""Addresses of videos, and which of them may be opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ...errors import BvtamError

PROTOCOLS = ('http', 'https', 'rtsp')  # that are opened unless told otherwise
# What FFmpeg opens below an address of a protocol; `crypto` and `data` are of keys in playlists.
_BELOW = {
    'http': ('tcp', 'crypto', 'data'),
    'https': ('tls', 'tcp', 'crypto', 'data'),
    'rtsp': ('tcp', 'udp', 'rtp'),
    'rtsps': ('tls', 'tcp', 'udp', 'rtp', 'srtp'),
    'rtp': ('udp',),
    'srtp': ('rtp', 'udp'),
    'ftp': ('tcp',),
    'gopher': ('tcp',),
    'gophers': ('tls', 'tcp'),
    'rtmp': ('tcp',),
    'rtmps': ('tls', 'tcp'),
    'rtmpt': ('ffrtmphttp', 'http', 'tcp'),
    'rtmpts': ('ffrtmphttp', 'https', 'tls', 'tcp'),
    'mmsh': ('http', 'tcp'),
    'mmst': ('tcp',),
    'icecast': ('http', 'tcp'),
    'tls': ('tcp',),
}


def protocol_of(source: str) -> str:
    """`http` of `http://...`, in lower case; '' of a path."""
    match = re.match(r'([A-Za-z][\w+.-]*)://', source)
    return match[1].lower() if match else ''


def is_url(source: str) -> bool:
    return bool(protocol_of(source))


def check_protocol(source: str, protocols: Iterable[str] = PROTOCOLS) -> None:
    """Raises a `BvtamError` where `source` is an address of none of these protocols, nor `file`."""
    protocol, allowed = protocol_of(source), tuple(protocols)
    if protocol not in ('', 'file', *allowed):
        what = f'only those of {", ".join(allowed)}' if allowed else 'only local files'
        raise BvtamError(
            f'{source}: addresses of {protocol} are not opened, {what}; copy the video, or allow them '
            '(protocols, --protocols; of data sets urls, --allow-urls)'
        )


def whitelist(protocols: Iterable[str]) -> str:
    """For FFmpeg: what may be opened, also by a redirect or a playlist."""
    found = {name for p in protocols for name in (p, *_BELOW.get(p, ()))}
    if any(os.environ.get(name) for name in ('http_proxy', 'https_proxy')):
        found |= {'httpproxy', 'tcp'} if found & {'http', 'https'} else set()
    return ','.join(sorted(found))
