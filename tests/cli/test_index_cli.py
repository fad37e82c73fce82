"""`ssl-kd index` and `ssl-kd search` from the command line: what they print, and one line for what is wrong."""

import json
import shlex

import pytest
from PIL import Image
from small_index import laboratory, photos

from ssl_kd.cli.main import main


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return laboratory(tmp_path_factory.mktemp("lab"), 6, 2)


@pytest.fixture
def ask(lab, tmp_path, monkeypatch, capsys):
    """Run words in the lab with an index that is built; returns exit code, output and complaint."""
    monkeypatch.chdir(lab)
    out = str(tmp_path / "photos.index")
    assert main(["index", "build", "--weights", "s.safetensors", "--images", "photos/", "--out", out, "--quiet"]) == 0
    assert "6 pictures added; it holds 6" in capsys.readouterr().out

    def run(*words):
        code = main([word.replace("INDEX", out) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_search_prints_names_and_distances_and_json(ask):
    code, out, _ = ask("search", "--index", "INDEX", "--k", "2", "photos/3.png")
    assert code == 0
    assert out.splitlines()[0] == "photos/3.png"
    assert out.splitlines()[1].split() == ["0.00000", "photos/3.png"]
    code, out, _ = ask("search", "photos/3.png", "--json", "more/", "--index", "INDEX")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [one["query"] for one in answers] == ["photos/3.png", "more/6.png", "more/7.png"]
    assert answers[0]["hits"][0] == {"name": "photos/3.png", "distance": 0.0}


def test_an_index_grows_and_shrinks(ask):
    assert "2 pictures added; it holds 8" in ask("index", "add", "--index", "INDEX", "--images", "more", "--quiet")[1]
    assert "0 pictures added, 6 were there already" in ask("index", "add", "--index", "INDEX", "--images", "photos")[1]
    assert "1 picture removed, 7 left" in ask("index", "remove", "photos/0.png", "--index", "INDEX")[1]
    assert "0 pictures removed" in ask("index", "remove", "--missing", "--index", "INDEX")[1]
    assert "every byte" in ask("index", "verify", "INDEX")[1]
    assert "7 pictures, 1 removed" in ask("index", "info", "INDEX")[1]
    assert json.loads(ask("index", "info", "INDEX", "--json")[1])["pictures"] == 7
    for flag in (("--index", "INDEX"), ("--index=INDEX",)):
        assert "7 pictures, 1 removed" in ask("index", "info", *flag)[1]
    code, out, err = ask("search", "--index", "INDEX", "--k", "99", "photos/1.png")
    said = [line for line in err.splitlines() if not line.startswith("Next: ")]
    assert (code, len(out.splitlines()), said) == (0, 8, ["k: the index holds 7 pictures, all of them are shown"])
    assert ask("search", "--index", "INDEX", "--within", "0", "more/6.png")[1].strip().endswith("0.00000  more/6.png")


def test_the_next_command_is_one_that_runs(ask, tmp_path, monkeypatch):
    def next_of(err):
        (line,) = [line for line in err.splitlines() if line.startswith("Next: ")]
        return shlex.split(line.removeprefix("Next: ssl-kd "))

    with_sheet = next_of(ask("search", "--index", "INDEX", "--k", "2", "photos/3.png", "more")[2])
    assert with_sheet[-3:] == ["photos/3.png", "--sheet", "found.png"]
    assert ask(*[word.replace("found.png", str(tmp_path / "found.png")) for word in with_sheet])[0] == 0
    assert (tmp_path / "found.png").exists()
    for within in (["--within", "0"], ["--within=0"]):
        _, out, err = ask("search", "--index", "INDEX", *within, "more/6.png")
        assert "nothing near enough" in out
        assert len(ask(*next_of(err))[1].splitlines()) == 7  # the query and all six


def test_a_quiet_search_prints_what_was_found_and_nothing_else(ask):
    code, out, err = ask("search", "--quiet", "photos/3.png", "--index", "INDEX", "--k", "99")
    assert (code, len(out.splitlines()), err) == (0, 7, "")


def test_an_approximate_index_prints_what_it_finds(ask):
    out = ask("index", "train", "--index", "INDEX", "--factory", "IVF1,Flat")[1]
    assert "IVF1,Flat, which finds 100.0 % of the exact 1 nearest" in out
    assert "IVF1,Flat" in ask("index", "info", "INDEX")[1]
    assert "exact" in ask("index", "train", "--index", "INDEX", "--factory", "Flat")[1]


def test_a_sheet_and_a_gallery_show_what_was_found(ask, lab, tmp_path):
    sheet, page = tmp_path / "s.png", tmp_path / "g.html"
    for _ in range(2):  # ours may be replaced
        assert (
            ask("search", "--index", "INDEX", "more", "--k", "3", "--sheet", str(sheet), "--gallery", str(page))[0] == 0
        )
    with Image.open(sheet) as picture:
        assert picture.size == (8 + 4 * 168, 8 + 2 * 198)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    text = page.read_text()
    assert text.count("<img") == 8
    assert "<script" not in text
    page.write_text("mine")
    code, _, err = ask("search", "--index", "INDEX", "more", "--gallery", str(page))
    assert code == 2
    assert "not ours to replace" in err
    assert page.read_text() == "mine"


def test_a_picture_that_is_gone_leaves_a_grey_tile_and_one_in_an_archive_is_shown(ask, lab, tmp_path):
    import zipfile

    photos(tmp_path / "p", [20, 21])
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as out:
        out.write(tmp_path / "p" / "21.png", "deep/21.png")
    for source in (tmp_path / "p", tmp_path / "z.zip"):
        assert ask("index", "add", "--index", "INDEX", "--images", str(source), "--quiet")[0] == 0
    (tmp_path / "p" / "20.png").unlink()
    assert ask("search", "--index", "INDEX", "more/6.png", "--k", "9", "--gallery", str(tmp_path / "g.html"))[0] == 0
    text = (tmp_path / "g.html").read_text()
    assert text.count(">not there any more<") == 1
    assert text.count("<img") == 9


def test_a_picture_in_a_folder_of_an_archive_or_in_shards_is_shown(lab, tmp_path, monkeypatch, capsys):
    import tarfile
    import zipfile

    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "p", [20, 21])
    (tmp_path / "shards").mkdir()
    with zipfile.ZipFile("z.zip", "w") as out, tarfile.open("shards/a.tar", "w") as shard:
        for name in ("20.png", "21.png"):
            out.write(tmp_path / "p" / name, f"test/{name}")
            shard.add(tmp_path / "p" / name, name)
    for number, source in enumerate(("z.zip/test", "z.zip:test", "shards")):
        words = ["--weights", str(lab / "s.safetensors"), "--images", source, "--out", f"{number}.index", "--quiet"]
        assert main(["index", "build", *words]) == 0
        assert main(["index", "remove", "--index", f"{number}.index", "--missing"]) == 0
        assert "is not there as a whole" not in capsys.readouterr().out
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        with monkeypatch.context() as there:
            there.chdir(tmp_path / "elsewhere")
            ask = ["search", "--index", f"../{number}.index", "../p/20.png", "--gallery", "g.html", "--sheet", "s.png"]
            assert main(ask) == 0
            assert "grey" not in capsys.readouterr().err
            assert (tmp_path / "elsewhere" / "g.html").read_text().count("<img") == 3
    (tmp_path / "z.zip").write_bytes(b"")
    assert main(["search", "--index", "0.index", "p/20.png", "--gallery", "g.html", "--sheet", "s.png"]) == 0
    said = capsys.readouterr().err
    assert "s.png shows them, with grey boxes for 2 pictures of the index that cannot be read again" in said
    assert "z.zip/test/20.png: " in said
    assert (tmp_path / "g.html").read_text().count("<img") == 1
    with Image.open("s.png") as picture:  # the box says why
        box = picture.convert("L").crop((176, 8, 336, 168))
        assert 0.001 < sum(box.histogram()[:100]) / (160 * 160) < 0.5


def test_a_long_name_loses_whole_folders_then_the_middle_of_its_own():
    from ssl_kd.search.show import fitting

    def fits(text):
        return len(text) <= 20

    assert fitting("test/lake/7.png", fits) == "test/lake/7.png"
    assert fitting("flowers.zip/test/071_gazania/7.png", fits) == ".../7.png"
    assert fitting("flowers.zip/test/gazania/7.png", fits) == ".../gazania/7.png"
    assert fitting("a/0123456789012345678901.png", fits) == "01234567...8901.png"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("search", "--index", "INDEX"), "queries: expected a picture"),
        (("search", "photos/3.png"), "as in: ssl-kd search --index photos.index query.jpg"),
        (("search", "INDEX", "photos/3.png"), "photos.index photos/3.png"),
        (("index", "remove", "INDEX", "photos/3.png"), "as in: ssl-kd index remove --index "),
        (("index", "add", "INDEX", "more"), "as in: ssl-kd index add --index photos.index --images holiday/"),
        (("index", "train", "INDEX"), "as in: ssl-kd index train --index photos.index"),
        (("search", "--index", "nowhere", "photos/3.png"), "no index there"),
        (("search", "--index", "INDEX", "nowhere.png"), "nowhere.png: no such"),
        (("search", "--index", "INDEX", "s.safetensors"), "expected a folder or a zip archive"),
        (("search", "--index", "INDEX", "photos/3.png", "--weights", "other.safetensors"), "would mean nothing"),
        (("search", "--index", "INDEX", "photos/3.png", "--k", "0"), "k: expected at least 1"),
        (("search", "--index", "INDEX", "photos/3.png", "--kk", "1"), "Did you mean k"),
        (("search", "--index", "INDEX", "photos/3.png", "more", "--sheet", "x.png"), "expected one source"),
        (("search", "--index", "INDEX", "photos/3.png", "--device", "tpu"), "device: expected cpu or cuda"),
        (("index", "remove", "--index", "INDEX"), "names: expected"),
        (("index", "remove", "--index", "INDEX", "x.png"), "holds no x.png"),
        (("index", "remove", "--index", "INDEX", "3.png"), "nothing was removed. Did you mean photos/3.png?"),
        (("index", "remove", "--index", "INDEX", "photo/"), "nothing was removed. Did you mean photos/?"),
        (("index", "train", "--index", "INDEX", "--factory", "IVVF"), "faiss does not take it"),
        (("index", "train", "--index", "INDEX", "--factory", "IVF64,Flat"), "faiss does not take it"),
        (("index", "bulid"), "Did you mean build"),
        (("search", "--index", "INDEX", "more", "--gallery", "s.safetensors/x.html"), "could not be written"),
        (("index", "info"), "expected one index"),
        (("index", "build", "--weights", "s.safetensors", "--images", "photos", "--out", "photos"), "not an index"),
        (
            ("index", "build", "--weights", "other.safetensors", "--images", "photos", "--out", "INDEX"),
            "is there already, an index of vectors of",
        ),
        (
            ("index", "build", "--weights", "s.safetensors", "--images", "photos", "--out", "i", "--factory", "x"),
            "faiss",
        ),
        (("index", "build", "--weights", "s.safetensors", "--images", "gone", "--out", "i"), "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(ask, lab, words, says):
    before = sorted(path.name for path in lab.iterdir())
    code, _, err = ask(*words)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert says in err
    assert sorted(path.name for path in lab.iterdir()) == before


def test_building_again_from_another_folder_is_refused_and_from_the_same_one_resumes(ask, lab, tmp_path):
    build = ("index", "build", "--weights", "s.safetensors", "--out", "INDEX", "--images")
    for images in ("more", "more/6.png"):
        code, out, err = ask(*build, images)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert f"holds pictures of photos, and none of {images}; " in err
        assert f"ssl-kd index add --index {tmp_path / 'photos.index'} --images {images}" in err
    assert "6 pictures" in ask("index", "info", "INDEX")[1]
    assert "0 pictures added, 6 were there already" in ask(*build, "photos/")[1]
    assert ask("index", "add", "--index", "INDEX", "--images", "more", "--quiet")[0] == 0
    assert "0 pictures added, 2 were there already" in ask(*build, "more")[1]  # it is one of its sources now


def test_a_text_as_a_query_is_no_advice_to_set_what_search_cannot(ask, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    photos(tmp_path / "q", [1, 2])
    (tmp_path / "q" / "3.png").write_text("no picture")
    for query in ("text.jpg", "q"):
        code, _, err = ask("search", "--index", "INDEX", str(tmp_path / query))
        assert (code, len(err.splitlines())) == (2, 1)
        assert "not a picture in a known format" in err
        assert err.endswith("Mend or remove them\n")


def test_queries_that_all_get_the_same_pictures_are_noted_once(ask, tmp_path):
    for number in range(5):
        photos(tmp_path / "same", [3])
        (tmp_path / "same" / "3.png").rename(tmp_path / "same" / f"{number}.jpg")
    said = [ask("search", "--index", "INDEX", str(tmp_path / "same"), "--k", k)[2] for k in ("3", "6")]
    assert (
        said[0].count("note: all 5 queries got the very same pictures: the encoder cannot tell these queries apart")
        == 1
    )
    assert "very same" not in said[1]  # all that there are
    assert "very same" not in ask("search", "--index", "INDEX", "photos", "--k", "3")[2]


def test_a_bare_state_dict_is_read_as_told_and_the_index_remembers_how(lab, tmp_path, monkeypatch, capsys):
    import timm
    import torch

    monkeypatch.chdir(lab)
    torch.manual_seed(0)
    bare, out = str(tmp_path / "bare.pth"), str(tmp_path / "bare.index")
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), bare)
    told = ["--arch", "test_resnet", "--mean", "0.5", "--std", "0.25", "--size", "32"]
    assert main(["index", "build", "--weights", bare, *told, "--images", "photos", "--out", out, "--quiet"]) == 0
    assert main(["search", "--index", out, "photos/3.png", "--k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["0.00000", "photos/3.png"]
    assert main(["index", "info", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reading"]["arch"] == "test_resnet"
    assert main(["search", "--index", out, "--weights", bare, *told, "photos/3.png"]) == 0
    for mean in (["--mean", "0.5"], ["--mean", "0.5", "0.5", "0.5"]):  # a list of numbers ends where a word is none
        words = ["--arch", "test_resnet", "--size", "32", "--std", "0.25", *mean, "photos/3.png", "--k", "1"]
        assert main(["search", "--index", out, "--weights", bare, *words]) == 0
    capsys.readouterr()
    other = [word if word != "0.25" else "0.5" for word in told]
    for words, says in (
        (
            ["search", "--index", out, "--weights", bare, *other, "photos/3.png"],
            "distances between the two would mean nothing",
        ),
        (
            ["search", "--index", out, *told, "photos/3.png"],
            "arch: says how --weights is read, and no weights are given",
        ),
        (["index", "add", "--index", out, "--images", "more", "--branch", "x."], "branch: says how --weights is read"),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1


def test_a_whole_source_that_is_gone_is_named_and_its_pictures_stay(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "p", [20, 21])
    words = ["--weights", str(lab / "s.safetensors"), "--images", "p", "--out", "my.index", "--quiet"]
    assert main(["index", "build", *words]) == 0
    (tmp_path / "p").rename(tmp_path / "q")
    capsys.readouterr()
    assert main(["index", "remove", "--index", "my.index", "--missing"]) == 0
    said = capsys.readouterr().out
    assert "0 pictures removed, 2 left" in said
    assert "p is not there as a whole (an unmounted disk?)" in said
