"""Run a command on a graphics card that has room for it; other commands wait until there is.

    python tools/cards.py train -- python -m rewired run-notebook …

How much of a card a kind of job takes stands in the profile (``gpu_mem_mb``); tools/book.py hands it on in
``REWIRED_GPU_MEM``, and the cards of this machine with their memory in ``REWIRED_CARDS``. Jobs share a card while the
sum of what they declare fits it. A ledger in the temporary folder lists who holds what, for every build on this
machine; an entry counts as long as its process lives. Where a cluster has chosen the card already
(``CUDA_VISIBLE_DEVICES``), and where there is no card, the command simply runs.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LEDGER = Path(tempfile.gettempdir()) / f"rewired-cards-{os.getuid()}.json"


def works(process: int) -> bool:
    """Whether a process with that number is alive; one that was killed but not yet buried is not."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process, or a system without /proc
        return True
    return state != "Z"


def here() -> list[int]:
    """The memory of each card of this machine, in MB; [] without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True)
    return [int(line) for line in told.stdout.split()] if told.returncode == 0 else []


def place(need: int, cards: list[int], held: list[dict]) -> int | None:
    """The card with the most room among those that have ``need`` MB left, or None."""
    room = list(cards)
    for entry in held:
        if entry["card"] < len(room):
            room[entry["card"]] -= entry["mb"]
    best = max(range(len(room)), key=room.__getitem__)
    return best if room[best] >= need else None


def take(need: int, cards: list[int], ledger: Path = LEDGER) -> int:
    """Wait for a card with ``need`` MB left, enter this process in the ledger, and return the card's number."""
    while True:
        with open(ledger, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            file.seek(0)
            held = [entry for entry in json.loads(file.read() or "[]") if works(entry["process"])]
            card = place(need, cards, held)
            if card is not None:
                held.append({"process": os.getpid(), "card": card, "mb": need})
            file.truncate(0)
            file.write(json.dumps(held))
        if card is not None:
            return card
        time.sleep(0.5)


def main() -> None:
    kind, _, *command = sys.argv[1:]
    cards = json.loads(os.environ.get("REWIRED_CARDS", "[]"))
    need = json.loads(os.environ.get("REWIRED_GPU_MEM", "{}")).get(kind, 0)
    if cards and need and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(take(need, cards))
    os.execvp(command[0], command)  # the same process: the entry lives as long as the command


if __name__ == "__main__":
    main()
