"""Our own students: safetensors, with a JSON record of everything but the weights in the header.

A student that was a module from Python cannot be rebuilt by us: its file is a plain state dict, and its header says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from ssl_kd.checkpoints.formats.weights import Contents, Format, State, Weights, paths
from ssl_kd.errors import BrokenCheckpoint, UnknownCheckpoint, UserError, one_line, shown_name
from ssl_kd.models.encoder import Encoder, as_record, digest_of
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.space_head import SpaceHead
from ssl_kd.runtime.run_dir import MADE_BY

KEY = "ssl_kd"  # entries of safetensors' header: the record, and its own check sum
SUM = "ssl_kd_sha256"
MODULE_KEY = "ssl_kd_module"  # in place of both: the record of a module that only its own code can rebuild
HEADS = "ssl_kd_heads."  # before the names of the tensors of heads into other spaces
LOAD = "module.load_state_dict(safetensors.torch.load_file({file!r}))"
LARGEST = 2**16  # no argument of an architecture is larger


def header(encoder: Encoder, card: Mapping[str, object], heads: Mapping[str, SpaceHead]) -> dict[str, str]:
    """The header of a student file: how to rebuild the Encoder, the digest of its weights, its heads, and the card."""
    digest = digest_of(encoder.arch, encoder.arch_args, encoder.backbone.state_dict())
    known = {**as_record(encoder), "digest": digest, "card": card}
    if heads:  # files without one are what they always were
        known["heads"] = {name: head.record() for name, head in heads.items()}
    record = json.dumps(known)
    return {"format": "pt", KEY: record, SUM: hashlib.sha256(record.encode()).hexdigest()}


def module_header(encoder: Encoder, card: Mapping[str, object]) -> dict[str, str]:
    """The header of a module's state dict: what it is, how to load it, which pixels it wants, and the card."""
    how = {"load": LOAD.format(file="FILE"), "digest": encoder.digest, "card": card}
    return {"format": "pt", MODULE_KEY: json.dumps(as_record(encoder) | how)}


def refuse_module(file: Contents) -> None:
    """UnknownCheckpoint for the state dict of a module from Python."""
    if MODULE_KEY in file.metadata:
        raise UnknownCheckpoint(
            "holds the state of a module from Python, which only its own code can rebuild: build it there, then "
            + LOAD.format(file="FILE")
        )


def refuse_state(file: Contents) -> None:
    """UnknownCheckpoint for the saved state of a run of ours, which holds a student but not the pixels that it wants."""
    if isinstance(file.nodes, Mapping) and isinstance(file.nodes.get(MADE_BY), str):
        raise UnknownCheckpoint(
            "is the saved state of a run, which its own command resumes; take the student.safetensors that the run leaves"
        )


def card(file: Contents) -> dict[str, object]:
    """What was written beside the weights when the student was saved: its teacher, its run, ..."""
    found = json.loads(file.metadata[KEY]).get("card", {})
    return {shown_name(str(key)): value for key, value in found.items()}


def checked_arguments(given: object, state: State) -> dict[str, object]:
    """arch_args without absurd numbers: a billion blocks would be built for days before a tensor is missed."""
    if not isinstance(given, dict):
        raise BrokenCheckpoint("the student's record has no arguments of an architecture")
    for name, value in given.items():
        most = len(state) if any(part in name for part in ("depth", "layers", "blocks")) else LARGEST
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, (int, float, str, bool, type(None))) or (type(item) is int and abs(item) > most):
                raise BrokenCheckpoint(f"the student's record asks for {one_line(name, 40)}={one_line(value, 40)}")
    return dict(given)


def _heads(records: Mapping[str, Mapping[str, object]], state: State) -> dict[str, SpaceHead]:
    """The heads of a file; every tensor that is one's must be asked for."""
    places = {name: f"{HEADS}{name}." for name in records}
    found = {
        name: {key.removeprefix(place): tensor for key, tensor in state.items() if key.startswith(place)}
        for name, place in places.items()
    }
    if sum(map(len, found.values())) != sum(key.startswith(HEADS) for key in state):
        raise BrokenCheckpoint("the student's file has tensors of heads that its record does not name")
    return {name: SpaceHead.from_record(records[name], tensors) for name, tensors in found.items()}


def convert_student(file: Contents) -> Weights:
    """The state dict as it is; the record names its architecture. BrokenCheckpoint when the record is damaged."""
    text, whole = file.metadata.get(KEY, ""), file.state()
    state = {name: tensor for name, tensor in whole.items() if not name.startswith(HEADS)}
    if hashlib.sha256(text.encode()).hexdigest() != file.metadata.get(SUM):
        raise BrokenCheckpoint("the student's record in the header is damaged: its check sum does not match")
    try:
        record = json.loads(text)
        if not isinstance(record.get("card", {}), dict):
            raise BrokenCheckpoint("the student's record in the header is damaged: its card is no mapping")
        arch, args = str(record["arch"]), checked_arguments(record["arch_args"], state)
        if digest_of(arch, args, state) != record["digest"]:
            raise BrokenCheckpoint("the student's weights are damaged: their digest is not the recorded one")
        return Weights(
            arch,
            args,
            int(record["dim"]),
            state,
            Preprocessing.from_dict(record["preprocessing"]),
            str(record["feature"]),
            shown_name(str(record["origin"])),
            "the whole file",
            paths(("", whole)),
            _heads(record.get("heads", {}), whole),
        )
    except UserError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
        RuntimeError,
    ) as error:
        raise BrokenCheckpoint(
            f"the student's record in the header cannot be read: {one_line(repr(error), 100)}"
        ) from error


STUDENT = Format(
    "student",
    "student",
    "`student.safetensors` of a distillation run",
    "as it was trained",
    Preprocessing(),  # unless the record says otherwise
    lambda file: KEY in file.metadata,
    convert_student,
)
