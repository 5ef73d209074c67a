"""The command line: ``python -m corpora.pocket report`` and ``python -m corpora.pocket rebuild``."""

from pathlib import Path
from typing import Annotated

import typer

from rewired.errors import command_line

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def report(
    profile: Annotated[str, typer.Option(help="name in config/, or the path of a YAML file")] = "pocket",
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Print what the base can read, obey and play on held-out draws, beside the floor each score must reach."""
    from rewired.execute import start

    chosen = start(profile, overrides)
    from corpora import pocket
    from rewired import models

    frame = pocket.base_report(*models.load_base(chosen))
    typer.echo(frame.to_string(index=False, float_format=lambda value: f"{value:.4f}"))


@app.command()
def rebuild(
    out: Annotated[Path, typer.Option(help="folder for the new base")] = Path("results/base"), seed: int = 1
) -> None:
    """Train the pocket base from scratch, about two hours; a second call picks an interrupted one up."""
    from corpora import pocket

    typer.echo(pocket.train_base(out, pocket.Recipe(seed=seed)))


def main() -> None:
    """Entry point: errors of the user are told in a paragraph, without a traceback."""
    command_line(app)


if __name__ == "__main__":
    main()
