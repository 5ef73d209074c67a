"""Do the tests err as rarely as they say, find what is there, and cover? One command, one table; see README.md."""

import argparse
import os
import sys
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

import simulations

WORDS = {"error": "at most", "cover": "at least", "power": "at least"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    args = parser.parse_args()
    judged = [(case, True) for case in simulations.CASES.values()]
    missed = 0
    print(f"{args.repeats} repeats, seed {args.seed}\n\n| case | what | rate | stated | limit | |\n{'| --- ' * 6}|")
    for case, counts in judged + [(case, False) for case in simulations.SHOWN]:
        if args.only not in case.what:
            continue
        rate = simulations.rate(case, args.repeats, args.seed)
        low, high = simulations.limits(case, args.repeats)
        met = low <= rate <= high
        missed += counts and not met
        word = ("ok" if met else "MISSED") if counts else "shown, not judged"
        limit = high if case.kind == "error" else low
        stated = f"{WORDS[case.kind]} {case.stated:.3g}"
        print(f"| {case.what} | {case.kind} | {rate:.4f} | {stated} | {limit:.4f} | {word} |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
