"""The layout, guarded: which way imports point, what is pure, and how long things may be.

    cli -> agent -> adapters -> protocol, power -> errors
             |        engine -> model -> _core
             +-> ota.device -> ota                      ota never imports edgeagent
    ota.site -> ota.device, ota.fleet                   a client and a server in one
    convert, train, bench: the operator's machine       the device never imports ota.fleet

When a test here turns red, it is the code's turn to move first, not the table's.
"""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# package or module -> what it may import from this repository.  The longest prefix holds.  What is
# not named (the agent, the command line, the demo) stands at the top and may import anything that
# the other rules allow.
LAYERS: dict[str, set[str]] = {
    "edgeagent.errors": set(),
    "edgeagent.paths": set(),
    "edgeagent.hours": {"edgeagent.errors"},
    "edgeagent.surroundings": {
        "edgeagent.config",
        "edgeagent.hours",
        "edgeagent.power",
        "ota.clock",
        "ota.conditions",
    },
    "edgeagent.discovery": {"edgeagent.protocol", "ota.vocabulary"},
    "edgeagent.home_assistant": {
        "edgeagent.errors",
        "edgeagent.progress",
        "edgeagent.protocol",
    },
    "edgeagent.update_history": set(),
    "edgeagent.device_reports": {"edgeagent.errors", "edgeagent.progress"},
    "edgeagent.update_rest": {"edgeagent.protocol"},
    "edgeagent.update_source": {"edgeagent.config", "edgeagent.errors"},
    "edgeagent.cpus": {"edgeagent.errors"},
    "edgeagent.pace": set(),
    "edgeagent.protocol": {"edgeagent.errors"},
    "edgeagent.power": {"edgeagent.errors"},
    "edgeagent.model": {"edgeagent.errors", "edgeagent._core", "ota.errors", "ota.release"},
    "edgeagent.adapters": {"edgeagent.errors", "edgeagent.protocol", "edgeagent.power"},
    "edgeagent.config": {
        "edgeagent.cpus",
        "edgeagent.errors",
        "edgeagent.hours",
        "edgeagent.paths",
        "edgeagent.protocol",
    },
    "edgeagent.client": {"edgeagent.errors", "edgeagent.protocol", "edgeagent.adapters"},
    "edgeagent.engine": {
        "edgeagent._core",
        "edgeagent.cpus",
        "edgeagent.errors",
        "edgeagent.model",
        "edgeagent.pace",
    },
    "ota.device": {"ota"},
    "ota.fleet": {"ota"},
    "ota.site": {"ota"},
    "ota": {"ota"},
}

# Adapters do not know each other, but for what two of them are made of; and the files of one
# adapter share its name (``mqtt``, ``mqtt_client``) or its package (``sensors``).
SHARED_ADAPTERS = {"link", "child"}

PURE = ("edgeagent.protocol", "edgeagent.power", "ota")
# The two ends of an update, and what both of them use: the disk, model directories, the connection.
NOT_PURE = ("ota.device", "ota.fleet", "ota.site", "ota.storage", "ota.mqtt")
IMPURE_STDLIB = {"asyncio", "concurrent", "fcntl", "glob", "http", "logging", "mmap", "os"}
IMPURE_STDLIB |= {"multiprocessing", "pathlib", "select", "selectors", "shutil", "signal"}
IMPURE_STDLIB |= {"socket", "socketserver", "ssl", "subprocess", "sys", "tempfile", "threading"}
IMPURE_STDLIB |= {"time"}

# What the agent process must not load at its start: memory and seconds that a small board lacks.
HEAVY = {"cryptography", "jinja2", "numpy", "securesystemslib", "tokenizers", "torch", "tuf"}
HEAVY |= {"zstandard", "amqtt"}
# The engine needs the tokenizer, and nothing that speaks to the outside.
NOT_IN_ENGINE = {"amqtt", "cryptography", "numpy", "paho", "torch", "tuf", "zstandard"}
AGENT_ENTRIES = ("edgeagent.agent", "edgeagent.cli", "edgeagent.cli_remote", "edgeagent.adapters")

MAX_FUNCTION_LINES = 60  # one screen
MAX_FILE_LINES = 500

