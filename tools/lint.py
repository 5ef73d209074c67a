"""House rules that ruff does not know: empty notebooks, no literal number in what a page says about a run, no machine.

* A stored notebook has no outputs and no counts, runs on ``python3``, and its first code cell is tagged ``parameters``
  and holds literals only (papermill would leave a derived default at its old value).
* Inside an admonition of class ``results`` every number comes from the run, so no digit stands there outside a role
  such as ``{glue:text}`name` ``.
* No tracked file names a folder of somebody's machine or fixes a package index.
* In ``lib`` and in notebooks, every call that makes a tensor says on which device (``torch.zeros_like`` and
  ``x.new_zeros`` take it from a tensor): what is made on the CPU by default does not meet a model on a GPU.

    python tools/lint.py [file ...]        without files: everything git tracks
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|Users)/\w|\b[A-Z]:\\\\?Users|file:" + "///" + r"|--(?:extra-)?index-" + "url"
)
FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}(?P<title>.*)$")
MAKERS = set(
    "arange as_tensor empty eye from_numpy full linspace ones rand randint randn randperm tensor zeros".split()
)
ROLE = re.compile(r"\{[\w:,-]+\}`+[^`]*`+")


def results_blocks(markdown: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of each line inside an admonition of class ``results``: its title and its body."""
    open_fences: list[tuple[str, bool]] = []
    lines = markdown.splitlines()
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("> ")
        start = FENCE.match(text)
        if start:
            options = [option.strip() for option in lines[number : number + 6]]
            marked = any(re.match(r":class:.*\bresults\b", o) for o in options if o.startswith(":") and "{" not in o)
            inside = marked or any(mark for _, mark in open_fences)
            open_fences.append((start["fence"], inside))
            if inside and start["name"] == "admonition":
                yield number, start["title"]
        elif open_fences and text == open_fences[-1][0]:
            open_fences.pop()
        elif open_fences and open_fences[-1][1] and not re.match(r":[\w-]+:", text):
            yield number, text


def literal_numbers(markdown: str) -> Iterator[tuple[int, str]]:
    """(line number, line) where a digit in a results block does not come from the run."""
    for number, text in results_blocks(markdown):
        if re.search(r"\d", ROLE.sub("", text)):
            yield number, text


def notebook_problems(notebook: dict) -> Iterator[str]:
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if any(cell.get("outputs") or cell.get("execution_count") for cell in code):
        yield "holds outputs or execution counts; `nbstripout` takes them out"
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        yield "its kernelspec is not python3"
    if not code or "parameters" not in code[0]["metadata"].get("tags", []):
        yield "its first code cell is not tagged `parameters`"
    else:
        for node in ast.parse("".join(code[0]["source"])).body:
            try:
                ast.literal_eval(node.value)
            except (AttributeError, ValueError):
                yield f"its parameters cell holds more than literals: {ast.unparse(node)}"


def cell_problems(notebook: dict) -> Iterator[tuple[int, str]]:
    """(place of the cell, what is wrong in it)."""
    for place, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield from ((place, f"{maker} without device=") for _, maker in devices(source))
        if cell["cell_type"] == "markdown":
            yield from ((place, f"literal number in a results block: {line}") for _, line in literal_numbers(source))


def devices(source: str) -> Iterator[tuple[int, str]]:
    """(line, function) of every call in Python code that makes a tensor without saying where."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKERS:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if of_torch and not any(keyword.arg in ("device", None) for keyword in node.keywords):
                yield node.lineno, f"torch.{node.func.attr}"


def problems(file: Path) -> Iterator[str]:
    """What is wrong with one tracked file."""
    name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    if file.stat().st_size > 13_000_000:
        yield f"{name}: larger than 13 MB"
    try:
        text = file.read_text()
    except UnicodeDecodeError:
        return
    if "_static/mathjax" not in file.as_posix():
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE.search(line):
                yield f"{name}:{number}: names a folder of a machine or a package index"
    if file.suffix == ".md":
        yield from (f"{name}:{n}: literal number in a results block: {line}" for n, line in literal_numbers(text))
    if file.suffix == ".py" and file.is_relative_to(ROOT / "lib"):
        yield from (f"{name}:{n}: {maker} without device=" for n, maker in devices(text))
    if file.suffix == ".ipynb":
        notebook = json.loads(text)
        yield from (f"{name}: {problem}" for problem in notebook_problems(notebook))
        yield from (f"{name}, cell {place}: {problem}" for place, problem in cell_problems(notebook))


def main() -> int:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    files = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT / name for name in listed if name]
    found = [problem for file in files if file.is_file() for problem in problems(file)]
    print("\n".join(found) or f"{len(files)} files keep the house rules")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
