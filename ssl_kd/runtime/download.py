"""One file over HTTP(S), from an object store or a folder: resumed, checked, and never half there.

The bytes go to `FILE.part`. Only when the length and every known digest agree is it renamed to FILE, in one step. A
broken connection is tried again from where it broke; a killed download is taken up by the next call, if the server
says (by ETag or date) that the file is still the same one and what came is as it was written, or a digest will tell.
`FILE.part.json` says that the part is ours; another's is left alone. Only the standard library is used, except for stores.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ssl_kd.errors import UserError, one_line, shown_name
from ssl_kd.runtime.files import atomic_text, locked, put_in_place, sealed, sweep, unsealed
from ssl_kd.runtime.network import offline
from ssl_kd.runtime.progress import Progress
from ssl_kd.runtime.stores import PIECE, asked, in_store, is_final, piece, said

if TYPE_CHECKING:
    from _hashlib import HASH as Hash  # noqa: N811 - a class

CHUNK = 1 << 20
TRIES = 4  # connections that bring nothing new before giving up
MB = 1_000_000
NOTED_EVERY = 64 * MB  # what a kill may cost of a download for which no digest is known
GONE = (404, 410)
PASSING = (408, 425, 429, 500, 502, 503, 504)
NETWORK_ERRORS = (OSError, http.client.HTTPException)  # OSError covers URLError, time-outs and resets


class DownloadError(UserError):
    """A file that could not be had from where it is said to be, or that is not the file it should be."""


class MissingError(DownloadError):
    """The server, or the folder, has no such file."""


@dataclass(frozen=True)
class Check:
    """What the file must be: size in bytes; digests in hexadecimal, whole or their first 8 or more digits."""

    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def knows_the_bytes(self) -> bool:
        """Whether a digest tells if the file is the right one."""
        return bool(self.sha256 or self.md5)


class _BrokenError(Exception):
    """A connection that failed in a way that may pass."""


def download(
    url: str, target: Path, check: Check | None = None, quiet: bool = False, timeout: float = 30.0, pause: float = 1.0
) -> str:
    """Bring `url` (http, https, s3, gs, hf, file, or a path) to `target` and return the sha256 of what came.

    timeout: seconds without a byte. pause: seconds before the second try, doubled after each. Raises MissingError where
    there is no such file and DownloadError for all else that goes wrong, in one line; `target` is then not touched.
    """
    check = check or Check()
    part = target.with_name(target.name + ".part")
    web = in_store(url) or _scheme(url) in ("http", "https")
    if web and offline():
        raise DownloadError(
            f"{shown_name(url)}: not fetched, for SSL_KD_OFFLINE is set; unset it, or name a copy on this disk"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        before = _stamp(target)
        with alone(target):
            if _stamp(target) != before:  # another process brought and checked it while this one waited
                return digest_of(target)
            _must_be_ours(part)
            sweep(target.parent, (_note(part).name,))
            if web:
                _fetch(url, part, check, quiet, timeout, pause)
            else:
                _copy(url, part)
            sha256 = _verified(url, part, check)
            put_in_place(part, target)
            _drop(part)
            return sha256
    except OSError as error:
        raise DownloadError(f"{target}: cannot be written: {one_line(error.strerror or error)}") from None


def _scheme(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).scheme
    except ValueError as error:
        raise DownloadError(f"{shown_name(url)}: not an address: {one_line(error)}") from None


def _must_be_ours(part: Path) -> None:
    """DownloadError, and nothing touched, where a part lies in the way that no note of ours vouches for."""
    if os.path.lexists(part) and not _read_note(part):
        raise DownloadError(f"{part}: is in the way, and {_note(part).name} does not say that it is ours; remove it")


def digest_of(path: Path, name: str = "sha256") -> str:
    """Return the hexadecimal digest of a file, by any name that hashlib knows."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


def _fetch(url: str, part: Path, check: Check, quiet: bool, timeout: float, pause: float) -> None:
    """Append to `part` until the server has no more, trying again after breaks; progress renews the patience."""
    left = TRIES
    while True:
        before = _length(part)
        try:
            if (_receive_object if in_store(url) else _receive)(url, part, check, quiet, timeout):
                return
            trouble = "the connection was closed early"
        except _BrokenError as error:
            trouble = str(error)
        left = TRIES if _length(part) > before else left - 1
        if left == 0:
            kept = f"; {_length(part):,} bytes are kept, the same command resumes from there" if _length(part) else ""
            raise DownloadError(f"{shown_name(url)}: {TRIES} tries brought nothing: {trouble}{kept}")
        time.sleep(pause * 2 ** (TRIES - left))


