"""Small files of data sets."""

import os


def touch(root, *names):
    """Empty files, with their folders."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')


def short(records, root):
    """The path in `root` and the label of each record."""
    return [(os.path.relpath(r.source, root), r.label) for r in records]


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    return path
