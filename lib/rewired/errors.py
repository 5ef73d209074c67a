"""What a user sees when an input is wrong: one paragraph, and never a traceback.

The paragraph names the file or key, its value, what is allowed and the command or edit that mends it. Command lines
print the message alone and exit with status 2; a notebook stops at the cell.
"""

import difflib
import sys
from collections.abc import Callable, Iterable


class RewiredError(Exception):
    """A bad input, told in one clear paragraph."""


def choice(what: str, value: object, allowed: Iterable[str], fix: str = "") -> RewiredError:
    """The error for a name that is not among ``allowed``, with the nearest allowed name as a hint."""
    allowed = list(map(str, allowed))
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(allowed) or "none"
    return RewiredError(f"Unknown {what} {value!r}.{hint} Known: {known}.{' ' + fix if fix else ''}")


def command_line(app: Callable[[], object]) -> None:
    """Run a command line; a RewiredError is told in a paragraph, without a traceback, and ends with status 2."""
    try:
        app()
    except RewiredError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
