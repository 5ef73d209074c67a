"""The command line: ``python -m corpora.authors report`` and ``python -m corpora.authors rebuild``."""

from pathlib import Path
from typing import Annotated

import typer

from rewired.errors import command_line

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)


@app.command()
def report(
    folder: Annotated[str, typer.Argument(help="the base to examine")] = "models/authors",
    texts: Annotated[int, typer.Option(help="texts a class")] = 1000,
    seed: int = 0,
    untied: Annotated[bool, typer.Option(help="hold it to the floors of the untied twin")] = False,
    save: Annotated[bool, typer.Option(help="keep the table in the folder, where the chapter reads it")] = False,
) -> None:
    """Print what the base knows of its authors on texts it never saw, beside the floor each number must reach."""
    from rewired.execute import start

    chosen = start("pocket", [f"model.path={folder}"])
    from corpora import authors
    from corpora.authors.report import FLOORS
    from rewired import models
    from rewired.store import atomic_path

    model, tokenizer = models.load_base(chosen)
    examine = authors.untied_report if untied else authors.authors_report
    frame = examine(model, tokenizer, texts, seed)
    if save:
        with atomic_path(Path(folder) / FLOORS) as file:
            frame.to_parquet(file, index=False)
    typer.echo(frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


@app.command()
def rebuild(
    out: Annotated[Path, typer.Option(help="folder for the new base")] = Path("results/authors"),
    seed: int = 1,
    untied: Annotated[bool, typer.Option(help="the twin, in whose texts authors and acts go apart")] = False,
) -> None:
    """Train the base of the twelve authors from scratch, about an hour on one core; resumable."""
    from corpora import authors

    typer.echo(authors.train_base(out, authors.Recipe(seed=seed, tied=not untied)))


def main() -> None:
    """Entry point: errors of the user are told in a paragraph, without a traceback."""
    command_line(app)


if __name__ == "__main__":
    main()