def _receive(url: str, part: Path, check: Check, quiet: bool, timeout: float) -> bool:
    """Run one connection; return whether `part` is now as long as the server's file."""
    request = urllib.request.Request(url, headers={"User-Agent": "ssl-kd", "Accept-Encoding": "identity"})
    note = _read_note(part)
    validator = note.get("validator") if note.get("url") == url else None
    have, digest = _trusted(part, note, check) if validator or check.knows_the_bytes else (0, hashlib.sha256())
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator:
            request.add_header("If-Range", str(validator))
    with _connect(request, timeout) as answer:
        if isinstance(
            answer, urllib.error.HTTPError
        ):  # 416, nothing behind what we have: all of it, or not a beginning of it
            if answer.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return True
            _drop(part)
            return False
        if answer.headers.get_content_type() == "text/html":
            raise DownloadError(
                f"{shown_name(url)}: expected a file, but the server sent a web page (a login or a notice?)"
            )
        start, total = _extent(answer.status, answer.headers)
        if answer.status == 206 and start != have:
            _drop(part)
            return False
        _refuse_size(url, total, start, check, part)
        came = _Came(part, {"url": url, "validator": _validator(answer.headers)}, start, digest if start else None)
        with open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            _pour(answer, file, came, total, part.name.removesuffix(".part"), quiet)
        if total is None and not (answer.chunked or check.size or check.knows_the_bytes):
            _drop(part)
            raise DownloadError(
                f"{shown_name(url)}: the server does not say how long the file is and no digest of it is known: "
                f"{came.length:,} bytes came, which may be a part of it; nothing is kept. Take it from elsewhere"
            )
    return total is None or _length(part) == total


