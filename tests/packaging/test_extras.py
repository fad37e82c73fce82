"""Each extra of pyproject.toml works alone: with the packages of every other extra hidden, what it is for runs."""

import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOOLS = ("dev", "docs")  # extras that build and test, and bring nothing to the package
MODULES = {
    "pillow-heif": ["pillow_heif"],
    "umap-learn": ["umap"],
    "nncf": ["nncf"],
    "tensorboard": ["tensorboard", "tensorboardX"],
}
# Those that a dependency of everybody brings as well.
EVERYBODYS = {"fsspec", "huggingface_hub"}

STUDENT = (
    "import ssl_kd, torch; s = ssl_kd.build('resnet18', channels=[8, 8, 8, 8]).eval(); x = torch.rand(2, 3, 32, 32)\n"
)
FILE = "from ssl_kd.checkpoints.saving import save_student; save_student(s, 's.safetensors')\n"
# extra -> the smallest thing that it is for, in an empty folder
USES = {
    "openvino": STUDENT + FILE + "from PIL import Image\nfrom ssl_kd.cli.main import main\n"
    "[Image.new('RGB', (40, 40), (i, 0, 0)).save(f'{i}.png') for i in range(4)]\n"
    "assert main('embed --weights s.safetensors --images . --engine openvino --out x.npz'.split()) == 0",
    "openvino-int8": "import ssl_kd.exporters.programs, openvino, nncf",
    "umap": "import numpy as np\nfrom ssl_kd.eval.report.projections import PROJECTIONS\n"
    "m = PROJECTIONS['umap'](np.random.default_rng(0).normal(size=(40, 8)).astype('float32'), 0)",
    "tensorboard": "from pathlib import Path\nfrom ssl_kd.runtime.loggers import _tensorboard\n"
    "log = _tensorboard(Path('run/metrics'), 0); log.add({'step': 1, 'loss': 2.0}); log.close()\n"
    "assert list(Path('run').rglob('events*'))",
    "wandb": "import wandb\nfrom ssl_kd.runtime.loggers import _wandb\nfrom pytorch_lightning.loggers.wandb import WandbLogger",
    "export": STUDENT + FILE + "from ssl_kd.cli.main import main\n"
    "assert main(['export', 's.safetensors', '--to', 'onnx', '--size', '32', '--out', 's.onnx']) == 0\n"
    "assert ssl_kd.load_encoder('s.onnx')(x).embedding.shape == (2, 8)",
    "parquet": "import pyarrow as pa, pyarrow.parquet as pq, io, ssl_kd\nfrom PIL import Image\n"
    "b = io.BytesIO(); Image.new('RGB', (8, 8), 'red').save(b, 'png')\n"
    "pq.write_table(pa.table({'image': [{'bytes': b.getvalue(), 'path': 'a.png'}] * 3}), 'x.parquet')\n"
    "from ssl_kd.data.open import open_images\nassert len(open_images('x.parquet')) == 3",
    "heic": "from pathlib import Path\nfrom PIL import Image\nfrom ssl_kd.data.sources.decode import _register_heif\n"
    "_register_heif(); Image.new('RGB', (16, 16), 'red').save('a.heic')\n"
    "from ssl_kd.data.open import open_images\nassert len(open_images('.')) == 1",
    "stores": "import fsspec, s3fs, gcsfs, huggingface_hub, ssl_kd.runtime.stores",
}
HIDE = "import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n"  # None there is no such module


def packages(extra):
    """What it asks for, by the names that are imported."""
    names = [re.split(r"[\[<>=]", one)[0] for one in PROJECT["optional-dependencies"][extra]]
    return {module for name in names for module in MODULES.get(name, [name.replace("-", "_")])}


EXTRAS = [extra for extra in PROJECT["optional-dependencies"] if extra not in TOOLS]
OPTIONAL = set().union(*(packages(extra) for extra in EXTRAS)) - EVERYBODYS


def run(code, hidden, folder):
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=sorted(hidden)) + code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_every_module_imports_without_any_extra(tmp_path):
    walk = (
        "import pkgutil, importlib, ssl_kd\n"
        "names = [one.name for one in pkgutil.walk_packages(ssl_kd.__path__, 'ssl_kd.')]\n"
        "names += [one.name for one in pkgutil.walk_packages(importlib.import_module('ssl_kd.eval').__path__, 'ssl_kd.eval.')]\n"
        "[importlib.import_module(name) for name in names if not name.endswith('__main__')]\n"
        "assert len(names) > 150, len(names)"
    )
    run(walk, OPTIONAL, tmp_path)


def test_every_extra_has_a_use():
    assert set(USES) == set(EXTRAS)


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_works_alone(extra, tmp_path):
    own = packages(extra)
    if lacking := sorted(module for module in own if find_spec(module) is None and module != "tensorboardX"):
        pytest.skip(f"not installed: {', '.join(lacking)}")
    run(USES[extra], OPTIONAL - own, tmp_path)
