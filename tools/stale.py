"""What a result depends on, read off the source: library modules by content, profile keys by use.

Snakemake reruns a job when the parameters it recorded change. Two strings serve as those parameters: the *code* of the
modules in ``lib/`` that a notebook imports, directly or through each other, and the *keys* of the profile that this
code reads. Both ignore what cannot change a result: comments, layout, docstrings, prose cells of a notebook. Neither
sees code or a key that is looked up by a string (``getattr``, ``importlib``).
"""

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from rewired.profiles import Profile, fields
from rewired.store import atomic_path, results_dir

READER = f"{sys.version}\n{Path(__file__).read_text()}"
"""What may read the same code in another way."""

# --- modules -------------------------------------------------------------------------------------------------------


def cells(notebook: Path) -> str:
    """The code of a notebook as one text; lines of IPython magic become comments."""
    code = [cell["source"] for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(source) for source in code).splitlines()
    return "\n".join("# " + line if line.lstrip().startswith(("%", "!")) else line for line in lines)


def content(file: Path) -> str:
    """The code of a module or of a notebook."""
    return cells(file) if file.suffix == ".ipynb" else file.read_text()


@cache
def _tree(file: Path, code: str) -> ast.Module:
    """The syntax tree of a file's code, without docstrings."""
    tree = ast.parse(code, filename=str(file))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@dataclass(frozen=True, eq=False)  # one for each content: known by itself
class Source:
    """What this module asks of a file's code. Reading it off the syntax tree is most of the time in which a build
    without work does nothing, so it is kept for each content, in ``.snakemake/source``."""

    dump: str  # the tree as text
    names: list  # of each `from module import name`: module, level, name, the name it is bound to
    modules: list  # of each `import module`
    asked: list  # names asked of the package: `rewired.name`
    attributes: list  # each attribute, and the attribute asked of it or ""
    files: list  # texts that look like a file's name


def _read_off(tree: ast.Module) -> Source:
    found = Source(ast.dump(tree), [], [], [], [], [])
    outer: dict[int, str] = {}  # of an attribute's node: the attribute that is asked of it
    for node in ast.walk(tree):  # from the outside in
        if isinstance(node, ast.ImportFrom):
            module, level = node.module or "", node.level
            found.names.extend([module, level, alias.name, alias.asname or alias.name] for alias in node.names)
        elif isinstance(node, ast.Import):
            found.modules.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            found.attributes.append([node.attr, outer.get(id(node), "")])
            outer[id(node.value)] = node.attr
            if isinstance(node.value, ast.Name) and node.value.id == "rewired":
                found.asked.append(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"(?:[\w-]+/)*[\w-]+\.\w+", node.value):
                found.files.append(node.value)
    return found


@cache
def _source(file: Path, code: str) -> Source:
    key = hashlib.sha256(f"{READER}\n{code}".encode()).hexdigest()
    kept = results_dir("").parent / ".snakemake" / "source" / f"{key}.json"
    if kept.is_file():
        return Source(**json.loads(kept.read_text()))
    found = _read_off(_tree(file, code))
    with atomic_path(kept) as path:
        path.write_text(json.dumps(asdict(found)))
    return found


def source(file: Path) -> Source:
    """What is to be known of a module or a notebook."""
    return _source(file, content(file))


def _located(module: str, name: str | None, lib: Path) -> Iterator[tuple[Path, set[str]]]:
    """The files that ``import module`` or ``from module import name`` runs, and the names asked of each.

    A name that is no module of its own is asked of the module that it is imported from."""
    steps = module.split(".")
    if not (lib / steps[0]).is_dir():
        return  # no package of this repository
    file = None
    for depth in range(1, len(steps) + 1):
        place = lib.joinpath(*steps[:depth])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if file.is_file():
            yield file, set()
    if name is None:
        return
    place = lib.joinpath(*steps, name)
    if place.is_dir() or place.with_suffix(".py").is_file():
        yield from _located(f"{module}.{name}", None, lib)
    elif file is not None and file.is_file():
        yield file, {name}


@cache
def _imports(found: Source, file: Path, names: frozenset[str], lib: Path) -> list[tuple[Path, set[str]]]:
    """What the file imports, at the top or inside a function.

    Of a package's ``__init__.py`` only the lines that bind one of ``names`` count: whoever asks ``rewired`` for
    ``start`` does not depend on everything else that ``rewired`` offers."""
    package = file.name == "__init__.py"
    imported: list[tuple[Path, set[str]]] = []
    for module, level, name, bound in found.names:
        if level:  # `from . import x` in a subpackage
            folder = file.parents[level - 1].relative_to(lib)
            module = ".".join([*folder.parts, *([module] if module else [])])
        if not package or bound in names:
            imported += _located(module, name, lib)
    for module in found.modules:
        imported += _located(module, None, lib)
    for name in found.asked:  # `import rewired` and then `rewired.start`
        imported += _located("rewired", name, lib)
    return imported


