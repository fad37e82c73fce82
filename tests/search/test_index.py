"""An index finds the nearest pictures, grows and shrinks, and refuses what would be nonsense."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_index import laboratory, photos, picture

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.errors import UserError
from ssl_kd.search.index import Index


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return laboratory(tmp_path_factory.mktemp("lab"), 12, 3)


@pytest.fixture
def index(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(lab)
    return Index.build(tmp_path / "photos.index", "photos", "s.safetensors")


def names(found):
    return [hit.name for hit in found.hits]


def test_distances_and_order_are_those_of_the_encoders_own_features(index, lab):
    encoder = load_teacher(lab / "s.safetensors")
    files = sorted(path.name for path in (lab / "photos").iterdir())
    pixels = torch.stack([encoder.preprocessing(picture(int(name[:-4]))) for name in files])
    with torch.no_grad():
        rows = torch.nn.functional.normalize(encoder(pixels).embedding, dim=1).double().numpy()
    far = 1 - rows @ rows[files.index("3.png")]
    (found,) = Index.open(index.store.folder).search("photos/3.png", k=5)
    order = np.argsort(far, kind="stable")[:5]
    assert names(found) == [f"photos/{files[i]}" for i in order]
    np.testing.assert_allclose([hit.distance for hit in found.hits], far[order], atol=1e-5)
    assert names(found)[0] == "photos/3.png"


def test_queries_may_be_pictures_lists_folders_and_images(index):
    one = names(index.search("photos/3.png", k=3)[0])
    assert names(index.search(picture(3), k=3)[0]) == one
    assert names(index.search(["photos/3.png", "more/12.png"], k=3)[0]) == one
    assert [found.query for found in index.search("more", k=1)] == ["more/12.png", "more/13.png", "more/14.png"]


def test_adding_twice_doubles_nothing_and_adding_more_finds_more(index):
    change = index.add("photos")
    assert (change.added, change.there, len(index)) == (0, 12, 12)
    change = index.add("more")
    assert (change.added, change.there, len(index)) == (3, 0, 15)
    assert names(index.search("more/13.png", k=1)[0]) == ["more/13.png"]


def test_an_index_of_a_folder_that_was_moved_is_still_of_that_folder_and_of_one_elsewhere_is_not(
    lab, tmp_path, monkeypatch
):
    for place in ("a", "b"):
        photos(tmp_path / place / "p", [1, 2])
    monkeypatch.chdir(tmp_path / "a")
    Index.build(tmp_path / "i", "p", lab / "s.safetensors")
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(UserError, match="holds pictures of p, and none of p"):
        Index.build(tmp_path / "i", "p", lab / "s.safetensors")
    (tmp_path / "a").rename(tmp_path / "c")
    assert len(Index.build(tmp_path / "i", "p", lab / "s.safetensors")) == 2


def test_a_list_of_pictures_may_grow_between_two_builds(lab, tmp_path):
    photos(tmp_path / "p", [1, 2, 3])
    listed = [str(tmp_path / "p" / f"{i}.png") for i in (1, 2, 3)]
    Index.build(tmp_path / "i", listed[:2], lab / "s.safetensors")
    assert len(Index.build(tmp_path / "i", listed[1:], lab / "s.safetensors")) == 3


def test_replacing_makes_vectors_anew(index, lab, tmp_path):
    photos(tmp_path / "p", [20, 21])
    index.add(str(tmp_path / "p"))
    picture(7).save(tmp_path / "p" / "20.png")
    assert index.add(str(tmp_path / "p")).there == 2
    change = index.add(str(tmp_path / "p"), replace=True)
    assert (change.replaced, change.added, len(index)) == (2, 0, 14)
    first, second = index.search(picture(7), k=2)[0].hits
    assert {first.name, second.name} == {"photos/7.png", str(tmp_path / "p" / "20.png")}


def test_a_removed_picture_is_found_no_more(index):
    assert index.remove(["photos/3.png"]) == 1
    assert len(index) == 11
    assert "photos/3.png" not in names(index.search("photos/3.png", k=99)[0])
    with pytest.raises(UserError, match=r"holds no photos/3\.png; nothing was removed"):
        index.remove(["photos/4.png", "photos/3.png"])
    assert index.remove(["photos/"]) == 11
    with pytest.raises(UserError, match="holds no pictures"):
        index.search("photos/3.png")
    index.add("photos")
    assert len(index) == 12


def test_names_whose_files_are_gone_are_told(index, tmp_path):
    photos(tmp_path / "p", [20, 21])
    index.add(str(tmp_path / "p"))
    (tmp_path / "p" / "20.png").unlink()
    assert index.missing() == [str(tmp_path / "p" / "20.png")]


def test_k_beyond_the_index_gives_all_and_within_gives_those_that_are_near(index):
    assert len(index.search("photos/3.png", k=1000)[0].hits) == 12
    assert names(index.search("photos/3.png", within=1e-4)[0]) == ["photos/3.png"]
    assert index.search("more/12.png", within=1e-9)[0].hits == ()


def test_an_encoder_of_another_space_is_refused_both_ways(index, lab):
    other = Index.open(index.store.folder, lab / "other.safetensors")
    with pytest.raises(UserError, match=r"other weights.*would mean nothing"):
        other.search("photos/3.png")
    with pytest.raises(UserError, match=r"other weights.*index's own encoder"):
        other.add("more")
    with pytest.raises(UserError, match="other weights"):
        Index.build(index.store.folder, "photos", lab / "other.safetensors")
    encoder = load_teacher(lab / "s.safetensors")
    encoder.preprocessing = encoder.preprocessing.at(24)
    with pytest.raises(UserError, match="other preprocessing"):
        Index.open(index.store.folder, encoder).search("photos/3.png")


def test_what_is_no_picture_is_one_line(index, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "notes").write_text("x")
    for query, why in (("a.png", "not a picture"), ("notes", "this is a text"), ("gone.png", "no such")):
        with pytest.raises(UserError, match=why):
            index.search(str(tmp_path / query))


def test_two_pictures_of_one_name_are_refused(index, tmp_path):
    (tmp_path / "l.txt").write_text("more/12.png\nmore/13.png\nmore/12.png\n")
    with pytest.raises(UserError, match=r"more/12\.png: is named 2 times"):
        index.add(str(tmp_path / "l.txt"))
    assert len(index) == 12


def test_an_index_that_cannot_find_its_weights_says_which(index, lab, tmp_path):
    import shutil

    shutil.copy(lab / "s.safetensors", tmp_path / "moved.safetensors")
    made = Index.build(tmp_path / "i2", "more", tmp_path / "moved.safetensors")
    (tmp_path / "moved.safetensors").unlink()
    with pytest.raises(UserError, match="the index names these weights"):
        Index.open(made.store.folder).search("photos/3.png")
    assert len(Index.open(made.store.folder, lab / "s.safetensors").search("photos/3.png")) == 1


def test_euclidean_distance_of_features_as_they_are(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(lab)
    index = Index.build(tmp_path / "i", "photos", "s.safetensors", norm="none")
    encoder = load_teacher("s.safetensors")
    pixels = torch.stack([encoder.preprocessing(picture(seed)) for seed in (3, 4)])
    with torch.no_grad():
        one, other = encoder(pixels).embedding.double()
    hits = {hit.name: hit.distance for hit in index.search("photos/3.png", k=12)[0].hits}
    assert hits["photos/4.png"] == pytest.approx(float((one - other).norm()), rel=1e-4)
    with pytest.raises(UserError, match="norm none"):
        Index.build(tmp_path / "i", "photos", "s.safetensors")


def test_an_approximate_index_gives_exact_distances_and_says_what_it_misses(index, tmp_path):
    array = np.stack([np.asarray(picture(seed)) for seed in range(100, 400)])
    index.add(array)
    exact = index.search("photos/3.png", k=10)[0]
    recall = index.train("IVF4,Flat nprobe=4")
    assert recall == {"1": 1.0, "10": 1.0, "100": 1.0}
    again = Index.open(index.store.folder)
    assert names(again.search("photos/3.png", k=10)[0]) == names(exact)
    index.add("more")  # behind the rows that it was trained on
    again = Index.open(index.store.folder)
    assert names(again.search("more/13.png", k=2)[0])[0] == "more/13.png"
    again.remove(["more/13.png", names(exact)[1]])
    assert names(again.search("photos/3.png", k=9)[0]) == [n for n in names(exact) if n != names(exact)[1]][:9]
    fewer = index.train("IVF16,Flat nprobe=1")
    assert fewer["100"] < 1
    (path,) = index.store.folder.glob("fast-*.faiss")
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(UserError, match="approximate index is damaged"):
        Index.open(index.store.folder).search("photos/3.png")
    assert index.train("Flat") == {}
    assert list(index.store.folder.glob("fast-*.faiss")) == []
    with pytest.raises(UserError, match="faiss does not take it"):
        index.train("nonsense")


def test_pictures_that_cannot_be_read_are_left_out_and_named(lab, tmp_path):
    photos(tmp_path / "p", range(3))
    (tmp_path / "p" / "bad.png").write_bytes(b"x")
    index = Index.build(tmp_path / "i", tmp_path / "p", lab / "s.safetensors")
    assert len(index) == 3
    assert list(index.add(tmp_path / "p").unreadable) == ["bad.png"]
    Image.new("RGB", (8, 8)).save(tmp_path / "p" / "bad.png")
    assert index.add(tmp_path / "p").added == 1
