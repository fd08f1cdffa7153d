"""Puts the files that pages link to, but that lie outside docs/, into the site, and mends the links.

Pages link as they must on GitHub (`../zoo/NAME/README.md`). Without this, mkdocs knows docs/ alone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    'CONTRIBUTING.md',
    'SECURITY.md',
    'CHANGELOG.md',
    'zoo/*/README.md',
    'benchmarks/results/*.png',
)
FOLDER = 'repository/'  # of these files in the site
LINK = re.compile(r'(\]\()(?!https?:|#|mailto:)([^)#\s]+)')


def on_files(files, config):
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = FOLDER + path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri
    outside = uri.startswith(FOLDER)
    folder = posixpath.dirname(uri.removeprefix(FOLDER) if outside else f'docs/{uri}')

    def mended(link):
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        inside = target.startswith('docs/')
        name = target.removeprefix('docs/') if inside else FOLDER + target
        return link[1] + posixpath.relpath(name, posixpath.dirname(uri) or '.')

    return LINK.sub(mended, markdown)
