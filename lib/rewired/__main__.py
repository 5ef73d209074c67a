"""The command line: ``rewired …`` or ``python -m rewired …``. Each command is one step of the book, run alone.

A bad input prints one paragraph and exits with status 2.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rewired.errors import RewiredError
from rewired.execute import execute, start
from rewired.profiles import assignment
from rewired.store import output_dir

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def train(
    variant: Annotated[str, typer.Option(help="a reward in rewired.games")],
    seed: int = 1,
    profile: Annotated[str, typer.Option(help="name in config/, or the path of a YAML file")] = "pocket",
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder; default results/<profile>/trials/runs/…")] = None,
) -> None:
    """Train one run, a variant with a seed, and leave its adapter, log and decisions in one folder."""
    chosen = start(profile, overrides)
    from rewired.train import reinforce

    folder = out or output_dir(chosen) / "runs" / f"{variant}-{seed}"
    reinforce.train(chosen, variant, seed, folder)
    typer.echo(folder)


@app.command("run-notebook")
def run_notebook(
    notebook: Path,
    out: Annotated[Path, typer.Option(help="the executed notebook; appears only when every cell ran")],
    parameters: Annotated[list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE")] = None,
    here: Annotated[bool, typer.Option("--here", help="in this process, on machines without a kernel")] = False,
) -> None:
    """Execute a notebook."""
    values = dict(assignment("parameter", text, "-p seed=2") for text in parameters or [])
    execute(notebook, out, values, here=here)


def main() -> None:
    """Entry point: errors of the user are told in a paragraph, without a traceback."""
    try:
        app()
    except RewiredError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
