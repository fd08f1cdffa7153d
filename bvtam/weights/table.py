"""The weights with a name: links, licences, metrics and costs, all from `published.json`.

Model cards, the README's table, `bvtam list --pretrained` and the downloads have no other source.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Weights that their authors published, or that ship with this package.

    Attributes:
        name: `arch.tag`.
        dataset, num_classes: what they were trained on.
        release, code, paper, licence: where they come from.
        url: a direct link, or '' where a browser has to save `file` from the web page `page`.
        sha256: of the authors' file, or None where nobody published it.
        metrics: `[{'top1': per cent, 'views': how it was measured}]`, as published; of weights that
            ship, with the 'command' that measured it.
        about, limits: of the dataset, in a paragraph each; training: of weights that ship, likewise.
        weights: name of the entry whose file these weights share, or ''.
        earlier: `[{'sha256', 'about'}]` of files that had this name before.
        clip: settings of the ClipConfig that differ from the architecture's; None for image models.
        costs: `{'params', 'conv_macs'}` at the clip's frames and crop, by `bvtam flops`.
    """

    name: str
    dataset: str
    num_classes: int
    release: str
    code: str
    paper: str
    licence: str
    file: str
    metrics: list[dict[str, Any]]
    clip: dict[str, Any] | None
    url: str = ''
    page: str = ''
    sha256: str | None = None
    costs: dict[str, int] = field(default_factory=dict)
    about: str = ''
    limits: str = ''
    training: str = ''
    weights: str = ''
    earlier: list[dict[str, str]] = field(default_factory=list)

    @property
    def ships(self) -> bool:
        """Whether the package itself brings them."""
        return not (self.url or self.page)

    @property
    def arch(self) -> str:
        return self.name.partition('.')[0]


@cache
def entries() -> dict[str, Entry]:
    """All of them by name, in the order of the table."""
    table = json.loads(files(__package__).joinpath('published.json').read_text('utf-8'))
    found = {}
    for row in table['weights']:
        release, dataset = table['releases'][row['release']], table['datasets'][row['dataset']]
        fields = {
            'file': PurePosixPath(row.get('url', '')).name,
            **row,
            'dataset': dataset['title'],
            'num_classes': dataset['num_classes'],
            'about': dataset.get('about', ''),
            'limits': dataset.get('limits', ''),
            'code': release['code'],
            'licence': release['licence'],
            'paper': f'{release["title"]}, {release["paper"]}' if 'paper' in release else '',
        }
        found[row['name']] = Entry(**fields)
    return found
