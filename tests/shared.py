"""What one process of a test run makes for all of them: several share the tests, and each would make it anew."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

WORKER = "PYTEST_XDIST_WORKER" in os.environ
FOLDER = Path(tempfile.gettempdir()) / f"rewired-shared-{os.getppid() if WORKER else os.getpid()}"
"""Of this test run alone; it goes when the run's first process ends."""
if not WORKER:
    atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of that name, which ``make`` has filled in the process that asked for it first."""
    FOLDER.mkdir(exist_ok=True)
    folder = FOLDER / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = folder.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a call that failed
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder
