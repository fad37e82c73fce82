"""The walls of the house: who may import whom, where labels may be, which doors exist. Proved from the source text."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "ssl_kd").rglob("*.py"))
EVAL = sorted((ROOT / "eval").rglob("*.py"))

# The floors of the house. A room imports from its own folder and from floors below, never across or up.
FLOORS = (
    ("errors", "types", "rng", "metrics"),
    ("validation", "registry", "runtime", "models", "objectives"),
    ("data", "checkpoints"),
    ("distillation", "pretraining", "exporters", "search"),
    ("compare",),
    ("cli",),
)
EVAL_FLOORS = (
    ("banks", "metrics", "results"),
    ("solvers", "datasets", "extraction"),
    ("evaluators",),
    ("runner", "report"),
    ("kept",),
    ("evaluation", "embed", "scratch", "gather"),
    ("demo", "certify", "selfcheck"),
    ("cli",),
)
ACROSS = {("eval.results", "eval.metrics")}  # within a floor, one module may rest on another
# eval/ may know what an encoder is and how images are read, never how a student is trained.
OPEN_TO_EVAL = {
    "errors",
    "types",
    "rng",
    "metrics",
    "registry",
    "validation",
    "runtime",
    "models",
    "data",
    "checkpoints",
    "search",
}
LIGHT = {"numpy", "torch", "faiss", "sklearn", "scipy"}
STANDARD = set(sys.stdlib_module_names)
LABEL_WORDS = {"label", "labels", "target_class", "class_to_idx", "targets_of", "y_true", "num_labels"}


def name_of(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    """The dotted name of a file; eval/knn.py is eval.knn, as the folder lies."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {".".join(module_of(p)) for p in PACKAGE + EVAL}


