"""The command line: ``python -m rewired …``, one step of the book each. A bad input prints a paragraph (status 2)."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from rewired.errors import command_line
from rewired.execute import execute, start
from rewired.profiles import ROOT, assignment
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


@app.command()
def grow(
    out: Annotated[Path, typer.Argument(help="the folder to write")],
    like: Annotated[str | None, typer.Option(help="a larger model whose shape it gets: gemma-2-2b")] = None,
    layers: int | None = None,
    width: int | None = None,
    head_dim: int | None = None,
    base: Annotated[Path, typer.Option(help="the folder of the small Gemma-2")] = ROOT / "models" / "pocket",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="of the weights")] = "bfloat16",
) -> None:
    """Write a small base in the shape of a larger model, computing the same: a rehearsal for the real size."""
    from rehearsal import grow

    sizes = {"num_hidden_layers": layers, "hidden_size": width, "head_dim": head_dim}
    typer.echo(grow.grow(base, out, like, dtype, **{name: size for name, size in sizes.items() if size}))


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
    torch = sys.modules.get("torch")
    if here and torch and torch.cuda.is_available():
        peak = (torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30)
        typer.echo("GPU memory at its peak: {:.1f} GiB in tensors, {:.1f} GiB taken from the card".format(*peak))


def main() -> None:
    """Entry point: errors of the user are told in a paragraph, without a traceback."""
    from replication import commands  # about the study alone; no other module of `rewired` imports these

    commands.add(app)
    command_line(app)


if __name__ == "__main__":
    main()
