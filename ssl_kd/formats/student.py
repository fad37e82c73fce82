"""Our own students: safetensors, with a JSON record of everything but the weights in the header."""

from __future__ import annotations

import json

from ssl_kd.encoder import Preprocessing
from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.formats.weights import Contents, Format, Weights, paths

KEY = "ssl_kd"  # header entry of safetensors that holds the record


def convert_student(file: Contents) -> Weights:
    """The state dict as it is; the record names its architecture. BrokenCheckpoint when the record is damaged."""
    try:
        record = json.loads(file.metadata[KEY])
        state = file.state()
        return Weights(
            str(record["arch"]),
            dict(record["arch_args"]),
            int(record["dim"]),
            state,
            Preprocessing.from_dict(record["preprocessing"]),
            str(record["feature"]),
            str(record["origin"]),
            "the whole file",
            paths(("", state)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BrokenCheckpoint(
            f"the student's record in the header cannot be read: {ascii(repr(error))[1:100]}"
        ) from error


STUDENT = Format(
    "student",
    "student",
    "`student.safetensors` of a distillation run",
    lambda file: KEY in file.metadata,
    convert_student,
)
