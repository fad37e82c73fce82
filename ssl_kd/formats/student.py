"""Our own students: safetensors, with a JSON record of everything but the weights in the header."""

from __future__ import annotations

import json

from ssl_kd.encoder import Preprocessing
from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.formats.weights import Contents, Format, Weights

KEY = "ssl_kd"  # header entry of safetensors that holds the record


def matches_student(file: Contents) -> bool:
    return KEY in file.metadata


def convert_student(file: Contents) -> Weights:
    try:
        record = json.loads(file.metadata[KEY])
        return Weights(
            record["arch"],
            dict(record["arch_args"]),
            file.state(),
            Preprocessing.from_dict(record["preprocessing"]),
            record["feature"],
            record["origin"],
            "the whole file",
            tuple(file.state()),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise BrokenCheckpoint(f"the student's record in the header cannot be read: {error!r}") from error


STUDENT = Format("student", "student", "ssl_kd itself", matches_student, convert_student)
