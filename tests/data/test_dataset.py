"""Map-style data sets: pictures, tuples, rows; Hugging Face's objects as they are."""

import errno
import io

import numpy as np
import pytest
from PIL import Image

from ssl_kd.data.open import open_images
from ssl_kd.data.sources.decode import is_temporary
from ssl_kd.errors import ImagesError


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)


def picture(seed):
    return Image.fromarray(pixels(seed))


def encoded(seed, **how):
    file = io.BytesIO()
    picture(seed).save(file, "PNG", **how)
    return file.getvalue()


class Rows:
    """Looks like `datasets.Dataset`: rows by number, column names, a view of some columns."""

    def __init__(self, rows):
        self.rows, self.column_names, self.read = rows, list(rows[0]), []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        assert type(i) is int  # it takes no numpy integer for a number
        self.read += list(self.column_names)
        return {key: self.rows[i][key] for key in self.column_names}

    def select_columns(self, names):
        chosen = Rows(self.rows)
        chosen.column_names, chosen.read = names, self.read
        return chosen


ITEMS = {
    "picture": picture,
    "tuple": lambda i: (picture(i), 7),
    "list": lambda i: [picture(i), 7],
    "image": lambda i: {"label": i, "image": picture(i)},
    "img": lambda i: {"img": picture(i), "fine_label": i},
    "pixel_values": lambda i: {"pixel_values": pixels(i), "other": picture(9)},
    "image before img": lambda i: {"img": picture(9), "image": picture(i)},
    "the only picture": lambda i: {"photo": picture(i), "name": "x"},
    "array": pixels,
    "bytes": lambda i: {"image": {"bytes": encoded(i), "path": None}},
    "bare bytes": lambda i: {"image": encoded(i)},
}


@pytest.mark.parametrize("kind", ITEMS)
def test_every_kind_of_item_gives_its_picture(kind):
    images = open_images([ITEMS[kind](i) for i in range(4)])
    assert all(np.array_equal(np.asarray(images.read(i)), pixels(i)) for i in range(4))
    plain = open_images([picture(i) for i in range(4)])
    assert (images.digest, images.content_digest) == (plain.digest, plain.content_digest)


WRONG = {
    "no key": ({"photo": picture(0), "mask": picture(1)}, "rows with one under image or img or pixel_values"),
    "escape": ({"a\x1b]0;": 1}, r"dict with a\\x1b"),
    "a number": ({"image": 1}, r"dict with image \(int for its picture\)"),
    "float": ({"image": np.zeros((4, 4, 3), np.float32)}, "leave out the data set's own transform"),
    "four channels": (np.zeros((4, 4, 4), np.uint8), "holds ndarray"),
    "empty": ({}, "holds dict"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_holds_no_picture_is_refused_in_one_line(kind):
    item, reason = WRONG[kind]
    with pytest.raises(ImagesError, match=reason) as caught:
        open_images([item])
    assert str(caught.value).isprintable()


def test_a_dictionary_of_splits_asks_for_one_of_them():
    with pytest.raises(ImagesError, match=r"dict: holds parts \(train, test\), .* pass one of its parts"):
        open_images({"train": [picture(0)], "test": [picture(1)]})


def test_an_iterable_data_set_is_named():
    with pytest.raises(ImagesError, match="load it as a map-style one"):
        open_images(iter([picture(0)]))


def test_other_columns_of_hugging_face_like_data_sets_are_never_read():
    rows = Rows([{"image": picture(i), "label": i, "mask": picture(9)} for i in range(3)])
    images = open_images(rows)
    assert np.array_equal(np.asarray(images.read(2)), pixels(2))
    assert set(rows.read) == {"image"}


def test_hugging_faces_data_sets_are_taken_as_they_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    cells = [{"bytes": encoded(i), "path": None} for i in range(4)]
    given = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 0, 1]}, features=features)
    images = open_images(given)
    assert all(np.array_equal(np.asarray(images.read(i)), pixels(i)) for i in range(4))
    undecoded = given.cast_column("image", datasets.Image(decode=False))
    assert open_images(undecoded).digest == images.digest
    with pytest.raises(ImagesError, match="pass one of its parts"):
        open_images(datasets.DatasetDict({"train": given}))


def test_rows_are_turned_upright_like_files():
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = Image.open(io.BytesIO(encoded(0, exif=exif)))
    assert open_images([{"image": opened}]).read(0).size == (6, 8)


def test_the_systems_errors_may_pass_and_pillows_verdicts_do_not():
    class Away(list):
        def __getitem__(self, i):
            if i == 1:
                raise OSError(errno.EIO, "Input/output error")
            if i == 2:
                raise OSError("image file is truncated")
            return super().__getitem__(i)

    images = open_images(Away([picture(0)] * 4), max_unreadable=0.9)
    assert images.read(1) is images.read(2) is None
    assert is_temporary(images.unreadable["1"])
    assert not is_temporary(images.unreadable["2"])