def closure(start: Iterable[Path], root: Path) -> list[Path]:
    """``start`` and every module of ``lib/`` that is imported from there, directly or not."""
    reached: dict[Path, set[str]] = {}
    todo: list[tuple[Path, set[str]]] = [(file, set()) for file in start]
    while todo:
        file, names = todo.pop()
        if file not in reached or not names <= reached[file]:
            reached[file] = reached.get(file, set()) | names
            todo += _imports(source(file), file, frozenset(reached[file]), root / "lib")
    return sorted(reached)


def _data(file: Path, root: Path) -> Iterator[Path]:
    """Data files a module reads: those that its source names, in its own folder or in ``config/``."""
    for name in source(file).files:
        for folder in (file.parent, root / "config"):
            data = folder / Path(name).name
            if data.is_file():
                yield data


def code_hash(start: Iterable[Path], root: Path, rewards: Iterable[str] | None = None) -> str:
    """A hash over everything ``closure`` finds, and the data files these modules read.

    With ``rewards``, the functions that ``games`` registers as *other* rewards are left out: editing one reward makes
    only those variants stale that it pays.
    """
    digest = hashlib.sha256()
    for file in closure(start, root):
        dump = source(file).dump
        if rewards is not None and file.name == "games.py":
            body = _without_others(_tree(file, content(file)).body, set(rewards))
            dump = ast.dump(ast.Module(body, []))
        digest.update(f"{file.relative_to(root)}\n{dump}\n".encode())
        for data in _data(file, root):
            digest.update(f"{data.relative_to(root)}\n".encode() + data.read_bytes())
    return digest.hexdigest()[:16]


def _without_others(body: list[ast.stmt], rewards: set[str]) -> list[ast.stmt]:
    """The statements without the functions of other rewards; a reward that calls another one keeps it."""
    functions = {node.name: node for node in body if _reward(node)}
    needed, todo = [], [node for node in functions.values() if _reward(node) in rewards]
    while todo:
        needed.append(todo.pop())
        named = {node.id for node in ast.walk(needed[-1]) if isinstance(node, ast.Name)}
        todo += [node for name, node in functions.items() if name in named and node not in needed + todo]
    return [node for node in body if not _reward(node) or node in needed]


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
    used: set[str] = {"threads"}
    for file in closure(start, root):
        if file.name != "profiles.py":
            used |= _keys_in(source(file))
    return used


@cache
def _keys_in(found: Source) -> set[str]:
    known = list(fields())
    sections = {key.partition(".")[0] for key in known if "." in key}
    used: set[str] = set()
    for name, asked in found.attributes:
        if f"{name}.{asked}" in known:
            used.add(f"{name}.{asked}")  # the `x.training` in `x.training.kl` is not the whole section
        elif name in sections:
            used |= {key for key in known if key.startswith(f"{name}.")}
        if name in known:
            used.add(name)
    return used


LISTS = {
    "runs": {"training.variants", "training.seeds"},
    "pairs": {"patching.pairs", "patching.seed"},
    "organisms": {"organisms.base", "organisms.names", "organisms.once", "organisms.seeds"},
    "motives": {"motives.collections", "motives.questions"},
}
"""The keys that decide which runs, pairs, organisms and collections there are."""
STUDY = {"variants", "guard", "runs", "names", "trained", "seeds", "read_pairs"}
HELPERS = {"runs": STUDY, "pairs": STUDY, "organisms": {"authors", "organisms"}, "motives": {"motives"}}
"""What the chapter's object knows of them."""
OF_THE_STUDY = ("decisions.", "patching.", "prompts.", "training.")
"""Sections that say how the study's runs are made and asked. An organism's or a collection's own file says its."""


def organism_reads(start: Iterable[Path], root: Path) -> set[str]:
    """The profile keys that the code of organisms and of collections may read: none of the study's."""
    return {key for key in reads(start, root) if not key.startswith(OF_THE_STUDY)}


def chapter_reads(notebook: Path, needs: Iterable[str], root: Path) -> set[str]:
    """The profile keys that a chapter's notebook may read.

    Every chapter imports the object that knows all runs and pairs. The keys that list them count only for a chapter
    that needs them, or names them or what the object knows of them in a cell of its own."""
    asked = {name for name, _ in source(notebook).attributes}
    if {"organisms", "motives"} & set(needs) and not {"runs", "pairs"} & set(needs):
        return organism_reads([notebook], root)
    listed = reads([notebook], root)
    for need, keys_of_lists in LISTS.items():
        named = set() if need in ("organisms", "motives") else {key.partition(".")[2] for key in keys_of_lists}
        if need not in needs and not asked & (HELPERS[need] | named):
            listed -= keys_of_lists
    return listed


def keys(profile: Profile, names: Iterable[str]) -> str:
    """Those keys of the profile and their values, as one line of JSON."""
    flat = {}
    for name, value in profile.model_dump(mode="json").items():
        flat |= {name: value} | ({f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {})
    return json.dumps({name: flat[name] for name in sorted(names)}, sort_keys=True)
