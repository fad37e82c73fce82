"""Evaluate features: k-NN, linear probes and more, on feature banks, with intervals. Labels live here, and only here.

    from ssl_kd.eval import FeatureBank, KNN, LinearProbe, load_bank

    train, test = load_bank("train.npz"), load_bank("test.npz")
    KNN("dino")(train, test).value("top1", k=20)
    LinearProbe("simclr-lbfgs").fit(train).predict(test)

Always imported as `ssl_kd.eval`: the folder's plain name is what many people call a script of their own. Names are
imported when first used, so that `ssl-kd eval --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .banks import FeatureBank, load_bank
    from .datasets.tasks import ArrayTask, Split, Task, folder_pair, folder_task
    from .embed import EmbedConfig, embed_images
    from .evaluation import evaluate, evaluate_encoders
    from .evaluators.calibration import Calibration
    from .evaluators.few_shot import FewShot, FewShotProtocol
    from .evaluators.knn import KNN, KNNProtocol
    from .evaluators.linear_probe import FittedProbe, LinearProbe, LinearProtocol
    from .evaluators.retrieval import Retrieval, RetrievalProtocol
    from .extraction.extract import extract
    from .extraction.feature_cache import FeatureStore
    from .metrics import Score, Scores
    from .results import Cell, Results
    from .runner.config import EvalConfig
    from .solvers.sgd import SGDProtocol

# No module of this folder may bear a name of these: importing it would put the module in the name's place.
_HOMES = {
    "ArrayTask": "datasets.tasks",
    "Calibration": "evaluators.calibration",
    "Cell": "results",
    "EmbedConfig": "embed",
    "EvalConfig": "runner.config",
    "FeatureBank": "banks",
    "FeatureStore": "extraction.feature_cache",
    "FewShot": "evaluators.few_shot",
    "FewShotProtocol": "evaluators.few_shot",
    "FittedProbe": "evaluators.linear_probe",
    "KNN": "evaluators.knn",
    "KNNProtocol": "evaluators.knn",
    "LinearProbe": "evaluators.linear_probe",
    "LinearProtocol": "evaluators.linear_probe",
    "Results": "results",
    "Retrieval": "evaluators.retrieval",
    "RetrievalProtocol": "evaluators.retrieval",
    "SGDProtocol": "solvers.sgd",
    "Score": "metrics",
    "Scores": "metrics",
    "Split": "datasets.tasks",
    "Task": "datasets.tasks",
    "embed_images": "embed",
    "evaluate": "evaluation",
    "evaluate_encoders": "evaluation",
    "extract": "extraction.extract",
    "folder_pair": "datasets.tasks",
    "folder_task": "datasets.tasks",
    "load_bank": "banks",
}

__all__ = [
    "KNN",
    "ArrayTask",
    "Calibration",
    "Cell",
    "EmbedConfig",
    "EvalConfig",
    "FeatureBank",
    "FeatureStore",
    "FewShot",
    "FewShotProtocol",
    "FittedProbe",
    "KNNProtocol",
    "LinearProbe",
    "LinearProtocol",
    "Results",
    "Retrieval",
    "RetrievalProtocol",
    "SGDProtocol",
    "Score",
    "Scores",
    "Split",
    "Task",
    "embed_images",
    "evaluate",
    "evaluate_encoders",
    "extract",
    "folder_pair",
    "folder_task",
    "load_bank",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssl_kd.eval' has no attribute {name!r}")
    from importlib import import_module

    # by its full name: `python -m eval` has loaded this folder as `eval`, and nothing may be loaded twice
    value = getattr(import_module(f"ssl_kd.eval.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
