"""What a search found, for people and programs: lines, JSON, a contact sheet (PNG) and a gallery (HTML)."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from ssl_kd.data.open import open_images
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.decode import UnreadableError
from ssl_kd.data.sources.folder import load_file
from ssl_kd.errors import UserError, shown_name
from ssl_kd.runtime.files import atomic_text, atomically, probe
from ssl_kd.runtime.ownership import refuse_replacing
from ssl_kd.search.index import Found, Hit, Index

TILE, CAPTION, GAP = 160, 30, 8  # pixels
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
    """Reads the pictures of an index again, from where they lay when they were added."""

    def __init__(self, index: Index):
        self.index = index
        self._sources: dict[str, tuple[ImageSource, dict[str, int]] | None] = {}

    def picture(self, hit: Hit) -> Image.Image | None:
        """The picture, or None where it cannot be had any more."""
        place = self.index.picture_place(hit.row)
        if os.path.isfile(place):
            try:
                return load_file(place, TILE)
            except UnreadableError:
                return None
        source, root = self.index.store.root(hit.row)
        if not os.path.isfile(root):  # of an archive, the picture is a part
            return None
        if root not in self._sources:
            try:
                images = open_images(root, 1.0)
                self._sources[root] = images, {name: i for i, name in enumerate(images.ids)}
            except UserError:
                self._sources[root] = None
        opened = self._sources[root]
        number = None if opened is None else opened[1].get(hit.name[len(source) + 1 :])
        return None if opened is None or number is None else opened[0].read(number, TILE)


def sheet(index: Index, queries: ImageSource, found: Sequence[Found], path: Path) -> None:
    """A PNG with a line of pictures for each query: the query, then what was found."""
    refuse_replacing("sheet", path, _is_our_sheet)
    probe(path)
    table, shelf = _table(queries, found), Shelf(index)
    columns = max(1 + len(one.hits) for one in found)
    step, line = TILE + GAP, TILE + CAPTION + GAP
    page = Image.new("RGB", (GAP + columns * step, GAP + len(found) * line), "white")
    for row, (query, one) in enumerate(table):
        cells = [(query, f"? {one.query}")]
        cells += [(shelf.picture(hit), f"{hit.distance:.4f}\n{hit.name}") for hit in one.hits]
        for column, (picture, text) in enumerate(cells):
            page.paste(_tile(picture, text), (GAP + column * step, GAP + row * line))
    note = PngImagePlugin.PngInfo()
    note.add_text(KEY, "contact sheet")
    data = io.BytesIO()
    page.save(data, "PNG", pnginfo=note)
    atomically(path, lambda file: file.write(data.getvalue()))


def gallery(index: Index, queries: ImageSource, found: Sequence[Found], path: Path) -> None:
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


_STYLE = (
    "body{font:13px sans-serif;margin:16px}section{display:flex;flex-wrap:wrap;gap:8px;margin-bottom:16px}"
    f"figure{{margin:0;width:{TILE}px}}img,.gone{{width:{TILE}px;height:{TILE}px;object-fit:contain;background:#eee}}"
    "figcaption{overflow-wrap:anywhere}"
)


def _figure(picture: Image.Image | None, name: str, figure: str) -> str:
    shown = "<div class=gone>not there any more</div>"
    if picture is not None:
        data = io.BytesIO()
        _small(picture).save(data, "JPEG", quality=85)
        shown = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
    return f"<figure>{shown}<figcaption>{figure} {html.escape(shown_name(name))}</figcaption></figure>"


def _table(queries: ImageSource, found: Sequence[Found]) -> Iterator[tuple[Image.Image | None, Found]]:
    if sum(1 + len(one.hits) for one in found) > MOST:
        raise UserError(f"sheet, gallery: {MOST:,} pictures at most; ask with fewer queries or a smaller k")
    return ((queries.read(i, TILE), one) for i, one in enumerate(found))


def _small(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.thumbnail((TILE, TILE))
    return picture


def _tile(picture: Image.Image | None, text: str) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE + CAPTION), "white")
    if picture is None:
        tile.paste(GREY, (0, 0, TILE, TILE))
    else:
        small = _small(picture)
        tile.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    drawn, font = ImageDraw.Draw(tile), ImageFont.load_default()
    for number, line in enumerate(text.splitlines()[:2]):
        plain = line.encode("ascii", "replace").decode()
        drawn.text((0, TILE + 2 + 14 * number), plain[-26:], "black", font)
    return tile


def _is_our_sheet(path: Path) -> bool:
    with Image.open(path, formats=("PNG",)) as picture:
        return picture.info.get(KEY) == "contact sheet"
