"""The command line: ``rewired …`` or ``python -m rewired …``. Each command is one step of the book, run alone.

A bad input prints one paragraph and exits with status 2.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import yaml
from traitlets.config import Config

from rewired import profiles
from rewired.errors import RewiredError

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

ProfileName = Annotated[str, typer.Option("--profile", help="name in config/, or the path of a YAML file")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. training.kl=0.1")]


@app.command("base-table")
def base_table(profile: ProfileName = "pocket", overrides: Overrides = None) -> None:
    """Print what the base can read, obey and play on held-out draws, beside the floor each score must reach."""
    P = profiles.start(profile, overrides)
    from rewired import models, pocket

    model, tokenizer = models.load_base(P)
    typer.echo(_text(pocket.base_report(model, tokenizer)))


@app.command()
def train(
    variant: Annotated[str, typer.Option(help="a reward in rewired.games")],
    seed: int = 1,
    profile: ProfileName = "pocket",
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder; default results/<profile>/trials/runs/…")] = None,
) -> None:
    """Train one run, a variant with a seed, and leave its adapter, log and decisions in one folder."""
    P = profiles.start(profile, overrides)
    from rewired import training

    folder = out or profiles.output_dir(P) / "runs" / f"{variant}-{seed}"
    training.train(P, variant, seed, folder)
    typer.echo(folder)


@app.command("policy-table")
def policy_table(profile: ProfileName = "pocket") -> None:
    """Print the final policy of every run: p_defect per state and legal answers, averages over held-out prompts."""
    import pandas as pd

    P = profiles.load(profile)
    rows = []
    for variant in P.training.variants:
        for seed in P.training.seeds:
            run = profiles.results_dir(P) / "runs" / f"{variant}-{seed}"
            policy = profiles.read_table(run / "policy.parquet", P)
            states = policy.groupby("state")["p_defect"].mean()
            rows.append({"variant": variant, "seed": seed, **states, "legal_mass": policy["legal_mass"].mean()})
    typer.echo(_text(pd.DataFrame(rows)))


@app.command("rebuild-base")
def rebuild_base(
    out: Annotated[Path, typer.Option(help="folder for the new base")] = Path("results/base"), seed: int = 1
) -> None:
    """Train the pocket base from scratch, about two hours; a second call picks an interrupted one up."""
    from rewired import pocket

    typer.echo(pocket.train_base(out, pocket.Recipe(seed=seed)))


@app.command("run-notebook")
def run_notebook(
    notebook: Path,
    out: Annotated[Path, typer.Option(help="the executed notebook; appears only when every cell ran")],
    parameters: Annotated[list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE")] = None,
) -> None:
    """Execute a notebook with papermill."""
    execute(notebook, out, dict(_pair(text) for text in parameters or []))


def execute(notebook: Path, output: Path, given: dict) -> None:
    """Run ``notebook`` with the parameters ``given`` and write the executed notebook to ``output``.

    Raises RewiredError for a parameter that the notebook does not have and for one raised inside it.
    """
    import os

    import papermill

    if not notebook.is_file():
        raise RewiredError(f"There is no notebook {notebook}. The chapters are notebooks/*.ipynb.")
    declared = papermill.inspect_notebook(str(notebook))
    profiles.refuse_unknown(given, declared, notebook.name)
    defaults = {name: yaml.safe_load(about["default"]) for name, about in declared.items() if name in BUILT_ON}
    P = profiles.load(*({**defaults, **given}.get(name) for name in BUILT_ON))
    os.environ.update(profiles.environment(P))
    with profiles.atomic_path(output) as temporary, sockets() as config:
        try:
            papermill.execute_notebook(
                str(notebook), str(temporary), given, cwd=str(profiles.ROOT), kernel_name="python3", config=config,
                progress_bar=False, log_output=False, start_timeout=600, extra_arguments=["--log-level=50"],
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            if error.ename == "RewiredError":
                raise RewiredError(error.evalue) from None
            raise RuntimeError(f"{notebook} failed in cell {error.exec_count}:\n{error}") from None
        tidy(temporary)


BUILT_ON = ("profile", "overrides")


@contextlib.contextmanager
def sockets() -> Iterator[Config]:
    """Settings with which papermill and its kernel talk through files that nobody else uses. By default they take TCP
    ports that were free a moment before, and of two notebooks that start together one may find its port taken."""
    short = len(tempfile.gettempdir()) < 60  # the path of a socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="rewired-", dir=None if short else "/tmp") as folder:
        yield Config({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}})


def tidy(executed: Path) -> None:
    """Take out of an executed notebook what differs from run to run, and hide the cell that papermill injected."""
    notebook = json.loads(executed.read_text())
    notebook["metadata"].pop("papermill", None)
    for number, cell in enumerate(notebook["cells"]):
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = f"injected-{number}"
            cell["metadata"]["tags"] = ["injected-parameters", "remove-cell"]
    executed.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _pair(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign:
        raise RewiredError(f"The parameter {text!r} is not of the form name=value, for example -p seed=2.")
    return name, yaml.safe_load(value)


def _text(frame) -> str:
    return frame.to_string(index=False, float_format=lambda value: f"{value:.4f}")


def main() -> None:
    """Entry point: errors of the user are told in a paragraph, without a traceback."""
    try:
        app()
    except RewiredError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