TEXT = {".c", ".h", ".md", ".py", ".pyi", ".pyx", ".pxd", ".mk", ".toml", ".service", ".conf"}
TEXT |= {".rules", ".catalog", ".yml", ".yaml", ".sh", ".json"}
NOT_OURS = {".git", ".venv", "build", "dist", "node_modules", "__pycache__", "bundled"}
NOT_OURS |= {".venv-peers"}  # engines that ours is measured beside


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted([*(ROOT / "edgeagent").rglob("*.py"), *(ROOT / "ota").rglob("*.py")])
MODULES = {name_of(path): path for path in SOURCES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def targets(node: ast.AST, module: str) -> list[str]:
    """Return the modules that an import statement names; ``from a import b`` may mean ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, f"{module}: imports are absolute"
    base = node.module or ""
    submodules = [f"{base}.{alias.name}" for alias in node.names]
    known = [name for name in submodules if name in MODULES or name == "edgeagent._core"]
    return known if len(known) == len(submodules) else [base, *known]


def imports(module: str) -> set[str]:
    """Return everything that a module imports, at its top or inside a function."""
    return {name for node in ast.walk(tree_of(MODULES[module])) for name in targets(node, module)}


def imports_at_start(module: str) -> set[str]:
    """Return what importing a module imports: not what only functions or type checkers see."""
    found: set[str] = set()
    queue: list[ast.AST] = list(tree_of(MODULES[module]).body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            queue += node.orelse
            continue
        found.update(targets(node, module))
        queue += ast.iter_child_nodes(node)
    return found


def closure(*entries: str) -> dict[str, str]:
    """Return every module loaded by importing ``entries``, with the one that asked for it."""
    asked_by = {name: name for e in entries for name in MODULES if is_below(name, e)}
    queue = list(asked_by)
    while queue:
        module = queue.pop()
        for name in imports_at_start(module):
            parents = [name[:i] for i, letter in enumerate(name) if letter == "."]
            for loaded in (*parents, name):
                if loaded not in asked_by:
                    asked_by[loaded] = module
                    if loaded in MODULES:
                        queue.append(loaded)
    return asked_by


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    layer = max((name for name in LAYERS if is_below(module, name)), key=len, default=None)
    if layer is None:
        return
    allowed = LAYERS[layer] | {layer}
    ours = {name for name in imports(module) if name.split(".")[0] in ("edgeagent", "ota")}
    up = {name for name in ours if not any(is_below(name, root) for root in allowed)}
    assert not up, f"{module} is in layer {layer}, which may import {sorted(allowed)}"


@pytest.mark.parametrize("module", [m for m in MODULES if is_below(m, "ota")])
def test_the_parts_of_an_update_point_down(module):
    """ota <- ota.device, ota <- ota.fleet; the device and the fleet do not know each other.

    A site is a device to its origin and a repository to its devices, and so above both.
    """
    if is_below(module, "ota.site"):
        return
    own = next((p for p in ("ota.device", "ota.fleet") if is_below(module, p)), "ota")
    others = {"ota.device", "ota.fleet"} - {own}
    assert not {name for name in imports(module) for p in others if is_below(name, p)}


def test_no_device_imports_what_is_for_sites():
    for module in MODULES:
        if not any(is_below(module, p) for p in ("ota.site", "ota.fleet")):
            assert not {name for name in imports(module) if is_below(name, "ota.site")}, module


@pytest.mark.parametrize("module", [m for m in MODULES if is_below(m, "edgeagent")])
def test_only_the_operators_machine_imports_the_fleet(module):
    if any(is_below(module, p) for p in ("edgeagent.convert", "edgeagent.train")):
        return
    assert not {name for name in imports(module) if is_below(name, "ota.fleet")}


@pytest.mark.parametrize("module", [m for m in MODULES if is_below(m, "edgeagent.adapters")])
def test_adapters_do_not_know_each_other(module):
    family = (*module.split("."), "")[2].split("_")[0]
    for name in imports(module):
        if is_below(name, "edgeagent.adapters") and name != "edgeagent.adapters":
            other = name.split(".")[2]
            is_family = other.split("_")[0] == family
            assert is_family or other in SHARED_ADAPTERS, f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if any(is_below(m, p) for p in PURE)])
def test_pure_modules_touch_no_outside_world(module):
    if any(is_below(module, p) for p in NOT_PURE):
        return
    outside = {name.split(".")[0] for name in imports(module)} & IMPURE_STDLIB
    assert not outside, f"{module} is pure: take values and return values"
    calls = [n.func for n in ast.walk(tree_of(MODULES[module])) if isinstance(n, ast.Call)]
    assert not [f for f in calls if isinstance(f, ast.Name) and f.id in ("open", "input", "print")]


def test_the_agent_starts_without_what_it_needs_only_later():
    loaded = closure(*AGENT_ENTRIES)
    heavy = {name: by for name, by in loaded.items() if name.split(".")[0] in HEAVY}
    assert not heavy, "import it inside the function that uses it"
    host = {n: by for n, by in loaded.items() if is_below(n, "edgeagent.model")}
    assert not host, "the model belongs to the engine process"


def test_the_engine_loads_nothing_that_speaks_to_the_outside():
    loaded = closure("edgeagent.engine")
    assert not {n: by for n, by in loaded.items() if n.split(".")[0] in NOT_IN_ENGINE}
    assert not {n: by for n, by in loaded.items() if is_below(n, "edgeagent.adapters")}


def test_the_daemon_imports_neither_training_nor_conversion():
    loaded = closure(*AGENT_ENTRIES, "edgeagent.engine")
    operators = ("edgeagent.train", "edgeagent.convert", "edgeagent.bench", "ota.fleet")
    assert not {n: by for n, by in loaded.items() if any(is_below(n, p) for p in operators)}


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_functions_fit_on_a_screen_and_files_in_the_head(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_FILE_LINES
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines < MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_every_module_says_why_it_exists(path):
    assert ast.get_docstring(tree_of(path))


def test_every_package_is_shipped():
    """Packages are listed by hand, and one that is forgotten is missing only once installed."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert packages - set(listed) == set(), "add to tool.setuptools.packages in pyproject.toml"


def test_no_file_names_a_machine():
    places = ["/" + "work/", "/opt/" + "ev/", "/tmp/" + "bash_jobs"]  # in pieces: this file too
    found = []
    for path in ROOT.rglob("*"):
        if path.suffix in TEXT and not NOT_OURS & set(path.relative_to(ROOT).parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}: {place}" for place in places if place in text]
    assert not found
