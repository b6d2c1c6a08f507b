#!/usr/bin/env python3
"""The JavaScript SDK of tests/it/sdks, and AWS's list of its actions for tests/it/oracle.

    python3 tests/sdks/setup.py

Installs tests/sdks/package-lock.json under target/sdks/ (once; later calls return
at once) and prints the directory of its modules. Needs node 20 or newer, and npm.

Standard library only. Messages go to standard error.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from emulator import ROOT, Failed, command, exclusive_lock  # noqa: E402

HERE = ROOT / "tests" / "sdks"
HOME = ROOT / "target" / "sdks"
OLDEST_NODE = 20


def setup():
    """The directory of the installed modules; installs them first if need be."""
    check_node()
    key = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    place = HOME / key
    if not (place / "complete").exists():
        HOME.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(HOME / "lock"):
            if not (place / "complete").exists():
                install(place)
    return place / "node_modules"


def check_node():
    missing = f"these tests need node {OLDEST_NODE} or newer, and npm"
    if not shutil.which("npm"):
        raise Failed(f"{missing}: there is no npm on the PATH")
    try:
        told = subprocess.run(["node", "--version"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True).stdout.strip()
    except OSError as error:
        raise Failed(f"{missing}: {error}") from error
    if not told.startswith("v") or int(told[1:].split(".")[0]) < OLDEST_NODE:
        raise Failed(f"{missing}: this one is {told or 'broken'}")


def install(place):
    """The marker is written last, so what was cut off is installed again."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    print("sdks: installing (once) ...", file=sys.stderr)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, place)
    command(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(place)],
            "npm could not install tests/sdks/package-lock.json "
            "(no network, no package index, or a hash that does not match)")
    (place / "complete").touch()


if __name__ == "__main__":
    try:
        print(setup())
    except Failed as failure:
        sys.exit(f"sdks: {failure}")
