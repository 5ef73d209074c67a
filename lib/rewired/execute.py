"""How a notebook starts, and how it is executed: with papermill and a kernel, or cell by cell in this process.

``start`` is a notebook's first call. ``execute`` leaves the executed notebook under its name only when every cell ran;
``here=True`` does without a kernel, for machines that have none and for tests.
"""

import ast
import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT, Profile, load
from rewired.store import atomic_path


def start(profile: str | Path = "pocket", overrides: Mapping[str, Any] | Iterable[str] | None = None) -> Profile:
    """Check the notebook's parameters, read the profile, pin the threads, keep the libraries quiet.

    Raises RewiredError when papermill passed a parameter that the notebook's ``parameters`` cell does not have."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        _check_parameters(shell)
        _end_with_parent(shell)
    chosen = load(profile, overrides)
    for name, value in environment(chosen).items():
        os.environ.setdefault(name, value)
    keep_memory()
    import torch

    torch.set_num_threads(chosen.threads)
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.set_verbosity_error()
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    return chosen


def environment(profile: Profile) -> dict[str, str]:
    """Variables that pin thread counts and silence progress bars; set before a kernel starts."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    pinned = dict.fromkeys(threads, str(profile.threads))
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    quiet["PYTHONWARNINGS"] = "ignore"  # a warning's text names a folder of this machine
    fixed = {"TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return pinned | quiet | fixed


def keep_memory() -> None:
    """Let this process keep up to 512 MB that it has freed, on Linux with glibc; elsewhere nothing happens.

    A forward pass makes and drops the same large tensors at every layer. By default their pages go back to the system
    each time and are cleared when they are wanted again: a fifth of a small model's time. No number changes."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of malloc.h, in bytes
        for option, size in ((-3, 32 * 2**20), (-1, 512 * 2**20), (-2, 32 * 2**20)):
            set_option(option, size)


def _end_with_parent(shell) -> None:
    """In a build on Linux, let a notebook's kernel die with papermill: a killed build must not go on writing."""
    if hasattr(shell, "kernel") and os.environ.get("REWIRED_BUILD") and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _check_parameters(shell) -> None:
    """Compare the cell papermill injected with the parameters cell before it (papermill itself only warns)."""
    cells = [cell for cell in shell.user_ns.get("In", []) if cell.strip()]
    if len(cells) > 1 and cells[1].lstrip().startswith("# Parameters"):
        _refuse_unknown(_assigned(cells[1]), _assigned(cells[0]), "this notebook")


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise choice(f"parameter of {where}:", name, known, "They stand in its first code cell.")


def _assigned(source: str) -> dict[str, ast.expr]:
    """{name: its value} of what a cell assigns at its top level."""
    found: dict[str, ast.expr] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def execute(notebook: Path, output: Path, parameters: dict, here: bool = False) -> None:
    """Run ``notebook`` with these ``parameters`` and write the executed notebook to ``output``.

    With ``here`` the cells run in this process, without a kernel; neither papermill nor Jupyter is needed. Raises
    RewiredError for a parameter that the notebook does not have and for one raised inside it."""
    if not notebook.is_file():
        raise RewiredError(f"There is no notebook {notebook}. The chapters are notebooks/*/*.ipynb.")
    stored = json.loads(notebook.read_text())
    places = [k for k, cell in enumerate(stored["cells"]) if "parameters" in cell["metadata"].get("tags", [])]
    declared = _assigned("".join(stored["cells"][places[0]]["source"])) if places else {}
    _refuse_unknown(parameters, declared, notebook.name)
    built_on = ("profile", "overrides")  # every notebook has these two
    values = {name: ast.literal_eval(declared[name]) for name in built_on if name in declared} | parameters
    os.environ.update(environment(load(values["profile"], values.get("overrides"))))
    with atomic_path(output) as temporary:
        if here:
            lines = [f"{name} = {value!r}\n" for name, value in parameters.items()]
            injected = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": "".join(lines)}
            stored["cells"][places[0] + 1 : places[0] + 1] = [injected] if parameters else []
            executed = _in_this_process(notebook, stored)
        else:
            executed = _in_a_kernel(notebook, temporary, parameters)
        _tidy(executed)
        temporary.write_text(json.dumps(executed, indent=1, ensure_ascii=False) + "\n")


def _in_a_kernel(notebook: Path, output: Path, parameters: dict) -> dict:
    import papermill
    from traitlets.config import Config

    # papermill and its kernel talk through files that nobody else uses. By default they take TCP ports that were free a
    # moment before, and of two notebooks that start together one may find its port taken.
    short = len(tempfile.gettempdir()) < 60  # the path of a socket has at most 107 characters
    with tempfile.TemporaryDirectory(prefix="rewired-", dir=None if short else "/tmp") as folder:
        config = Config({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}})
        try:
            papermill.execute_notebook(
                str(notebook), str(output), parameters, cwd=str(ROOT), kernel_name="python3", config=config,
                progress_bar=False, log_output=False, start_timeout=600, extra_arguments=["--log-level=50"],
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            if error.ename == "RewiredError":
                raise RewiredError(error.evalue) from None
            raise RuntimeError(f"{notebook} failed in cell {error.exec_count}:\n{error}") from None
    return json.loads(output.read_text())


def _in_this_process(notebook: Path, stored: dict) -> dict:
    """The notebook, with the outputs of its cells after they ran one after the other in a shell of this process."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    with contextlib.chdir(ROOT), _own_shell() as shell:
        for cell in stored["cells"]:
            if cell["cell_type"] == "code":
                _run_cell(shell, cell, notebook)
                plt.close("all")
    return stored


@contextlib.contextmanager
def _own_shell() -> Iterator:
    """An IPython shell with names of its own and no history file."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display
    from traitlets.config import Config

    def show(value):
        # The value of a cell's last line, unless a semicolon ends it.
        if value is not None and not shell.displayhook.quiet():
            display(value)

    plain = {"HistoryAccessor": {"enabled": False}, "InteractiveShell": {"colors": "nocolor"}}
    config, names = Config(plain), types.ModuleType("notebook")
    shell = InteractiveShell.instance(config=config, user_module=names, user_ns=vars(names))
    shell.display_trap.hook = show
    try:
        yield shell
    finally:
        InteractiveShell.clear_instance()


def _run_cell(shell, cell: dict, notebook: Path) -> None:
    """Run the cell and store what it printed and displayed."""
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        result = shell.run_cell("".join(cell["source"]), store_history=True)
    error = result.error_before_exec or result.error_in_exec
    if isinstance(error, RewiredError):
        raise error
    if error is not None:
        raise RuntimeError(f"{notebook} failed in cell {result.execution_count}:\n{captured.stdout}") from error
    cell["execution_count"], cell["outputs"] = result.execution_count, []
    if captured.stdout:
        cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": captured.stdout})
    for thing in captured.outputs:
        shown = {"output_type": "display_data", "data": thing.data, "metadata": thing.metadata or {}}
        cell["outputs"].append(shown)


def _tidy(notebook: dict) -> None:
    """Take out of an executed notebook what differs from run to run, and hide the cell that was injected."""
    notebook["metadata"].pop("papermill", None)
    for number, cell in enumerate(notebook["cells"]):
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = f"injected-{number}"
            cell["metadata"]["tags"] = ["injected-parameters", "remove-cell"]
