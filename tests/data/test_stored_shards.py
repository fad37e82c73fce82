"""Shards in a store are the images that they are on disk: read ahead, resumed and checked."""

import pytest
from small_archives import shard
from test_webdataset import same, three  # noqa: F401 - fixtures

from ssl_kd.data.open import open_images
from ssl_kd.errors import ImagesError


@pytest.fixture
def shards(three, bucket):  # noqa: F811
    for path in sorted(three.glob("*.tar")):
        bucket.put(f"shards/{path.name}", path.read_bytes())
    bucket.put("shards/notes.txt", b"no shard")
    return bucket


@pytest.mark.parametrize("spelled", ["shards/train-{00..02}.tar", "shards", "shards/"])
def test_shards_of_a_bucket_are_the_same_images_and_are_fetched_once(spelled, shards, three):  # noqa: F811
    images = open_images(f"{shards.url}/{spelled}")
    assert images.digest == open_images(str(three)).digest
    assert images.runs() is not None
    assert all(same(images, i, i) for i in range(12))
    before = shards.reads("shards/train-01.tar")
    again = open_images(f"{shards.url}/{spelled}")
    assert all(same(again, i, i) for i in range(12))
    assert shards.reads("shards/train-01.tar") == before


def test_a_server_that_fails_and_truncates_costs_no_picture(shards):
    shards.server.plan = ["truncate", None, "fail", "truncate", None, "fail"]
    images = open_images(f"{shards.url}/shards")
    assert all(same(images, i, i) for i in range(12))


def test_a_shard_that_cannot_be_had_is_named_in_one_line(shards):
    shards.server.plan = ["fail"] * 200
    with pytest.raises(
        ImagesError, match=r"shard train-0\d.tar failed at byte [\d,]+: s3://.*tries brought nothing"
    ) as caught:
        open_images(f"{shards.url}/shards")
    assert "\n" not in str(caught.value)
    shards.server.plan = []
    assert all(same(open_images(f"{shards.url}/shards"), i, i) for i in range(12))
    with pytest.raises(ImagesError, match=r"shard train-07.tar failed at byte 0: .*no such object"):
        open_images(f"{shards.url}/shards/train-07.tar")


def test_a_shard_that_became_another_is_refused(shards, tmp_path):
    images = open_images(f"{shards.url}/shards")
    for file in (tmp_path / "cache").rglob("*.tar"):
        file.unlink()
    shards.put("shards/train-01.tar", shard(tmp_path / "other.tar", range(30, 35)).read_bytes())
    assert same(images, 0, 0)
    with pytest.raises(ImagesError, match=r"shard train-01.tar .*sha256 is"):
        images.read(5)


def test_a_folder_of_a_store_without_shards_says_what_it_holds(bucket):
    bucket.put("photos/a.jpg", b"x")
    with pytest.raises(ImagesError, match=r"expected tar shards, but it holds a.jpg"):
        open_images(f"{bucket.url}/photos")
