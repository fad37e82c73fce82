"""Objects of a store (s3://, gs://, hf://) through fsspec: what is there, a piece of one, and a file put in one's place.

    about("s3://photos/train-000.tar")      # Told(size=52428800, version="9b2cf535f27731c974343645a3985328")
    put(Path("x.npy"), "s3://photos/x.npy")  # the whole object, or still the old one

Reading goes through `ssl_kd.runtime.download`, which resumes and checks. Keys and addresses are those of the packages:
AWS_PROFILE and AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN, FSSPEC_S3_... and the like. A call that does not answer is
given up after a time and left to itself, since not all of these packages can be told to hurry.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ssl_kd.errors import UserError, one_line, shown_name
from ssl_kd.runtime.cache import cache_folder
from ssl_kd.runtime.network import offline

SCHEMES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}  # the package behind each
VERSIONS = ("ETag", "etag", "generation", "blob_id", "LastModified", "updated", "mtime", "created")
TIMEOUT = 30.0  # seconds in which a store answers
SLOWEST = 200_000  # bytes a second: a slower upload counts as stalled
PIECE = 8 << 20  # bytes asked for at once
TRIES = 4
PAUSE = 1.0  # seconds before the second try, doubled after each
# What does not pass by itself, by name: the packages' own errors are not imported here.
FINAL = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")

T = TypeVar("T")


class Told(NamedTuple):
    """An object's size in bytes, and what changes with its bytes: an ETag, a generation, a date."""

    size: int
    version: str


def in_store(path: str | os.PathLike[str]) -> bool:
    """Whether a path names something in a store: s3://, gs:// or hf://."""
    scheme, separator, _ = os.fspath(path).partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def about(url: str) -> Told | None:
    """What a store says of an object now, None where there is none. UserError where it does not answer."""
    return tried(url, "cannot be asked for", lambda: asked(url))


def asked(url: str, timeout: float | None = None) -> Told | None:
    """The same by one question, with errors as they come."""
    system, path = _system(url)
    try:
        found = _within(timeout or TIMEOUT, lambda: (system.invalidate_cache(), system.info(path))[1])
    except FileNotFoundError:
        return None
    if found.get("type") == "directory" or found.get("size") is None:
        return None
    return Told(int(found["size"]), next((str(found[key]).strip('"') for key in VERSIONS if found.get(key)), ""))


def piece(url: str, start: int, stop: int, timeout: float | None = None) -> bytes:
    """Bytes start to stop - 1 of an object. Errors are those of its package, TimeoutError, or OSError where fewer came."""
    system, path = _system(url)
    data = bytes(_within(timeout or TIMEOUT, lambda: system.cat_file(path, start=start, end=stop)))
    if len(data) != stop - start:
        raise OSError(f"{len(data):,} of {stop - start:,} bytes came")
    return data


def listed(url: str) -> list[str]:
    """Names of the objects that lie directly below a folder, sorted. UserError where there is none or no answer."""
    system, path = _system(url)

    def names() -> list[str]:
        system.invalidate_cache()
        found = system.ls(path, detail=True)
        return sorted(str(one["name"]).rstrip("/").rpartition("/")[2] for one in found if one["type"] == "file")

    try:
        return tried(url, "cannot be listed", names)
    except FileNotFoundError:
        raise UserError(f"{shown_name(url)}: no such folder") from None


def put(path: Path, url: str, pause: float | None = None) -> Told:
    """Upload a file, and return what the store then says of it. UserError, and the old object as it was, if it cannot be.

    Stores show an object when all of it has come. The size is compared afterwards.
    """
    system, place = _system(url)
    size = path.stat().st_size

    def upload() -> Told:
        _within(TIMEOUT + size / SLOWEST, lambda: system.put_file(str(path), place))
        told = asked(url)
        if told is None or told.size != size:
            raise OSError(f"the store has {told.size if told else 0:,} of {size:,} bytes")
        return told

    return tried(url, f"could not be written (the file is whole in {path})", upload, pause)


def remove(url: str) -> None:
    """Remove an object, if it is there. UserError where it cannot be."""
    system, place = _system(url)
    if about(url):
        tried(url, "cannot be removed", lambda: _within(TIMEOUT, lambda: system.rm_file(place)))


def tried(url: str, what: str, work: Callable[[], T], pause: float | None = None) -> T:
    """What `work` gives, asked again after errors that may pass. UserError with `what`; FileNotFoundError as it is."""
    for number in range(TRIES):
        try:
            return work()
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:
            if number == TRIES - 1 or is_final(error):
                raise UserError(f"{shown_name(url)}: {what}: {said(error)}") from None
            time.sleep((PAUSE if pause is None else pause) * 2**number)
    raise AssertionError


def is_final(error: Exception) -> bool:
    """Whether asking again would not help: no such object, no permission, no keys."""
    return isinstance(error, FileNotFoundError | PermissionError) or type(error).__name__ in FINAL


def said(error: Exception) -> str:
    """A store's error in one line."""
    if isinstance(error, TimeoutError):
        return "the store does not answer"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text or type(error).__name__, 200)


def local_folder(kind: str, url: str) -> Path:
    """The folder of the cache in which what belongs to a place in a store is kept. It may not be there yet."""
    return cache_folder() / "stores" / kind / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:24]


def _system(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it. UserError without the package, and where the network is forbidden."""
    scheme = url.partition("://")[0].lower()
    if offline():
        raise UserError(f"{shown_name(url)}: not asked for, for SSL_KD_OFFLINE is set; unset it, or name a copy here")
    try:
        import fsspec

        found: tuple[Any, str] = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise UserError(
            f"{shown_name(url)}: {scheme}:// needs {SCHEMES[scheme]}, which is not installed ({one_line(error)}); "
            "pip install 'ssl-kd[stores]'"
        ) from None
    except ValueError as error:
        raise UserError(f"{shown_name(url)}: not an address: {one_line(error)}") from None
    return found


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What a call gives. TimeoutError after so many seconds, and the call is left to itself."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="store", daemon=True).start()
    return answer.result(seconds)
