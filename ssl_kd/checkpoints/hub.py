"""`hf-hub:ORG/NAME`: a folder of the Hugging Face Hub, through huggingface_hub, into its own cache.

A snapshot that the cache holds is used as it is; otherwise the files that a teacher needs are brought, never more. As for
the zoo, SSL_KD_MIRROR (a folder with ORG/NAME in it, or an address that speaks as the Hub does) is asked first, and
SSL_KD_OFFLINE forbids the network. The Hub names every file by a digest of its bytes, which is compared before use.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ssl_kd.checkpoints.folders import CONFIG, PROCESSOR, README, WEIGHTS, snapshot
from ssl_kd.checkpoints.shards import INDEX, read_json
from ssl_kd.errors import CheckpointError, one_line
from ssl_kd.runtime.files import atomic_text
from ssl_kd.runtime.network import offline

NAME = re.compile(r"hf[-_]hub:([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?")
CHUNK = 1 << 20


def is_hub_name(name: str) -> bool:
    """Whether a name asks for the hub."""
    return name.startswith(("hf-hub:", "hf_hub:"))


def fetch_hub(name: str) -> tuple[Path, str]:
    """The folder of `hf-hub:ORG/NAME[@REVISION]` and ORG/NAME. CheckpointError, in one line, where it cannot be had."""
    match = NAME.fullmatch(name)
    if not match:
        raise CheckpointError(f"{one_line(name, 200)}: expected hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REVISION")
    repo, revision = match[1], match[2]
    mirror = os.environ.get("SSL_KD_MIRROR", "").rstrip("/")
    web = urlsplit(mirror).scheme in ("http", "https")
    if mirror and not web:
        there = Path(url2pathname(urlsplit(mirror).path) if mirror.startswith("file:") else mirror).expanduser() / repo
        if there.is_dir():
            return there, repo
    if cached := in_cache(repo, revision):
        return verified(cached, name), repo
    if offline():
        raise CheckpointError(
            f"{name}: not in the cache of huggingface_hub, and SSL_KD_OFFLINE is set; unset it, or name a folder"
        )
    trouble = ""
    for endpoint in ([mirror] if web else []) + [None]:
        try:
            return verified(bring(repo, revision, endpoint), name), repo
        except CheckpointError:
            raise
        except Exception as error:  # whatever its client raises, the answer is the same
            trouble = trouble or said(error, repo)
    raise CheckpointError(f"{name}: {trouble}")


def in_cache(repo: str, revision: str | None) -> Path | None:
    """The snapshot in huggingface_hub's cache that has all its weights; None where there is none."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")
    try:
        found = folder / "snapshots" / revision if revision else snapshot(folder)
        if revision and not found.is_dir() and (ref := folder / "refs" / revision).is_file():
            found = folder / "snapshots" / ref.read_text().strip()
    except CheckpointError:
        return None
    if found == folder or not found.is_dir():
        return None
    names = [path.name for path in found.iterdir() if path.exists()]
    try:
        whole = all((found / file).exists() for file in needed(names, found))
    except CheckpointError:
        return None
    return found if whole and any(file in names for file in WEIGHTS) else None


def needed(names: Sequence[str], folder: Path | None = None) -> list[str]:
    """The files of a repository that a teacher is read from; with its folder, the shards of an index there as well."""
    files = [file for file in (CONFIG, PROCESSOR, README) if file in names]
    weights = next((file for file in WEIGHTS if file in names), None)
    files += [weights] if weights else []
    if weights and weights.endswith(INDEX) and folder is not None and (folder / weights).exists():
        shards = read_json(folder / weights).get("weight_map")
        files += sorted({str(file) for file in shards.values()}) if isinstance(shards, dict) else []
    return files


def bring(repo: str, revision: str | None, endpoint: str | None) -> Path:
    """Download what is needed at one commit; the snapshot's folder."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, timeout=30)
    names = [str(one.rfilename) for one in info.siblings or []]
    first = needed(names)
    if not any(file in WEIGHTS for file in first):
        raise CheckpointError(f"hf-hub:{repo}: has none of {', '.join(WEIGHTS)}")

    def one(file: str) -> Path:
        if file not in names:
            raise CheckpointError(f"hf-hub:{repo}: its index names {one_line(file)}, which the repository lacks")
        return Path(hf_hub_download(repo, file, revision=info.sha, endpoint=endpoint))

    places = [one(file) for file in first]
    for file in needed(names, places[0].parent)[len(first) :]:
        one(file)
    main = Path(places[0].parents[2], "refs", revision or "main")
    if not main.exists() and info.sha and revision != info.sha:
        main.parent.mkdir(parents=True, exist_ok=True)
        atomic_text(main, info.sha)
    return places[0].parent


def verified(folder: Path, name: str) -> Path:
    """The folder, once every file has the digest that the Hub named it by: a git blob's SHA-1, or a SHA-256."""
    for path in sorted(folder.iterdir()):
        blob = path.resolve()
        if not path.is_file() or blob.parent.name != "blobs":
            continue
        if (digest := _digest(blob)) not in ("", blob.name):
            raise CheckpointError(
                f"{name}: {path.name} is not the file that the Hub has: its digest is {digest}, expected {blob.name}; "
                f"remove {blob} and try again"
            )
    return folder


def _digest(blob: Path) -> str:
    """In the kind that the blob's name has; nothing for a name that is no digest."""
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        total = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        total = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    else:
        return ""
    with open(blob, "rb") as file:
        while block := file.read(CHUNK):
            total.update(block)
    return total.hexdigest()


def said(error: Exception, repo: str) -> str:
    """What went wrong, and what to do where something can be done."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return f"its publisher asks to accept a licence first: see https://huggingface.co/{repo}, then log in by `hf auth login`"
    if kind == "RepositoryNotFoundError":
        return "the Hub has no such repository (or a private one, for which `hf auth login` is needed)"
    if kind == "RevisionNotFoundError":
        return "the repository has no such revision"
    return f"could not be had from the Hub: {one_line(' '.join(str(error).split()) or kind, 200)}"
