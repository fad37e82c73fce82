"""The walls of the house: who may import whom, where labels may be, which doors exist. Proved from the source text."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "ssl_kd").rglob("*.py"))
EVAL = sorted((ROOT / "eval").rglob("*.py"))
# eval/ may know what an encoder is and how images are read, never how a student is trained.
OPEN_TO_EVAL = {
    "ssl_kd.errors",
    "ssl_kd.runtime.files",
    "ssl_kd.runtime.progress",
    "ssl_kd.models.encoder",
    "ssl_kd.checkpoints.loading",
    "ssl_kd.data.open",
    "ssl_kd.runtime.download",
    "ssl_kd.runtime.command_line",
}
EVALUATORS = (
    "knn",
    "approximate",
    "linear_probe",
    "logistic",
    "metrics",
    "retrieval",
    "fewshot",
    "robustness",
    "calibration",
    "ood",
    "multilabel",
)
LIGHT = {"numpy", "torch", "faiss", "sklearn", "scipy"}
STANDARD = set(sys.stdlib_module_names)
LABEL_WORDS = {"label", "labels", "target_class", "class_to_idx", "targets_of", "y_true", "num_labels"}


def imports(path):
    """Every absolute module name imported anywhere in a file, functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_the_package_never_imports_eval_but_in_the_command_line(path):
    if path.name == "cli.py":
        return
    assert not [name for name in imports(path) if name == "eval" or name.startswith("eval.")]


@pytest.mark.parametrize("path", EVAL, ids=name_of)
def test_eval_knows_encoders_and_images_but_not_training(path):
    names = [n for n in imports(path) if n == "ssl_kd" or n.startswith("ssl_kd.")]
    assert not [n for n in names if not any(n == door or n.startswith(f"{door}.") for door in OPEN_TO_EVAL)]


@pytest.mark.parametrize("path", [p for p in EVAL if p.stem in EVALUATORS], ids=name_of)
def test_evaluators_see_banks_and_never_a_network(path):
    tops = {n.split(".")[0] for n in imports(path)}
    assert tops <= STANDARD | LIGHT | {"eval", "ssl_kd"}
    assert "ssl_kd.models.encoder" not in set(imports(path))


def identifiers(path):
    """Names, attributes, arguments and keywords of a file's code: not its comments, strings and docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_no_code_of_the_package_speaks_of_labels(path):
    # cli.py hands the demo's images over from eval/; it must not touch their labels either.
    assert not LABEL_WORDS & {name.lower() for name in identifiers(path)}


def test_a_batch_of_views_has_no_place_for_a_label():
    from dataclasses import fields

    from ssl_kd.data.augment import Views

    assert {f.name for f in fields(Views)} == {"index", "epoch", "pixels"}


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

    exporting.py reads back the TorchScript that it wrote a moment before, to measure it.
    """
    doors = {"checkpoint.py", "containers.py", "pickles.py", "run.py", "exporting.py"}
    for path in PACKAGE + EVAL:
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("torch.load", "pickle.load", "pickle.loads", "torch.jit.load"):
                assert path.name in doors, f"{path}: {called}"
                assert called == "torch.jit.load" or path.name != "exporting.py"
                if called == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), f"{path}: {ast.unparse(node)}"


def test_eval_is_never_imported_as_a_bare_name():
    for path in [*PACKAGE, *EVAL, *sorted((ROOT / "tests").glob("*.py"))]:
        assert "eval" not in [
            n
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for n in (a.name for a in node.names)
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
