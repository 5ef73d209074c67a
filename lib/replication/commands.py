"""The commands about the study alone, added to the command line of `rewired`."""

from pathlib import Path
from typing import Annotated

import typer

Clone = Annotated[Path, typer.Argument(help="a clone of the study's repository")]
Texts = Annotated[Path, typer.Argument(help="a folder with the study's texts")]
Out = Annotated[Path | None, typer.Option(help="write the table there as well: a name in .csv or .parquet")]


def add(app: typer.Typer) -> None:
    """Add the two commands. What they need is imported when they run."""

    @app.command()
    def reread(folder: Clone, out: Out = None) -> None:
        """Recompute every number of the book about the study's released files from a clone of its repository."""
        from replication import reread

        table = reread.reread(folder)
        if out is not None:
            reread.write(table, out)
        typer.echo(reread.report(table, folder))

    @app.command()
    def quotes(folder: Texts, out: Out = None) -> None:
        """Hold every quoted excerpt, letter for letter, against the study's texts."""
        from replication import quotes

        typer.echo(quotes.check(folder, out))
