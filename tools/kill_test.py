"""Kill the build at random moments and see whether the next one ends with the same tables, byte for byte.

In a clone of the repository, ``make book PROFILE=ci`` first runs undisturbed: its tables are the reference. Then, ten
times, everything is removed, a build is started, SIGKILL goes to its whole process group after a random share of the
undisturbed time, and ``make book`` runs again. One line a kill is printed; the exit status is 1 when anything differs.

    python tools/kill_test.py [--kills 10] [--profile ci] [--seed 0]
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tables(folder: Path) -> dict[str, str]:
    """Every finished table of the clone and a hash of its bytes."""
    files = [f for f in sorted((folder / "results").rglob("*.parquet")) if ".partial-" not in f.name]
    files = [f for f in files if not any(".partial-" in part for part in f.relative_to(folder).parts)]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def start(folder: Path, profile: str) -> subprocess.Popen:
    """``make book`` in the clone, with this checkout's environment, as the leader of a process group."""
    return subprocess.Popen(
        ["make", "book", f"PROFILE={profile}", f"BIN={ROOT / '.venv' / 'bin'}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "lib")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, profile: str) -> float:
    """Run the build to its end; returns the seconds it took, and stops the test when it fails."""
    began, build = time.monotonic(), start(folder, profile)
    output, _ = build.communicate()
    if build.returncode:
        sys.exit(f"{output}\nThe build failed.")
    return time.monotonic() - began


def alive(folder: Path) -> int:
    """How many processes still work in the clone."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            count += Path(os.readlink(process / "cwd")).is_relative_to(folder)
        except OSError:
            continue
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--profile", default="ci")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng, failed = random.Random(chosen.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        whole = finish(folder, chosen.profile)
        reference = tables(folder)
        print(f"undisturbed: {whole:.0f} s, {len(reference)} tables", flush=True)
        print("kill   at (s)   tables there   of them damaged   still running   rerun (s)   tables equal", flush=True)
        number = 1
        while number <= chosen.kills:
            for left in ("results", "_build", ".snakemake"):
                shutil.rmtree(folder / left, ignore_errors=True)
            build, at = start(folder, chosen.profile), rng.uniform(0.02, 0.98) * whole
            began = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, _ = build.communicate(timeout=at)
                if build.returncode:
                    sys.exit(f"{output}\nThe build failed.")
                whole = time.monotonic() - began  # the machine is quicker than it was: nothing was killed
                continue
            os.killpg(build.pid, signal.SIGKILL)
            build.wait()
            time.sleep(1)
            there, running = tables(folder), alive(folder)
            damaged = sum(reference.get(name) != value for name, value in there.items())
            again, ended = finish(folder, chosen.profile), tables(folder)
            equal = sum(ended.get(name) == value for name, value in reference.items())
            failed += bool(damaged or running or ended != reference)
            print(f"{number:4d} {at:8.1f} {len(there):14d} {damaged:17d} {running:15d} {again:11.0f}"
                  f" {equal:8d} of {len(reference)}", flush=True)  # fmt: skip
            number += 1
    print("every rerun ended with the reference's tables" if not failed else f"{failed} kills left a difference")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
