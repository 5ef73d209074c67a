"""The library's figures: counted right on planted sources, and inside the limits as it stands."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import compare_tables  # noqa: E402
import house  # noqa: E402
import pandas as pd  # noqa: E402

SOURCE = '''"""A module.

Two lines more."""

import os  # why


def told(a):
    """What comes back.

    Second line."""
    # a comment of its own
    squares = [x * x for x in a]
    return {x: [y for y in a] for x in squares}


def _own():
    return os.sep
'''


def test_figures_count_what_a_reader_counts():
    one = house.figures(SOURCE)
    assert (one.lines, one.code, one.comments, one.comprehensions) == (18, 6, 2, 3)
    assert (one.public, one.docstrings) == (1, 3), "the private function asks for no docstring"
    assert one.functions == {"told": 3, "_own": 2}


def test_a_dense_module_and_a_long_function_are_named():
    dense = house.figures("a = [x for x in range(3)]\n" * 9)
    assert any("comprehensions" in problem for problem in house.problems_of("dense.py", dense))
    body = "\n".join(f"    a = {k}" for k in range(house.LIMITS["function"]))
    long = house.figures(f"def much():\n{body}\n")
    assert [problem for problem in house.problems_of("long.py", long) if "much" in problem]
    short = house.figures("def little():\n    a = 1\n")
    assert list(house.problems_of("short.py", short)) == []


def test_imports_are_seen_wherever_they_stand(tmp_path):
    package = tmp_path / "some"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from some import b\n")
    (package / "b.py").write_text("def late():\n    from some.inner.c import x\n")
    (package / "inner" / "c.py").write_text("import some.a\n")
    graph = house.imports(package)
    assert graph["some.a"] == {"some.b"} and graph["some.b"] == {"some.inner.c"}
    assert graph["some.inner.c"] == {"some.a"}, "a cycle through a function and a subpackage"


def test_the_library_keeps_its_limits():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "house.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_tables_are_compared_value_by_value():
    old = pd.DataFrame({"name": ["a", "b"], "count": [1, 2], "size": [0.5, 100.0]})
    assert not list(compare_tables.differences(old, old.iloc[::-1])), "the order of rows is no difference"
    assert not list(compare_tables.differences(old, old.assign(size=[0.5, 100.0005], new=1)))
    for changed in ({"size": [0.51, 100.0]}, {"count": [1, 3]}, {"name": ["a", "c"]}, {"size": [None, 100.0]}):
        assert list(compare_tables.differences(old, old.assign(**changed))), changed
    assert list(compare_tables.differences(old, old.drop(columns="size")))
    assert list(compare_tables.differences(old, old.head(1)))


def test_only_a_function_of_the_command_line_imports_what_is_about_the_study():
    inside = ast.parse("def main():\n    from replication import commands\n")
    assert house.packages_of(ast.walk(inside)) == {"replication"}
    assert house.packages_of(inside.body) == set()
    assert house.packages_of(ast.parse("import replication.quotes as quotes").body) == {"replication"}
    assert list(house.problems_of_imports()) == []
