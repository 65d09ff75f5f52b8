"""Rules about imports and the environment that the import linter cannot express."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "megatron_v2pe"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAUNCHER = re.compile(r"(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT|SLURM_\w+)")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ["data", "v2pe"])
def test_no_ranks_where_samples_and_positions_are_made(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        ranks = [name for name in imported(path) if name.startswith(("torch.distributed", "megatron.core"))]
        assert not ranks, f"{path.relative_to(PACKAGE)} imports {ranks}"


def test_megatron_core_is_imported_in_the_layers_that_stand_on_it_only():
    allowed = {"device", "parallel", "models", "families", "checkpoint", "train", "generate", "workshop"}
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] not in allowed:
            assert not [name for name in imported(path) if name.startswith("megatron.core")], path


def test_only_the_launcher_reads_the_launchers_variables():
    for path in MODULES:
        if path.relative_to(PACKAGE).as_posix() in ("device/launch.py", "base/orphans.py", "workshop/worker_pool.py"):
            continue  # the pool plays the launcher; orphans only looks whether there is one, before PyTorch is imported
        texts = [
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and LAUNCHER.fullmatch(node.value)
        ]
        assert not texts, f"{path.relative_to(PACKAGE)} names {texts}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_opens_with_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


JSON_OF_OUR_OWN = {
    "data/indexed/build.py": "a plan made here, as JSON has it",
    "device/agent.py": "what a process of the run has written into its store",
    "device/watchdog.py": "the same",
    "evaluate/provenance.py": "settings made here, as JSON has them",
    "evaluate/results.py": "a result made here, as JSON has it",
    "evaluate/families/mm_niah/scorer.py": "a model's answer: scorers stand on nothing of the project",
    "evaluate/scorers/clean_answer.py": "the same",
    "workshop/synthetic/small_data.py": "a config.json of a test",
    "workshop/synthetic/tokenizer.py": "annotations an example has written",
}
"""Modules that parse JSON by themselves -> of whom it is."""


def test_json_from_outside_has_one_reader():
    """Without it depth, size, encoding, long numbers and NaN are looked at in one place and forgotten in the next."""
    for path in MODULES:
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("foreign/") or name in JSON_OF_OUR_OWN:
            continue
        calls = [
            f"{node.func.value.id}.{node.func.attr}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and (node.func.value.id, node.func.attr) in {("json", "load"), ("json", "loads")}
        ]
        assert not calls, f"{name}: {calls}; megatron_v2pe/foreign/text.py reads JSON"


OBJECTS_BETWEEN_RANKS = {
    "device/rank_errors.py": "errors of one rank, raised on all",
    "train/health/divergence.py": "sums of what ranks must hold alike",
    "train/health/skipped_steps.py": "names of weights that are not finite, of all ranks",
    "train/health/step_samples.py": "the samples of a step, of all ranks",
    "device/host_memory.py": "bytes needed and free, added up for every host",
    "device/agreement.py": "errors of one rank, told to all, of work that a run can do without",
    "parallel/side_groups.py": "which ranks make up the groups of a layout",
    "checkpoint/store.py": "what every rank has written, for the description of the tensors",
    "evaluate/runner.py": "whether a copy of the model asks on",
    "evaluate/batching.py": "lengths of prompts, so that batches are the same on all ranks of a copy",
    "generate/chat.py": "the line a user has typed",
    "generate/diagnosis.py": "where numbers have ceased to be finite",
    "train/data_feed.py": "the header of a pack, in which an error of its reader travels; counts of bad samples",
    "workshop/full_state.py": "shards, put together into whole tensors",
}
"""Modules that send Python objects between ranks -> which."""
_SENDS_OBJECTS = {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"}


def test_errors_of_one_rank_are_raised_on_all_in_one_place():
    """Gathered by hand they lose their class in one module, and leave a rank waiting in the next."""
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [
            node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in _SENDS_OBJECTS
        ]
        name = path.relative_to(PACKAGE).as_posix()
        assert not calls or name in OBJECTS_BETWEEN_RANKS, f"{name}: {calls}; see megatron_v2pe/device/rank_errors.py"
        assert calls or name not in OBJECTS_BETWEEN_RANKS, f"{name} sends no objects any more: take it off the list"


def _renames(node: ast.AST) -> bool:
    """Tell whether a call gives a file another name: `os.replace`, `path.replace(target)` and their like."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    of_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
    one_argument = len(node.args) == 1 and not node.keywords  # text has two: what is replaced, and by what
    return node.func.attr in ("rename", "move", "renames") or (node.func.attr == "replace" and (of_os or one_argument))


def test_files_are_put_in_place_in_one_module():
    """Each copy of the idea forgets something else: another process that writes, a full disk, the flush."""
    tools = sorted((PACKAGE.parent / "tools").rglob("*.py"))
    for path in (*MODULES, *tools):
        if path != PACKAGE / "base" / "whole_files.py":
            calls = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if _renames(node)]
            assert not calls, f"{path}: {calls}: megatron_v2pe/base/whole_files.py writes a file whole or not at all"