def _receive_object(url: str, part: Path, check: Check, quiet: bool, timeout: float) -> bool:
    """Append to `part` what a store has more of the very object that it began with; True when all of it is there."""
    try:
        told = asked(url, timeout)
        if told is None:
            raise MissingError(f"{shown_name(url)}: the store has no such object")
        note = _read_note(part)
        same = bool(told.version) and note.get("url") == url and note.get("validator") == told.version
        have, digest = _trusted(part, note, check) if same else (0, None)
        have = have if have <= told.size else 0
        _refuse_size(url, told.size, have, check, part)
        came = _Came(part, {"url": url, "validator": told.version}, have, digest if have else None)
        shown, whole = have // MB, -(-told.size // MB)
        with open(part, "r+b" if have else "wb") as file, Progress(part.stem, whole, "MB", quiet, start=shown) as bar:
            file.seek(have)
            file.truncate()
            while came.length < told.size:
                block = piece(url, came.length, min(came.length + PIECE, told.size), timeout)
                file.write(block)
                file.flush()
                came.add(block)
                came.write_note()
                bar.advance(came.length // MB - shown)
                shown = came.length // MB
        if asked(url, timeout) != told:
            _drop(part)
            raise _BrokenError("the object changed while it was read")
        return True
    except (UserError, _BrokenError):
        raise
    except Exception as error:
        if _is_of_this_disk(error, part):
            raise
        if is_final(error):
            raise DownloadError(f"{shown_name(url)}: {said(error)}") from None
        raise _BrokenError(said(error)) from None


def _is_of_this_disk(error: Exception, part: Path) -> bool:
    """Whether writing failed, and not the store."""
    return isinstance(error, OSError) and (error.errno == errno.ENOSPC or error.filename in (part, str(part)))


class _Came:
    """What came of a file: its length, its digest where that is known from the first byte on, and the note of both."""

    def __init__(self, part: Path, note: dict[str, str], length: int, digest: Hash | None):
        self.part, self.note, self.length = part, note, length
        self.digest = hashlib.sha256() if length == 0 else digest
        self.noted = length
        self.write_note()

    def add(self, block: bytes) -> None:
        """Count a block that was written."""
        self.length += len(block)
        if self.digest is not None:
            self.digest.update(block)

    def write_note(self) -> None:
        """Say what the part is, and how many of its bytes are vouched for."""
        sure = {} if self.digest is None else {"bytes": self.length, "sha256": self.digest.hexdigest()}
        atomic_text(_note(self.part), sealed(self.note | sure))
        self.noted = self.length


def _trusted(part: Path, note: dict[str, object], check: Check) -> tuple[int, Hash | None]:
    """How many bytes of a part are a beginning to resume from, and the digest of those, or None where a check will tell."""
    if check.knows_the_bytes:
        return _length(part), None
    noted = note.get("bytes")
    sure = left = noted if isinstance(noted, int) else 0
    digest = hashlib.sha256()
    if left and _length(part) >= left:
        with open(part, "rb") as file:
            for _ in range(-(-left // CHUNK)):
                digest.update(file.read(min(CHUNK, left)))
                left -= min(CHUNK, left)
        if digest.hexdigest() == note.get("sha256"):
            return sure, digest
    return 0, hashlib.sha256()


def _connect(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse | urllib.error.HTTPError:
    """Return the server's answer, also for 416; raise MissingError, DownloadError or _BrokenError for a bad one."""
    url = request.full_url
    try:
        answer: http.client.HTTPResponse = _opener().open(request, timeout=timeout)
        return answer
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        trouble = f"the server answered {error.code} {one_line(error.reason)}"
        if error.code in GONE:
            raise MissingError(f"{shown_name(url)}: {trouble}") from None
        if error.code in PASSING:
            raise _BrokenError(trouble) from None
        raise DownloadError(f"{shown_name(url)}: {trouble}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            text = one_line(error.reason.verify_message)
            raise DownloadError(f"{shown_name(url)}: the server's certificate is not trusted: {text}") from None
        raise _BrokenError(_said(error.reason)) from None
    except NETWORK_ERRORS as error:
        raise _BrokenError(_said(error)) from None
    except DownloadError:
        raise
    except (ValueError, OverflowError) as error:  # ports and hosts that are none, here or where a redirect leads
        raise DownloadError(f"{shown_name(url)}: it, or where it leads, is no address: {one_line(error)}") from None


def _said(error: object) -> str:
    return one_line(error, 160) or type(error).__name__


def _pour(
    answer: http.client.HTTPResponse, file: BinaryIO, came: _Came, total: int | None, title: str, quiet: bool
) -> None:
    shown, whole = came.length // MB, -(-total // MB) if total else 0
    with Progress(title, whole, "MB", quiet or not total, start=shown) as bar:
        while True:
            try:
                block = answer.read(CHUNK)
            except NETWORK_ERRORS as error:
                file.flush()
                came.write_note()
                raise _BrokenError(_said(error)) from None
            if block:
                file.write(block)
                came.add(block)
            if not block or came.length >= came.noted + NOTED_EVERY:
                file.flush()
                came.write_note()
            if not block:
                return
            step = whole if came.length == total else came.length // MB
            bar.advance(step - shown)
            shown = step


def _validator(headers: Message) -> str:
    """Return what names this version of the file in If-Range: a strong ETag, or its date, or nothing."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _extent(status: int, headers: Message) -> tuple[int, int | None]:
    """Return where the answer starts in the file, and the file's length where it is said."""
    if status == 206:
        span, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        return _number(span.partition("-")[0]) or 0, _number(total)
    return 0, _number(headers.get("Content-Length", ""))


def _number(text: str) -> int | None:
    """A length as servers write it; None for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _refuse_size(url: str, total: int | None, have: int, check: Check, part: Path) -> None:
    if total is None:
        return
    if check.size is not None and total != check.size:
        raise DownloadError(
            f"{shown_name(url)}: expected {check.size:,} bytes, but the server has {total:,}: not the published file"
        )
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise DownloadError(
            f"{part.parent}: {total - have:,} bytes are needed and {free:,} are free; set SSL_KD_CACHE elsewhere"
        )


def _copy(url: str, part: Path) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("", "file") and len(parts.scheme) > 1:  # one letter is a Windows drive
        raise DownloadError(
            f"{shown_name(url)}: only http, https, s3, gs, hf and file addresses are read, not {parts.scheme}"
        )
    source = Path(urllib.request.url2pathname(parts.path)) if parts.scheme == "file" else Path(url)
    if not source.is_file():
        raise MissingError(f"{shown_name(str(source))}: no such file")
    atomic_text(_note(part), sealed({"url": url, "validator": ""}))
    shutil.copyfile(source, part)


def _verified(url: str, part: Path, check: Check) -> str:
    """Return the sha256 of `part`, or remove it and raise when it is not the file it should be."""
    sha256 = digest_of(part)
    found = {"size": str(_length(part)), "sha256": sha256, "md5": digest_of(part, "md5") if check.md5 else ""}
    wanted = {"size": str(check.size or ""), "sha256": check.sha256 or "", "md5": check.md5 or ""}
    for kind, want in wanted.items():
        agrees = found[kind] == want if kind == "size" else found[kind].startswith(want.lower())
        if want and not agrees:
            _drop(part)
            raise DownloadError(
                f"{shown_name(url)}: {kind} is {found[kind]}, expected {want}: damaged or another file, and thrown away; try again"
            )
    return sha256


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to http: whoever sits between could then choose the file."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """Return the next request, or raise for an insecure one."""
        if req.type == "https" and not newurl.startswith("https:"):
            raise DownloadError(
                f"{shown_name(req.full_url)}: redirected from https to {one_line(newurl, 160)}, which is not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req, fp, code, msg, headers):  # type: ignore[no-untyped-def]
        """Follow, or close the connection that led elsewhere."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except BaseException:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https only; the default one would also read files and FTP after a redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Hold a lock beside `target`, so that two processes never write one file. Where there are no locks, go on."""
    # Without locks two at once may spoil the .part, which the check then refuses.
    with open(target.with_name(target.name + ".lock"), "a") as file:  # another's file of that name keeps its bytes
        locked(file, wait=True)
        yield


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _stamp(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else None


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> dict[str, object]:
    """What is known of a part; nothing where there is no note of ours, or a damaged one."""
    with suppress(OSError, ValueError):
        return unsealed(_note(part).read_text(), older=("url", "validator"))
    return {}
