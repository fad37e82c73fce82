"""From a configuration's entries to tasks and encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_kd.errors import UserError

from ..results.standing import RANDOM
from .config import EncoderConfig, TaskConfig

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

    from ..datasets.tasks import Task
    from .own_features import OwnFeatures


def open_task(config: TaskConfig | Task, max_unreadable: float = 0.01) -> Task:
    """Open one task of a configuration; one that came from Python is open."""
    from ..datasets.published import published_task
    from ..datasets.tasks import corrupted, folder_pair, folder_task, photos_task

    if not isinstance(config, TaskConfig):
        return config
    plain = config.name or Path(config.path or config.photos).stem
    if config.photos:
        task = photos_task(config.photos, plain, max_unreadable)
    elif config.path:
        task = folder_task(config.path, plain, config.metric, max_unreadable)
    elif config.train:
        task = folder_pair(config.train, config.test, plain, config.metric, max_unreadable)
    else:
        task = published_task(plain, config.root, config.download, max_unreadable)
        if config.metric and task.several:
            raise UserError(f"task {config.title}: metric {config.metric} needs one class per image; leave it out")
        task = replace(task, metric=config.metric or task.metric)
    return corrupted(task, config.corrupt, config.severity, config.title) if config.corrupt else task


def open_encoders(configs: Sequence[EncoderConfig]) -> dict[str, Encoder | OwnFeatures]:
    """Load every row of a configuration by name; random ones are built like the one they name."""
    from ssl_kd.checkpoints.loading import load_teacher

    from .own_features import own_features

    loaded: dict[str, Encoder] = {}
    own = {config.title: own_features(config.title, config.features) for config in configs if config.features}
    for config in configs:
        if source := config.source:
            size = config.size if config.arch else None
            encoder = load_teacher(source, feature=config.feature, size=size, **config.by_hand())
            if config.size is not None:
                encoder.preprocessing = encoder.preprocessing.at(config.size, config.crop_ratio)
            loaded[config.title] = encoder
    for config in configs:
        if config.like:
            loaded[config.title] = random_like(loaded[config.like], config.seed)
    return {config.title: own.get(config.title) or loaded[config.title] for config in configs}


def random_like(encoder: Encoder, seed: int = 0) -> Encoder:
    """Return the same architecture, feature and preprocessing with random weights: what any figure has to beat."""
    import torch

    from ssl_kd.models.encoder import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = build(encoder.arch, encoder.feature, encoder.preprocessing, **encoder.arch_args)
    made.origin = f"{RANDOM}{seed}"
    return made