CIRCLES_INSIDE_FUNCTIONS: dict[frozenset[str], str] = {}
"""Files that import each other where a function's import closes the circle -> why it has to be so."""


def imports_of_ours(in_functions: bool) -> dict[str, set[str]]:
    """Return what every file imports of the package: while it is imported itself, or in its functions too."""
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    found: dict[str, set[str]] = {name: set() for name in modules}

    def visit(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not in_functions:
                continue
            if isinstance(child, ast.Import):
                named = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.module:
                named = [one for alias in child.names for one in (f"{child.module}.{alias.name}", child.module)]
            else:
                named = []
            found[name].update(one for one in named if one in modules and one != name)
            visit(child, name)

    for name, path in modules.items():
        visit(ast.parse(path.read_text(encoding="utf-8")), name)
    return found


def circle(imports: dict[str, set[str]]) -> frozenset[str]:
    """Return the files of all circles: what is left when files that import, or are imported by, none left are gone."""
    left = {name: set(targets) for name, targets in imports.items()}
    while True:
        used = {target for targets in left.values() for target in targets}
        gone = {name for name, targets in left.items() if not targets or name not in used}
        if not gone:
            return frozenset(left)
        left = {name: targets - gone for name, targets in left.items() if name not in gone}


def test_a_circle_is_found():
    line = {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a", "c"}}
    assert circle(line) == frozenset()
    assert circle(line | {"c": {"b"}}) == {"b", "c"}


def test_no_file_imports_one_that_imports_it():
    assert circle(imports_of_ours(in_functions=False)) == frozenset()
    assert circle(imports_of_ours(in_functions=True)) in (frozenset(), *CIRCLES_INSIDE_FUNCTIONS)


def test_one_module_finds_near_words():
    """Each copy words the same hint otherwise."""
    tools = sorted((PACKAGE.parent / "tools").rglob("*.py"))
    for path in (*MODULES, *tools):
        if path != PACKAGE / "base" / "suggest.py":
            assert not [name for name in imported(path) if name.startswith("difflib")], f"{path}: see base/suggest.py"


SAME_CLASS_NAMES: dict[str, str] = {}
"""Public classes of the package that share a name -> why it has to be so."""


def test_a_public_class_has_a_name_of_its_own():
    """A reader who searches for a name finds one class, and not three."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.relative_to(PACKAGE).as_posix())
    shared = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in SAME_CLASS_NAMES}
    assert not shared


FILE_NAMES_THAT_SAY_LITTLE = {
    "config.py": {
        "data/config.py": "the section `data` of a run's settings",
        "models/config.py": "what a checkpoint's `config.json` says of the whole model",
        "parallel/config.py": "the section `parallel` of a run's settings",
        "train/config.py": "all settings of a run",
    },
    "registry.py": {"recipes/registry.py": "the recipes by name"},
    "text.py": {"foreign/text.py": "text files and JSON from outside"},
}
"""File names that several packages could want -> the files that bear them, and what each is for."""


@pytest.mark.parametrize("name", FILE_NAMES_THAT_SAY_LITTLE)
def test_file_names_that_say_little_are_few(name):
    """Ten files of one name are ten tabs of one name: a new file is called by what it holds, except in a family."""
    files = {path.relative_to(PACKAGE) for path in MODULES if path.name == name}
    found = {path.as_posix() for path in files if path.parts[0] != "families"}  # of fixed names: the folder tells
    assert found == FILE_NAMES_THAT_SAY_LITTLE[name].keys()


def _docstrings(path: Path) -> Iterator[tuple[ast.AST, int, str]]:
    """Yield every docstring of a file, of modules, classes, functions and fields: what it describes, line and text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = node.body if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) else []
        previous: ast.AST = node
        for number, statement in enumerate(body):
            value = statement.value if isinstance(statement, ast.Expr) else None
            of_node = number == 0 or isinstance(previous, (ast.Assign, ast.AnnAssign))
            if of_node and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield previous, statement.lineno, value.value
            previous = statement


_SENTENCE_ENDS = (".", ".)", ".`", ":", "?")
_IDIOM = re.compile(r"^Of |\bas of (`|a call)|\b(told|for ever|to be had|is had|at wish|no matter)\b")
"""Fragments, and words that a reader of English as a second language looks up in vain."""


def test_docstrings_are_whole_sentences():
    """A reader who learnt English as a second language follows sentences; fragments and private idiom are riddles."""
    tools = sorted((PACKAGE.parent / "tools").rglob("*.py"))
    faults = []
    for path in (*MODULES, *tools):
        for node, line, text in _docstrings(path):
            first = " ".join(text.split("\n\n")[0].split())
            of_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_")
            if (found := _IDIOM.search(text)) is not None:
                faults.append(f"{path}:{line}: {found[0].strip()!r}: {first}")
            elif of_function and not (first[0].isupper() or first[0] in "`[("):
                faults.append(f"{path}:{line}: begins small: {first}")
            elif of_function and not first.endswith(_SENTENCE_ENDS):
                faults.append(f"{path}:{line}: has no full stop: {first}")
    assert not faults, "\n".join(faults)
