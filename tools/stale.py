"""What a result depends on, read off the source: library modules by content, profile keys by use.

Snakemake reruns a job when the parameters it recorded change. Two strings serve as those parameters: the *code* of the
rewired modules that a notebook imports, directly or through each other, and the *keys* of the profile that this code
reads. Both ignore what cannot change a result: comments, layout, docstrings, prose cells of a notebook.
"""

import ast
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from rewired.profiles import Profile, fields

# --- modules -------------------------------------------------------------------------------------------------------


def cells(notebook: Path) -> str:
    """The code of a notebook as one text; lines of IPython magic become comments."""
    code = [cell["source"] for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(source) for source in code).splitlines()
    return "\n".join("# " + line if line.lstrip().startswith(("%", "!")) else line for line in lines)


@cache
def _tree(file: Path, content: str) -> ast.Module:
    tree = ast.parse(content, filename=str(file))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def tree(file: Path) -> ast.Module:
    """The syntax tree of a module or of a notebook's code, without docstrings."""
    return _tree(file, cells(file) if file.suffix == ".ipynb" else file.read_text())


@cache
def _dump(module: ast.Module) -> str:
    return ast.dump(module)


@cache
def _by_kind(module: ast.Module) -> dict[type, list[ast.AST]]:
    found = defaultdict(list)
    for node in ast.walk(module):
        found[type(node)].append(node)
    return found


def nodes(file: Path, kind: type) -> list[ast.AST]:
    """The nodes of that kind in the file's `tree`; looked for once, however many notebooks need the module."""
    return _by_kind(tree(file))[kind]


def _imported(file: Path, package: Path) -> Iterator[Path]:
    """Files of the rewired modules that ``file`` names in an import, at the top or inside a function."""
    names = {"rewired"} if file.parent == package and file.name != "__init__.py" else set()
    names |= {alias.name for node in nodes(file, ast.Import) for alias in node.names}
    for node in nodes(file, ast.ImportFrom):
        home = node.module or ""
        if node.level:  # `from . import x` in a subpackage
            folder = file.parents[node.level - 1].relative_to(package.parent)
            home = ".".join([*folder.parts, *([node.module] if node.module else [])])
        names |= {home} | {f"{home}.{alias.name}" for alias in node.names}
    for name in sorted(name for name in names if name.split(".")[0] == "rewired"):
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            place = package.parent.joinpath(*parts[:depth])
            found = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if found.is_file():
                yield found


def closure(start: Iterable[Path], root: Path) -> list[Path]:
    """``start`` and every rewired module imported from there, directly or not."""
    package, found, todo = root / "lib" / "rewired", set(), list(start)
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += _imported(file, package)
    return sorted(found)


def _data(file: Path, root: Path) -> Iterator[Path]:
    """Data files a module reads: those in its own package folder, and files of ``config/`` that its source names."""
    if file.name == "__init__.py" and file.parent != root / "lib" / "rewired":
        yield from (f for f in sorted(file.parent.iterdir()) if f.is_file() and f.suffix not in (".py", ".pyc"))
    for node in nodes(file, ast.Constant):
        if isinstance(node.value, str) and node.value.endswith(".yaml"):
            if (root / "config" / Path(node.value).name).is_file():
                yield root / "config" / Path(node.value).name


def code_hash(start: Iterable[Path], root: Path, rewards: Iterable[str] | None = None) -> str:
    """A hash over everything ``closure`` finds, and the data files these modules read.

    With ``rewards``, the functions that ``games`` registers as *other* rewards are left out: editing one reward makes
    only those variants stale that it pays.
    """
    digest = hashlib.sha256()
    for file in closure(start, root):
        module = tree(file)
        if rewards is not None and file.name == "games.py":
            module = ast.Module(_kept(module.body, set(rewards)), [])
        digest.update(f"{file.relative_to(root)}\n{_dump(module)}\n".encode())
        for data in _data(file, root):
            digest.update(f"{data.relative_to(root)}\n".encode() + data.read_bytes())
    return digest.hexdigest()[:16]


def _kept(body: list[ast.stmt], rewards: set[str]) -> list[ast.stmt]:
    """The statements without the functions of other rewards; a reward that calls another one keeps it."""
    functions = {node.name: node for node in body if _reward(node)}
    kept, todo = [], [node for node in functions.values() if _reward(node) in rewards]
    while todo:
        kept.append(todo.pop())
        named = {node.id for node in ast.walk(kept[-1]) if isinstance(node, ast.Name)}
        todo += [node for name, node in functions.items() if name in named and node not in kept + todo]
    return [node for node in body if not _reward(node) or node in kept]


def _reward(node: ast.stmt) -> str | None:
    """The name under which a function is registered by ``@reward("name", ...)``, else None."""
    for call in getattr(node, "decorator_list", []):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "reward":
            return call.args[0].value
    return None


def file_hash(files: Iterable[Path]) -> str:
    """A hash over names and contents; of a file above 100 MB only its size and time of change count."""
    digest = hashlib.sha256()
    for file in sorted(files):
        about = file.stat()
        content = file.read_bytes() if about.st_size < 1e8 else f"{about.st_size} {about.st_mtime_ns}".encode()
        digest.update(file.name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


# --- profile keys --------------------------------------------------------------------------------------------------


def reads(start: Iterable[Path], root: Path) -> set[str]:
    """Profile keys that the code may read: ``x.training.kl`` counts as that key, ``x.training`` alone as the section.

    Any object may stand for ``x``, so the answer errs on the side of reading too much.
    """
    known = list(fields())
    sections = {key.partition(".")[0] for key in known if "." in key}
    found: set[str] = {"threads"}
    for file in closure(start, root):
        if file.name == "profiles.py":
            continue
        attributes = nodes(file, ast.Attribute)
        precise = {
            id(n.value)
            for n in attributes
            if isinstance(n.value, ast.Attribute) and f"{n.value.attr}.{n.attr}" in known
        }
        for node in attributes:
            if isinstance(node.value, ast.Attribute) and id(node.value) in precise:
                found.add(f"{node.value.attr}.{node.attr}")
            if node.attr in known:
                found.add(node.attr)
            elif node.attr in sections and id(node) not in precise:
                found |= {key for key in known if key.startswith(f"{node.attr}.")}
    return found


def keys(profile: Profile, names: Iterable[str]) -> str:
    """Those keys of the profile and their values, as one line of JSON."""
    flat = {}
    for name, value in profile.model_dump(mode="json").items():
        flat |= {name: value} | ({f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {})
    return json.dumps({name: flat[name] for name in sorted(names)}, sort_keys=True)
