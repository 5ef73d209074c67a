"""TransformerLens in an environment of its own: its dependencies and ours need not agree."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "results" / "benchmarks" / "transformerlens"


def python(folder: Path = FOLDER) -> Path:
    """Its interpreter; made from requirements.txt when missing or when that file has changed."""
    found, wanted, marker = folder / "bin" / "python", (HERE / "requirements.txt").read_text(), folder / "installed"
    if not marker.is_file() or marker.read_text() != wanted:
        print(f"Making the environment of the peer in {folder} (once, some minutes).", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", HERE / "requirements.txt"]
        subprocess.run([found, *install], check=True)
        marker.write_text(wanted)
    return found
