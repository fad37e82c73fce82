"""Pictures that are named one by one: their paths are their ids, in the order in which they stand."""

import numpy as np
from PIL import Image
from small_index import photos, picture

from ssl_kd.data.open import open_images


def test_one_picture_a_list_and_a_file_of_paths_are_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(photos(tmp_path, range(3)))
    (tmp_path / "list.txt").write_text("2.png\r\n\n0.png\n")
    for source, ids in (
        ("1.png", ["1.png"]),
        (["1.png", "0.png"], ["1.png", "0.png"]),
        ("list.txt", ["2.png", "0.png"]),
    ):
        images = open_images(source)
        assert list(images.ids) == ids
        for i, name in enumerate(ids):
            assert np.array_equal(np.asarray(images[i]), np.asarray(picture(int(name[0]))))


def test_a_picture_that_is_painted_over_has_another_content_digest(tmp_path):
    path = photos(tmp_path, [1]) / "1.png"
    before = open_images(path).content_digest
    Image.new("RGB", (36, 36)).save(path)
    assert open_images(path).content_digest != before
