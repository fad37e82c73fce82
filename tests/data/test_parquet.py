"""Parquet with a column of pictures: Hugging Face's layout and plain bytes, one file and several."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.open import open_images
from ssl_kd.data.prefetch import prefetch
from ssl_kd.data.sources import parquet as source
from ssl_kd.data.sources.parquet import ParquetImages
from ssl_kd.errors import ImagesError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)


def encoded(seed):
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def struct(seeds):
    return [{"bytes": encoded(i), "path": f"{i}.png"} for i in seeds]


def write(path, columns, group=2, metadata=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata({b"huggingface": json.dumps(metadata).encode()})
    parquet.write_table(table, path, row_group_size=group, **how)
    return path


def same(images, i, seed):
    return np.array_equal(np.asarray(images.read(i)), pixels(seed))


LAYOUTS = {
    "struct": lambda seeds: struct(seeds),
    "binary": lambda seeds: [encoded(i) for i in seeds],
    "large binary": lambda seeds: pa.array([encoded(i) for i in seeds], pa.large_binary()),
    "struct, bytes alone": lambda seeds: [{"bytes": encoded(i)} for i in seeds],
}


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_and_labels_stay_outside(tmp_path, layout, compression):
    path = write(
        tmp_path / "x.parquet", {"image": LAYOUTS[layout](range(5)), "label": range(5)}, compression=compression
    )
    images = open_images(path)
    assert isinstance(images, ParquetImages)
    assert list(images.ids) == [f"x.parquet/{i}" for i in range(5)]
    assert all(same(images, i, i) for i in (4, 0, 2, 1, 3))
    assert images.runs().tolist() == [2, 2, 1]


def test_several_files_a_folder_a_pattern_and_a_list_are_one_set(tmp_path):
    paths = [write(tmp_path / f"d/train-{k:05d}.parquet", {"image": struct(range(3 * k, 3 * k + 3))}) for k in range(3)]
    spelled = [
        tmp_path / "d",
        f"{tmp_path}/d/train-*.parquet",
        f"{tmp_path}/d/train-{{00000..00002}}.parquet",
        f"{tmp_path}/d/train-{{00000..00002}}.parquet:image",
        [str(path) for path in paths],
    ]
    for one in spelled:
        images = open_images(one)
        assert all(same(images, i, i) for i in range(9))
        assert images.ids[4] == "train-00001.parquet/1"
    assert len({open_images(one).digest for one in spelled}) == 1


def test_files_of_one_name_are_told_apart(tmp_path):
    paths = [str(write(tmp_path / f"{k}/x.parquet", {"image": struct([k])})) for k in range(2)]
    assert list(open_images(paths).ids) == ["0/x.parquet/0", "1/x.parquet/0"]


def test_the_column_is_the_one_that_the_file_says_or_the_only_one_or_named(tmp_path):
    features = {"info": {"features": {"photo": {"_type": "Image"}, "mask": {"_type": "Value"}}}}
    both = {"mask": struct([8, 9]), "photo": struct([0, 1])}
    assert same(open_images(write(tmp_path / "a.parquet", both, metadata=features)), 0, 0)
    assert same(open_images(f"{write(tmp_path / 'b.parquet', both)}:mask"), 0, 8)
    assert same(open_images(write(tmp_path / "c.parquet", {"x": struct([3]), "name": ["a"], "y": [1.0]})), 0, 3)
    assert same(open_images(write(tmp_path / "d.parquet", {"mask": struct([8]), "img": struct([0])})), 0, 0)
    assert same(open_images(write(tmp_path / "e.parquet", {"x": [encoded(4)], "key": ["a"]})), 0, 4)


def refused(root):
    write(root / "two.parquet", {"a": struct([0]), "b": struct([1])})
    write(root / "none.parquet", {"label": [1], "caption\x1b]0;": ["x"]})
    write(root / "empty.parquet", {"image": pa.array([], pa.binary())})
    (root / "junk.parquet").write_bytes(b"PAR1 and nothing more PAR1")
    (root / "zero.parquet").write_bytes(b"")
    whole = write(root / "whole.parquet", {"image": struct([0, 1])}).read_bytes()
    (root / "cut.parquet").write_bytes(whole[:-20])
    (root / "mixed").mkdir()
    write(root / "mixed/a.parquet", {"image": struct([0])})
    (root / "mixed/a.png").write_bytes(encoded(0))
    return {
        root / "two.parquet": r"several columns may hold pictures \(a, b\); write .*two.parquet:NAME",
        root / "none.parquet": r"expected a column of encoded pictures \(bytes\), but the columns are label, caption",
        root / "empty.parquet": "no rows",
        root / "junk.parquet": "not a readable Parquet file",
        root / "zero.parquet": "not a readable Parquet file",
        root / "cut.parquet": "not a readable Parquet file",
        root / "mixed": "keep them apart",
        root / "gone.parquet": "no such file",
        f"{root}/whole.parquet:photo": "no column 'photo'; it has image",
        f"{root}/none.parquet:label": r"column label holds int64, expected encoded pictures",
        "https://host/x.parquet": "from disk only",
        (f"{root}/whole.parquet", f"{root}/whole.parquet"): "named twice",
        (f"{root}/whole.parquet:image", f"{root}/two.parquet:a"): "one column for all files, got a, image",
    }


def test_what_is_no_column_of_pictures_is_refused_in_one_line(tmp_path):
    for spelled, reason in refused(tmp_path).items():
        with pytest.raises(ImagesError, match=reason) as caught:
            open_images(spelled)
        assert str(caught.value).isprintable()


def test_without_pyarrow_the_line_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", {"image": struct([0])})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImagesError, match=r"pip install 'ssl-kd\[parquet\]'"):
        open_images(path)


def test_rows_without_bytes_and_damaged_ones_are_named(tmp_path):
    rows = [*struct(range(5)), {"bytes": None, "path": "away/\x1b.png"}, None, {"bytes": b"junk", "path": None}]
    images = open_images(write(tmp_path / "x.parquet", {"image": rows}), max_unreadable=0.9)
    assert [images.read(i) is None for i in range(8)] == [False] * 5 + [True] * 3
    assert images.unreadable["x.parquet/5"] == r"the row holds no bytes, only the path away/\x1b.png"
    assert "empty" in images.unreadable["x.parquet/6"]
    assert "known format" in images.unreadable["x.parquet/7"]


def test_any_damage_gives_pictures_or_reasons(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": struct(range(6))})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    said = []
    for trial in range(400):
        data = bytearray(whole)
        for at in rng.integers((trial % 2) * (len(data) - 1200), len(data), 3):  # every other time in the footer
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            images = open_images(path, max_unreadable=1.0)
            said += [images.read(i) or images.unreadable[images.ids[i]] for i in range(len(images))]
        except ImagesError as error:
            said.append(str(error))
    assert all(isinstance(one, Image.Image) or one.isprintable() for one in said)
    assert 0 < sum(isinstance(one, str) for one in said) < len(said)


def test_row_groups_that_memory_cannot_hold_are_refused_and_few_are_held(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", {"image": struct(range(12))})
    monkeypatch.setattr(source, "HELD_BYTES", 3 * 2 * len(encoded(0)))
    images = open_images(path)
    assert images.window() < 4
    read = []
    real = images._read
    monkeypatch.setattr(images, "_read", lambda *which: read.append(which) or real(*which))
    seen = [int(i) for i in images.order(0, 0)[:]]
    assert all(same(images, i, i) for i in seen)
    assert len(read) == 6  # each group once: the order stays within what is held
    monkeypatch.setattr(source, "GROUP_BYTES", 10)
    with pytest.raises(ImagesError, match=r"row group 0 has .* write the file again"):
        open_images(path)


def test_threads_processes_and_a_loader_of_views_read_it(tmp_path):
    images = open_images(write(tmp_path / "x.parquet", {"image": struct(range(12))}))
    order = list(range(12)) * 5
    given = list(prefetch(images.read, order, threads=6))
    assert all(np.array_equal(np.asarray(p), pixels(i)) for p, i in zip(given, order, strict=True))
    assert same(pickle.loads(pickle.dumps(images)), 3, 3)
    from ssl_kd.data.augment import SCHEMES

    loader = ViewLoader(images, SCHEMES["multi"], 8, 5, seed=3, parts=1)
    batches = list(loader.epoch(1))
    assert sorted(np.concatenate([b.index for b in batches])) == list(range(12))
    assert {b.view_numbers for b in batches} == {(2, 3)}


def test_hugging_faces_own_files_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": struct(range(5)), "label": list(range(5))}, features=features)
    rows.to_parquet(str(tmp_path / "x.parquet"))
    images = open_images(tmp_path / "x.parquet")
    assert all(same(images, i, i) for i in range(5))
