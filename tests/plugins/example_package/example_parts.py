"""One part of every kind for ssl_kd, from another package. docs/extending.md says what each has to be."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import nn

from ssl_kd.checkpoints.formats import Format, Weights
from ssl_kd.data.augment import CENTRE, WEAK
from ssl_kd.distillation.between_terms import BetweenTerm, Row
from ssl_kd.eval.banks import match
from ssl_kd.eval.datasets.tasks import ArrayTask
from ssl_kd.eval.evaluators.few_shot import FewShotProtocol
from ssl_kd.eval.evaluators.knn import KNNProtocol
from ssl_kd.eval.evaluators.linear_probe import LinearProtocol
from ssl_kd.eval.evaluators.registry import Kind
from ssl_kd.eval.evaluators.retrieval import RetrievalProtocol
from ssl_kd.eval.evaluators.robustness import Damage
from ssl_kd.eval.metrics import Scores, figures
from ssl_kd.exporters.export import PLAIN, Target
from ssl_kd.models.backbones import ModuleNet
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.objectives.divergences import Plain
from ssl_kd.objectives.presets.preset import Preset, alignment, correlation
from ssl_kd.objectives.relations import Relation
from ssl_kd.objectives.term import Term

# ------------------------------------------------------------------------------------------------- objectives


def absolute(s, t):
    """Mean absolute difference."""
    return (s - t).abs().mean()


class ExampleGram(Relation):
    """Inner products of all samples."""

    def tables(self, s, t, batch):
        """(N, Ds), (N, Dt) -> two (N, N) tables."""
        return s @ s.T, t @ t.T


class ExampleNorms(Term):
    """The student's vectors are to be as long as the teacher's."""

    def __init__(self, student_dim, teacher_dim):
        super().__init__()

    def compare(self, student, teacher, batch):
        """Mean squared difference of the lengths."""
        return (student.embedding.float().norm(dim=1) - teacher.embedding.float().norm(dim=1)).square().mean()


class Halved(nn.Module):
    """The teacher's features at half their length."""

    def __init__(self, dim):
        super().__init__()

    def forward(self, t):
        """(N, Dt) -> (N, Dt)."""
        return t / 2


def two_layers(student_dim, teacher_dim):
    """Two linear layers."""
    return nn.Sequential(nn.Linear(student_dim, student_dim), nn.Linear(student_dim, teacher_dim))


class Lengths(BetweenTerm):
    """All students' vectors are to be as long as the first one's, times `times`."""

    def __init__(self, widths, teacher_width, times=1.0):
        super().__init__()
        self.first, *others = widths
        self.leads, self.times = tuple(others), times

    def forward(self, students, teacher, batch):
        """Mean squared difference of the lengths, for each student but the first."""
        aim = self.times * students[self.first].embedding.detach().float().norm(dim=1)
        return {name: (students[name].embedding.float().norm(dim=1) - aim).square().mean() for name in self.leads}


LENGTHS = Row(Lengths)
DIVERGENCE = partial(Plain, absolute)
PRESET = Preset(
    (
        alignment("example_two_layers", "example_absolute", space="example_halved"),
        correlation("example_gram", "linear", comparison="example_l1", weight=0.1),
        {"term": "example_norms", "weight": 0.01},
    ),
    "an example",
    "ours",
    "-",
    "mean absolute difference and inner products",
    "-",
    views="example_views",
)
VIEWS = (replace(WEAK, scale=(0.5, 1.0)), CENTRE)

# ------------------------------------------------------------------------------------ images, networks, weights


def grey_levels(spec, max_unreadable):
    """`example/COUNT`: so many pictures of 32 px, with noise about a grey level each."""
    rng = np.random.default_rng(0)
    levels = np.linspace(40, 200, int(spec.partition("/")[2]))
    return [Image.fromarray(rng.normal(level, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)) for level in levels]


def network(name, arguments):
    """`example/tiny`: one convolution."""
    assert name == "tiny"
    width = arguments.pop("width", 8)
    return ModuleNet(nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU()), width)


def convert(file):
    """Contents -> Weights, by the names of the architecture."""
    state = file.state("example_resnet18")
    channels = [len(state[f"layer{i}.0.conv1.weight"]) for i in (1, 2, 3, 4)]
    used = {f"example_resnet18/{name}": tensor for name, tensor in state.items()}
    origin = "a ResNet-18 of the example"
    return Weights("resnet18", {"channels": channels}, channels[3], state, FORMAT.pixels, "pool", origin, "all", used)


FORMAT = Format(
    "example_format",
    "example",
    "files of the example package",
    "the whole network, pool",
    Preprocessing().at(32),
    lambda file: bool(file.state("example_resnet18")),
    convert,
)


def write_arrays(encoder, path, card):
    """The weights as arrays of NumPy."""
    with open(path, "wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in encoder.backbone.state_dict().items()})


def reopen_arrays(encoder, path):
    """A network of the same architecture with the weights of the file."""
    again = build(encoder.arch, encoder.feature, encoder.preprocessing, **encoder.arch_args).eval()
    again.backbone.load_state_dict({name: torch.from_numpy(array) for name, array in np.load(path).items()})
    return lambda images: again(images).embedding.detach()


EXPORTER = Target("arrays.npz", "numpy.load", PLAIN, lambda encoder: ("numpy.load(FILE)",), write_arrays, reopen_arrays)

# ------------------------------------------------------------------------------------------------------ logging


class Lines:
    """A line of text per record, in example.txt beside metrics.jsonl."""

    def __init__(self, home, first):
        self.path = home.with_name("example.txt")

    def add(self, record):
        """Take a record."""
        with open(self.path, "a") as file:
            file.write(f"step {record['step']}\n")

    def close(self):
        """Nothing is held back."""


# --------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Centroid:
    """Guess the class whose mean is nearest."""

    protocol: str

    def __call__(self, train, test):
        """Two banks -> Scores."""
        banks = match(train, test)
        means = np.stack([banks.x[banks.y == c].mean(0) for c in range(len(banks.classes))])
        ranked = np.linalg.norm(banks.x_test[:, None] - means, axis=2).argsort(1)
        rows = tuple(figures(banks.y_test, ranked, len(banks.classes)))
        return Scores("example_centroid", self.protocol, rows, banks.classes, banks.y_test, {None: ranked[:, 0]})


def centroid_protocol(name):
    """The only one there is."""
    assert name == "means"
    return name


EVALUATOR = Kind("means", centroid_protocol, lambda protocol, given: Centroid(protocol))
KNN = KNNProtocol("example_three", (1, 3), 3)
LINEAR = LinearProtocol("example_linear", (0.1, 10.0), 0.2)
FEWSHOT = FewShotProtocol("example_shots", (1, 2), 3, "centroid", 1)
RETRIEVAL = RetrievalProtocol("example_top10", depth=10)
DAMAGE = Damage("example_noise", "noise", (0.0, 0.5), 0.5)


def light_and_dark(root, download, max_unreadable):
    """Dark and bright pictures of 32 px; nothing is read under `root`."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (rng.normal(80, 20, (40, 32, 32, 3)) + 90 * labels[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return ArrayTask("light and dark", images[:20], labels[:20], images[20:], labels[20:])
