"""Writes the generated parts of README.md: the model table, and the results of benchmarks/models.py.

python benchmarks/models.py --json > benchmarks/results/models.json
python benchmarks/tables.py
"""

import json
from pathlib import Path

import bvtam
from bvtam.flops import flops

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
    lines = ['| batch | | time | peak memory | bytes kept for backward |', '|---|---|---|---|---|']
    for row in result['rows']:
        kept = f'{row["kept_bytes_ratio"]:.2f}' if 'kept_bytes_ratio' in row else ''
        lines.append(
            f'| {row["batch"]} | {row["what"]} | {row["time_ratio"]:.2f} '
            f'| {row["peak_memory_ratio"]:.2f} | {kept} |'
        )
    setting = (
        f'{result["cores"]} CPU cores, torch {result["torch"]}, fp32, {result["size"]} px, 16 frames; '
        '`python benchmarks/models.py`.'
    )
    return '\n'.join([*lines, '', setting])


PARTS = {'models': model_table, 'benchmark': benchmark_table}


def replace(text, part, content):
    """`text` with `content` between the two comments that mark `part`."""
    start, end = f'<!-- {part}, written by benchmarks/tables.py -->', f'<!-- end of {part} -->'
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    if not after:
        raise SystemExit(f'README.md lacks {start} ... {end}')
    return f'{before}{start}\n{content}\n{end}{after}'


def main():
    readme = ROOT / 'README.md'
    text = readme.read_text()
    for part, write in PARTS.items():
        text = replace(text, part, write())
    readme.write_text(text)


if __name__ == '__main__':
    main()