def only_for_types(tree):
    """The nodes under `if TYPE_CHECKING:`, which never run."""
    return {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


@functools.cache
def imports(path):
    """Every module name imported anywhere in a file, functions included; `ssl_kd.eval` is written `eval`."""
    return tuple(_imports(path))


def _imports(path):
    tree = parsed(path)
    skipped = only_for_types(tree)
    here = module_of(path)
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.replace("ssl_kd.eval", "eval") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").replace("ssl_kd.eval", "eval")
            if node.level:
                base = ".".join((*package[: len(package) - node.level + 1], *([node.module] if node.module else [])))
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def floor(room):
    """(package, floor number) of a room such as ssl_kd.data or eval.runner; None for what has no floor of its own."""
    top, *rest = room.split(".")
    if not rest:
        return None
    for number, names in enumerate(EVAL_FLOORS if top == "eval" else FLOORS):
        if rest[0] in names:
            return top, number
    return None


def room(module):
    return ".".join(module.split(".")[:2])


def rooms():
    for path in PACKAGE + EVAL:
        here = ".".join(module_of(path)[:2])
        for name in imports(path):
            if name.split(".")[0] in ("ssl_kd", "eval") and room(name) != here:
                yield path, here, room(name)


def test_every_room_has_a_floor():
    built = {".".join(module_of(p)[:2]) for p in PACKAGE + EVAL}
    outside = {"ssl_kd", "ssl_kd.__main__", "eval", "eval.__main__"}
    assert {r for r in built if floor(r) is None} <= outside


def test_arrows_go_down_only():
    """A room imports from lower floors of its own package; only eval, and the command line, look into the other one."""
    wrong = []
    for path, here, there in rooms():
        mine, theirs = floor(here), floor(there)
        if mine is None or theirs is None or (here, there) in ACROSS:
            continue
        if mine[0] == theirs[0] and theirs[1] >= mine[1] and here != there:
            beside_types = theirs[1] == mine[1] == 1 and there in ("ssl_kd.validation", "ssl_kd.registry")
            if not beside_types and not (mine[1] == 0 and there == "ssl_kd.errors"):
                wrong.append(f"{name_of(path)} -> {there}")
    assert wrong == []


def test_no_two_modules_import_each_other_in_a_circle():
    known = {".".join(module_of(p)): p for p in PACKAGE + EVAL}
    graph = {name: {i for i in imports(path) if i in known and i != name} for name, path in known.items()}
    done, trail = set(), []

    def visit(name):
        if name in trail:
            raise AssertionError(" -> ".join([*trail[trail.index(name) :], name]))
        if name in done:
            return
        trail.append(name)
        for below in graph[name]:
            visit(below)
        trail.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_only_the_command_line_and_the_comparison_look_into_eval():
    lookers = {here for _, here, there in rooms() if here.startswith("ssl_kd") and there.split(".")[0] == "eval"}
    assert lookers <= {"ssl_kd.cli", "ssl_kd.__main__", "ssl_kd.compare"}


# Of the comparison's two halves one trains and chooses, the other judges; the rest puts them together and shows.
DISTILS = ("config", "shelf", "choice", "plan", "training")


@pytest.mark.parametrize("module", DISTILS)
def test_what_distils_and_chooses_in_a_comparison_reaches_no_evaluation(module):
    """Not even through another module of ours: what a label decides cannot come back into a run."""
    known = {".".join(module_of(p)): p for p in PACKAGE + EVAL}
    reached, todo = set(), [f"ssl_kd.compare.{module}"]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += [one for one in imports(known[name]) if one in known]
    assert not {name for name in reached if name.split(".")[0] == "eval"}
    assert not reached & {f"ssl_kd.compare.{name}" for name in ("judging", "work", "run", "results", "report")}


def test_a_comparison_asks_for_figures_in_one_module_and_draws_in_another():
    lookers = {
        path.stem
        for path in (ROOT / "ssl_kd/compare").glob("*.py")
        if any(name.split(".")[0] == "eval" for name in imports(path))
    }
    assert lookers == {"judging", "report", "results"}


def test_eval_knows_encoders_and_images_but_not_training():
    seen = {there for _, here, there in rooms() if here.startswith("eval") and there.startswith("ssl_kd.")}
    assert {there.split(".")[1] for there in seen} <= OPEN_TO_EVAL


def test_objectives_need_torch_alone():
    """In anybody's loop: no timm, no PIL, no numpy beyond what torch brings."""
    code = "import sys; import ssl_kd.objectives; print([m for m in ('timm', 'PIL', 'lightly', 'faiss') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "eval" / "evaluators").glob("*.py")), ids=name_of)
def test_evaluators_see_banks_and_never_a_network(path):
    names = set(imports(path))
    assert {n.split(".")[0] for n in names} <= STANDARD | LIGHT | {"eval", "ssl_kd"}
    assert not [n for n in names if n.startswith("ssl_kd.models")]


def identifiers(path):
    """Names, attributes, arguments and keywords of a file's code: not its comments, strings and docstrings."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_no_code_of_the_package_speaks_of_labels(path):
    # The command line hands the demo's images over from eval/; it must not touch their labels either.
    assert not LABEL_WORDS & {name.lower() for name in identifiers(path)}


def test_a_batch_of_views_has_no_place_for_a_label():
    from dataclasses import fields

    from ssl_kd.types import ViewBatch

    assert {f.name for f in fields(ViewBatch)} == {"index", "epoch", "pixels", "view_numbers"}


def test_images_drop_labels_at_the_door():
    from PIL import Image

    from ssl_kd.data.open import open_images

    class Labelled:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return Image.new("RGB", (4, 4), (i, i, i)), f"label {i}"

    image = open_images(Labelled()).read(1)
    assert isinstance(image, Image.Image)


def test_only_the_checkpoint_door_opens_foreign_weight_files():
    """torch.load elsewhere only reads what we wrote ourselves; nowhere without weights_only.

    exporters/export.py reads back the TorchScript that it wrote a moment before, to measure it.
    """
    doors = {"loading.py", "torch_file.py", "unpickler.py", "state.py", "export.py"}
    for path in PACKAGE + EVAL:
        for node in ast.walk(parsed(path)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("torch.load", "pickle.load", "pickle.loads", "torch.jit.load"):
                assert path.name in doors, f"{path}: {called}"
                assert called == "torch.jit.load" or path.name != "export.py"
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), f"{path}: {ast.unparse(node)}"


def test_eval_is_never_imported_as_a_bare_name():
    for path in [*PACKAGE, *EVAL, *sorted((ROOT / "tests").rglob("*.py"))]:
        assert "eval" not in [
            n for node in ast.walk(parsed(path)) if isinstance(node, ast.Import) for n in (a.name for a in node.names)
        ]


@pytest.mark.parametrize(
    "statement",
    [
        "import ssl_kd",
        "import ssl_kd.cli.main",
        "import ssl_kd.distillation.config",
        "import ssl_kd.eval.runner.config",
    ],
)
def test_the_command_line_wakes_no_heavy_library(statement):
    code = f"import sys; {statement}; print([m for m in ('torch', 'timm', 'faiss', 'sklearn', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_no_module_hides_a_public_name():
    import ssl_kd

    modules = {path.stem for path in (ROOT / "ssl_kd").glob("*.py")} | {
        p.parent.name for p in (ROOT / "ssl_kd").glob("*/__init__.py")
    }
    assert not modules & set(ssl_kd.__all__)
    assert set(ssl_kd.__all__) == set(ssl_kd._HOMES)
    assert all(hasattr(ssl_kd, name) for name in ssl_kd.__all__)
