"""Writes the generated parts of README.md: the model tables, and the results of three benchmarks.

python benchmarks/models.py --json > benchmarks/results/models.json
bvtam bench 'bvtam_*_8x2' tsm_resnet50_f8 --out benchmarks/results
python benchmarks/claims.py
python benchmarks/tables.py
"""

import json
from functools import cache
from pathlib import Path

import claims

import bvtam
from bvtam.deploy import bench
from bvtam.deploy.flops import flops
from bvtam.hub.cards import published_model, write_folder
from bvtam.weights.table import entries

ROOT = Path(__file__).parents[1]


def model_row(name):
    """One line of the model table, each network at its own frames and crop."""
    cost = flops(name)
    return (
        f'| `{name}` | {cost["num_frames"]} | {cost["size"]} | {cost["num_classes"]} '
        f'| {cost["params"] / 1e6:.2f} | {cost["conv_macs"] / 1e9:.2f} '
        f'| {cost["executed_macs"] / 1e9:.2f} |'
    )


def model_table():
    head = '| name | frames | size | classes | params (M) | GMACs | executed |\n|---|---|---|---|---|---|---|'
    return '\n'.join([head, *map(model_row, bvtam.list_models())])


def benchmark_table():
    result = json.loads((ROOT / 'benchmarks/results/models.json').read_text())
    lines = [
        '| batch | | form | time | peak memory | bytes kept for backward | of the fp32 matrix product |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in result['rows']:
        if row['form'] == 'textbook':
            continue
        kept = f'{row["kept_bytes_ratio"]:.2f}' if 'kept_bytes_ratio' in row else ''
        share = f'{row["share_of_matmul"]:.0%}' if 'share_of_matmul' in row else ''
        lines.append(
            f'| {row["batch"]} | {row["what"]} | {row["form"]} | {row["time_ratio"]:.2f} '
            f'| {row["peak_memory_ratio"]:.2f} | {kept} | {share} |'
        )
    setting = (
        f'{result["cores"]} CPU cores, torch {result["torch"]}, {result["size"]} px, 16 frames; '
        '`python benchmarks/models.py`.'
    )
    return '\n'.join([*lines, '', setting])


def peers_table():
    return bench.markdown(json.loads((ROOT / 'benchmarks/results/bench.json').read_text()))


def claims_table():
    return claims.table(claims.load())


def weights_table():
    """The published weights, from the same table as their cards."""
    lines = [
        '| weights | dataset | top-1 (%) | views | GMACs | params (M) | comes by |',
        '|---|---|---|---|---|---|---|',
    ]
    for entry in entries().values():
        metric = entry.metrics[0]
        source = f'[download]({entry.url})' if entry.url else f'[web page]({entry.page})'
        source = 'in the package' if entry.ships else source
        lines.append(
            f'| [`{entry.name}`](zoo/{entry.name}) | {entry.dataset} | {metric["top1"]} '
            f'| {metric["views"]} | {entry.costs["conv_macs"] / 1e9:.1f} '
            f'| {entry.costs["params"] / 1e6:.1f} | {source} |'
        )
    return '\n'.join(lines)


def recount():
    """Counts the costs of every entry anew, at its own frames, crop and classes, into the table."""
    path = ROOT / 'bvtam/weights/published.json'
    table, cost = json.loads(path.read_text()), cache(flops)
    for row in table['weights']:
        entry = entries()[row['name']]
        clip = published_model(entry).clip_config
        frames, size = (clip.num_frames, clip.crop_size) if clip else (None, None)
        counted = cost(entry.arch, frames, size, entry.num_classes)
        row['costs'] = {key: counted[key] for key in ('params', 'conv_macs')}
    path.write_text(json.dumps(table, indent=1) + '\n')
    entries.cache_clear()


PARTS = {
    'weights': weights_table,
    'models': model_table,
    'benchmark': benchmark_table,
    'peers': peers_table,
    'claims': claims_table,
}


def replace(text, part, content):
    """`text` with `content` between the two comments that mark `part`."""
    start, end = f'<!-- {part}, written by benchmarks/tables.py -->', f'<!-- end of {part} -->'
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    if not after:
        raise SystemExit(f'README.md lacks {start} ... {end}')
    return f'{before}{start}\n{content}\n{end}{after}'


def main():
    recount()
    for entry in entries().values():
        write_folder(entry, ROOT / 'zoo' / entry.name)
    readme = ROOT / 'README.md'
    text = readme.read_text()
    for part, write in PARTS.items():
        text = replace(text, part, write())
    readme.write_text(text)


if __name__ == '__main__':
    main()
