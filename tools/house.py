"""The house in numbers: how long and how dense the library is, and which way its imports run.

What it prints are figures; what lies beyond a limit of ``[tool.house]`` in pyproject.toml is a problem and fails the
lint. Complexity and the number of parameters are ruff's business.

    python tools/house.py
"""

import ast
import io
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

BESIDE = {"replication", "rehearsal"}
"""Packages beside the library that are built on it."""
ROOT = Path(__file__).resolve().parents[1]
LIMITS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["house"]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Figures:
    """What is counted of one module. Blank lines belong to ``lines`` alone."""

    lines: int
    code: int
    comments: int
    comprehensions: int
    public: int  # functions and methods whose name does not begin with an underscore
    docstrings: int  # lines of these functions' docstrings
    functions: dict[str, int]  # name: code lines


def docstring_lines(node: ast.AST) -> set[int]:
    """The lines of the docstring of a module, class or function; none if it has none."""
    if not isinstance(node, DOCUMENTED) or ast.get_docstring(node, clean=False) is None:
        return set()
    return set(range(node.body[0].lineno, node.body[0].end_lineno + 1))


def figures(source: str) -> Figures:
    """Count one module."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    code, comments, documented = set(), set(), set()
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in layout:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in nodes:
        documented |= docstring_lines(node)
    code -= documented
    functions, public, docstrings = {}, 0, 0
    inner = {
        id(inside) for node in nodes if isinstance(node, FUNCTION) for inside in ast.walk(node) if inside is not node
    }
    for node in nodes:
        if not isinstance(node, FUNCTION):
            continue
        functions[node.name] = len(code.intersection(range(node.lineno, node.end_lineno + 1)))
        # A function inside a function is nobody else's.
        if not node.name.startswith("_") and id(node) not in inner:
            public += 1
            docstrings += len(docstring_lines(node))
    comprehensions = sum(isinstance(node, COMPREHENSIONS) for node in nodes)
    return Figures(len(source.splitlines()), len(code), len(comments), comprehensions, public, docstrings, functions)


def problems_of(name: str, one: Figures) -> Iterator[str]:
    """What lies beyond the limits in one module."""
    if one.code and 100 * one.comprehensions / one.code >= LIMITS["comprehensions"]:
        share = 100 * one.comprehensions / one.code
        yield f"{name}: {share:.1f} comprehensions a hundred code lines; below {LIMITS['comprehensions']} are allowed"
    for function, length in one.functions.items():
        if length > LIMITS["function"]:
            yield f"{name}: {function} has {length} code lines; {LIMITS['function']} are allowed"


def imports(package: Path) -> dict[str, set[str]]:
    """{module: the modules of the same library that it imports}, at the top or inside a function."""
    files = {".".join(f.relative_to(package.parent).with_suffix("").parts): f for f in package.rglob("*.py")}
    graph = {}
    for name, file in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            graph[name] |= {other for other in named if other in files and other != name}
    return graph


def problems_of_imports() -> Iterator[str]:
    """A cycle, a module of ``rewired`` that imports a corpus, or one that imports what is about the study alone.

    The command line may do the latter, inside a function: it offers the commands and needs them only when asked."""
    library = ROOT / "lib" / "rewired"
    try:
        list(TopologicalSorter(imports(library)).static_order())
    except CycleError as error:
        yield f"these modules import each other: {' -> '.join(error.args[1])}"
    for file in sorted(library.rglob("*.py")):
        name, tree = file.relative_to(ROOT), ast.parse(file.read_text())
        packages = packages_of(ast.walk(tree))
        if "corpora" in packages:
            yield f"{name} imports a corpus, and rewired must not know any"
        at_the_top = packages_of(tree.body)
        for package in BESIDE & packages:
            if package in at_the_top or file.name != "__main__.py":
                yield f"{name} imports {package}, which only a function of __main__.py may do"


def packages_of(nodes: Iterable[ast.AST]) -> set[str]:
    """The first names of all modules that these statements import."""
    named = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            named |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            named.add((node.module or "").split(".")[0])
    return named


def problems_of_all(lines: int, comments: float, docstrings: float) -> Iterator[str]:
    """What lies beyond the limits in the library as a whole."""
    if lines > LIMITS["lines"]:
        yield f"lib/rewired has {lines} lines; {LIMITS['lines']} are allowed"
    if comments < LIMITS["comments"]:
        yield f"lib/rewired has {comments:.1f} comment lines a hundred code lines; {LIMITS['comments']} are asked"
    if docstrings < LIMITS["docstrings"]:
        yield f"a public function has {docstrings:.2f} docstring lines; {LIMITS['docstrings']} are asked"


def main() -> int:
    library = ROOT / "lib" / "rewired"
    counted, found = {}, []
    print(f"{'module':26}{'lines':>7}{'code':>7}{'comprehensions':>16}{'comments':>10}   (a hundred code lines)")
    for file in sorted(library.rglob("*.py")):
        name = str(file.relative_to(library))
        one = counted[name] = figures(file.read_text())
        found += problems_of(name, one)
        size = max(one.code, 1)
        shares = f"{100 * one.comprehensions / size:16.1f}{100 * one.comments / size:10.1f}"
        print(f"{name:26}{one.lines:7}{one.code:7}{shares}")
    lines = sum(one.lines for one in counted.values())
    comments = 100 * sum(one.comments for one in counted.values()) / sum(one.code for one in counted.values())
    docstrings = sum(one.docstrings for one in counted.values()) / sum(one.public for one in counted.values())
    print(f"lib/rewired: {lines} lines (at most {LIMITS['lines']})")
    print(f"{comments:.1f} comment lines a hundred code lines (at least {LIMITS['comments']})")
    print(f"{docstrings:.2f} docstring lines a public function (at least {LIMITS['docstrings']})")
    found += [*problems_of_all(lines, comments, docstrings), *problems_of_imports()]
    print("\n".join(found) or "the house keeps its limits")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
