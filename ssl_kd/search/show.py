"""What a search found, for people and programs: lines, JSON, a contact sheet (PNG) and a gallery (HTML)."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ssl_kd.data.open import open_images
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.decode import UnreadableError
from ssl_kd.data.sources.folder import load_file
from ssl_kd.errors import UserError, one_line, shown_name
from ssl_kd.runtime.files import atomic_text, atomically, probe
from ssl_kd.runtime.ownership import refuse_replacing
from ssl_kd.search.filling import archive_in
from ssl_kd.search.index import Found, Hit, Index

TILE, CAPTION, LINE, GAP = 160, 30, 14, 8  # pixels
GONE = "not there any more"
MOST = 1000  # pictures on a sheet or in a gallery
GREY = (225, 225, 225)
KEY = "ssl_kd"  # a mark in what we write, so that it may be replaced
GALLERY = f"<!-- {KEY} gallery -->"


def lines(found: Sequence[Found]) -> Iterator[str]:
    """One line for each query, and one behind it for each picture that was found."""
    for one in found:
        yield shown_name(one.query) + ("" if one.hits else ": nothing near enough")
        for hit in one.hits:
            yield f"  {hit.distance:8.5f}  {shown_name(hit.name)}"


def json_lines(found: Sequence[Found]) -> Iterator[str]:
    """One JSON object for each query: {"query": ..., "hits": [{"name": ..., "distance": ...}, ...]}."""
    for one in found:
        hits = [{"name": hit.name, "distance": round(hit.distance, 6)} for hit in one.hits]
        yield json.dumps({"query": one.query, "hits": hits})


class Shelf:
    """Reads the pictures of an index again, from where they lay when they were added.

    lacking: those that could not be had any more, by name, and why.
    """

    def __init__(self, index: Index):
        self.index = index
        self.lacking: dict[str, str] = {}
        self._sources: dict[str, tuple[ImageSource, dict[str, int]]] = {}

    def picture(self, hit: Hit) -> Image.Image | str:
        """The picture, or why it cannot be had any more."""
        try:
            return self._read(hit)
        except UserError as error:  # a picture that is found and not shown is no reason to end
            self.lacking[hit.name] = str(error)
        except UnreadableError as error:
            self.lacking[hit.name] = f"cannot be read: {error}"
        return self.lacking[hit.name]

    def _read(self, hit: Hit) -> Image.Image:
        place, (source, root) = self.index.picture_place(hit.row), self.index.store.root(hit.row)
        if os.path.isfile(place):
            return load_file(place, TILE)
        archive = archive_in(place)
        if not archive:
            raise UserError(GONE if os.path.isabs(place) else "not found from the current folder on")
        if not root:  # an index of an older version did not note it for a folder in an archive
            source = root = archive
        if root not in self._sources:
            images = open_images(root, 1.0)
            self._sources[root] = images, {name: i for i, name in enumerate(images.ids)}
        images, numbers = self._sources[root]
        number = numbers.get(hit.name[len(source) + 1 :])
        if number is None:
            raise UserError(GONE)
        found = images.read(number, TILE)
        if found is None:
            raise UnreadableError(images.unreadable.get(str(images.ids[number]), "damaged"))
        return found


def sheet(index: Index, queries: ImageSource, found: Sequence[Found], path: Path) -> dict[str, str]:
    """Write a PNG with a line of pictures for each query: the query, then what was found.

    Returns the names of pictures that cannot be shown, and why: grey boxes stand in their places.
    """
    refuse_replacing("sheet", path, _is_our_sheet)
    probe(path)
    table, shelf = _table(queries, found), Shelf(index)
    columns = max(1 + len(one.hits) for one in found)
    step, line = TILE + GAP, TILE + CAPTION + GAP
    page = Image.new("RGB", (GAP + columns * step, GAP + len(found) * line), "white")
    for row, (query, one) in enumerate(table):
        cells = [(query, ("query", one.query))]
        cells += [(shelf.picture(hit), (f"{hit.distance:.4f}", hit.name)) for hit in one.hits]
        for column, (picture, caption) in enumerate(cells):
            page.paste(_tile(picture, caption), (GAP + column * step, GAP + row * line))
    note = PngImagePlugin.PngInfo()
    note.add_text(KEY, "contact sheet")
    data = io.BytesIO()
    page.save(data, "PNG", pnginfo=note)
    atomically(path, lambda file: file.write(data.getvalue()))
    return shelf.lacking


def gallery(index: Index, queries: ImageSource, found: Sequence[Found], path: Path) -> dict[str, str]:
    """The same as one HTML page that opens anywhere: the pictures are in it, and nothing of it runs."""
    refuse_replacing("gallery", path, lambda page: GALLERY in page.read_text(errors="replace")[:200])
    probe(path)
    shelf = Shelf(index)
    parts = [f"<!doctype html>{GALLERY}<meta charset=utf-8><title>Search</title><style>{_STYLE}</style>"]
    for query, one in _table(queries, found):
        cells = [_figure(query, one.query, "query")]
        cells += [_figure(shelf.picture(hit), hit.name, f"{hit.distance:.4f}") for hit in one.hits]
        parts.append(f"<section>{''.join(cells)}</section>")
    atomic_text(path, "\n".join(parts))
    return shelf.lacking


_STYLE = (
    "body{font:13px sans-serif;margin:16px}section{display:flex;flex-wrap:wrap;gap:8px;margin-bottom:16px}"
    f"figure{{margin:0;width:{TILE}px}}img,.gone{{width:{TILE}px;height:{TILE}px;object-fit:contain;background:#eee}}"
    "figcaption{overflow-wrap:anywhere}"
)


def _figure(picture: Image.Image | str, name: str, figure: str) -> str:
    if isinstance(picture, str):
        shown = f"<div class=gone>{html.escape(shown_name(picture))}</div>"
    else:
        data = io.BytesIO()
        _small(picture).save(data, "JPEG", quality=85)
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
    return f"<figure>{shown}<figcaption>{figure} {html.escape(shown_name(name))}</figcaption></figure>"


def _table(queries: ImageSource, found: Sequence[Found]) -> Iterator[tuple[Image.Image | str, Found]]:
    if sum(1 + len(one.hits) for one in found) > MOST:
        raise UserError(f"sheet, gallery: {MOST:,} pictures at most; ask with fewer queries or a smaller k")
    return ((queries.read(i, TILE) or "cannot be read", one) for i, one in enumerate(found))


def _small(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.thumbnail((TILE, TILE))
    return picture


def _tile(picture: Image.Image | str, caption: Sequence[str]) -> Image.Image:
    """A picture, or a grey box that says why there is none, and two lines below."""
    tile = Image.new("RGB", (TILE, TILE + CAPTION), "white")
    drawn, font = ImageDraw.Draw(tile), ImageFont.load_default()
    if isinstance(picture, str):
        tile.paste(GREY, (0, 0, TILE, TILE))
        for number, line in enumerate(textwrap.wrap(one_line(picture, 200), 24)[: TILE // LINE - 1]):
            drawn.text((6, 6 + LINE * number), line, "black", font)
    else:
        small = _small(picture)
        tile.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    for number, line in enumerate(caption):
        drawn.text(
            (0, TILE + 2 + LINE * number), fitting(line, lambda text: font.getlength(text) <= TILE), "black", font
        )
    return tile


def fitting(name: str, fits: Callable[[str], bool]) -> str:
    """A name in plain ASCII, cut until it fits: whole folders go from the left, then letters from the middle."""
    name = shown = name.encode("ascii", "replace").decode()
    while not fits(shown) and "/" in name:
        name = name.partition("/")[2]
        shown = f".../{name}"
    half = (len(name) - 1) // 2
    while not fits(shown) and half:
        shown, half = f"{name[:half]}...{name[-half:]}", half - 1
    return shown


def _is_our_sheet(path: Path) -> bool:
    with Image.open(path, formats=("PNG",)) as picture:
        return picture.info.get(KEY) == "contact sheet"
