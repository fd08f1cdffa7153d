"""The command line in this process, and the video that ships with the package."""

import sys
from pathlib import Path

import bvtam
from bvtam import cli

SAMPLE = Path(bvtam.__file__).parent / 'assets' / 'sample.mp4'


def run(capfd, *args):
    """(exit code, stdout, stderr) of one command, in this process."""
    argv, sys.argv = sys.argv, ['bvtam', *map(str, args)]
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return code, *capfd.readouterr()
