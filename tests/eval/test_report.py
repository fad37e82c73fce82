"""`ssl-kd report`: finished runs and evaluations become one page, and nothing is compared that is not the same."""

import json
from dataclasses import replace

import pytest
import yaml
from small_results import results

from ssl_kd.cli.main import main
from ssl_kd.errors import UserError
from ssl_kd.eval.gather import gathered, report
from ssl_kd.eval.kept import load_results, save_results
from ssl_kd.eval.report.html import page
from ssl_kd.eval.runner.place import WHOLE

LOG = [{"step": 5, "loss": 2.0}, {"step": 5, "health/neighbour_overlap": 0.3}, {"step": 9, "loss": 1.0}]
LOG += [{"step": 9, "health/neighbour_overlap": 0.25, "health/collapsed": 0.0}]


@pytest.fixture
def evaluation(tmp_path):
    folder = tmp_path / "eval"
    folder.mkdir()
    save_results(folder / WHOLE, results(), "out: eval\n")
    return folder


def run(folder, log=LOG, **settings):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"student": "resnet18", "lr": 0.1, "out": str(folder)} | settings)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def test_results_come_back_whole(tmp_path):
    before = results()
    save_results(tmp_path / WHOLE, before, "out: x\n")
    after, settings = load_results(tmp_path / WHOLE)
    assert page(after, settings) == page(before, "out: x\n")
    assert after.comparisons() == before.comparisons()


def test_a_damaged_file_is_none(tmp_path):
    save_results(tmp_path / WHOLE, results())
    whole = (tmp_path / WHOLE).read_bytes()
    for content in (whole[:-1], whole[:500] + b"x" + whole[501:], b""):
        (tmp_path / WHOLE).write_bytes(content)
        assert load_results(tmp_path / WHOLE) is None
        with pytest.raises(UserError, match="damaged"):
            gathered([tmp_path])


def test_runs_stand_side_by_side_with_the_settings_in_which_they_differ(tmp_path, capsys):
    a, b = run(tmp_path / "a"), run(tmp_path / "b", lr=0.2)
    assert main(["report", str(a), str(b), "--out", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr().out
    assert (
        "a: resnet18, 9 steps; 25.0 % of its nearest neighbours are the teacher's too (best: 30.0 % at step 5)" in said
    )
    text = (tmp_path / "r.html").read_text()
    assert ">lr</th>" in text
    assert ">student</th>" in text
    assert ">out</th>" not in text
    assert all(f"<td>{lr}</td>" in text for lr in (0.1, 0.2))


def test_a_run_names_chance_beside_its_overlap_and_speaks_in_a_lighter_voice_where_it_is_not_above_it(tmp_path):
    for name, chance, half in (
        ("above", 0.1, 0.0),
        ("below", 0.256, 0.0),
        ("within", 0.24, 0.02),
        ("beyond", 0.24, 0.005),
    ):
        beside = {"health/chance_neighbour_overlap": chance, "health/half_neighbour_overlap": half}
        run(tmp_path / name, log=[line | beside for line in LOG])
        text = page(gathered([tmp_path / name])[0])
        assert f"are the teacher&#39;s too (chance: {100 * chance:.1f} %; best: 30.0 % at step 5)" in text
        assert ("not above chance" in text) == ('<li class="unsure">' in text) == (name in ("below", "within"))
        assert (f"25.0 ±{100 * half:.1f} % of its" in text) == (half > 0)
        assert "half neighbour overlap" not in text


def test_a_run_without_held_out_images_says_so_in_a_lighter_voice(tmp_path):
    run(tmp_path / "a", log=[line for line in LOG if "loss" in line])
    text = page(gathered([tmp_path / "a"])[0])
    assert '<li class="unsure">a: resnet18, 9 steps; no images were held out' in text


def test_an_evaluation_and_a_run_share_a_page_and_one_student_is_drawn_once(evaluation, tmp_path):
    found, _ = gathered([evaluation, run(tmp_path / "a")])
    assert list(found.curves) == ["student", "a"]
    curves = found.curves["a"]
    save_results(evaluation / WHOLE, replace(results(), curves={"student": curves}))
    assert list(gathered([evaluation, tmp_path / "a"])[0].curves) == ["student"]


def test_the_same_name_for_another_network_is_told_apart(tmp_path):
    for name, weights in (("one", "aa"), ("two", "bb")):
        (tmp_path / name).mkdir()
        facts = {"encoder teacher": "same", "encoder student": weights, "task pets & co": "same"}
        save_results(tmp_path / name / WHOLE, replace(results(), facts=facts))
    found, _ = gathered([tmp_path / "one", tmp_path / "two"])
    assert list(dict.fromkeys(cell.encoder for cell in found.cells)) == ["teacher", "student", "student (two)"]
    assert {one.encoder for one in found.verdicts()} == {"student", "student (two)"}
    again, _ = gathered([tmp_path / "one", tmp_path / "one"])
    assert len(again.cells) == len(results().cells)


def test_another_reference_can_be_named(evaluation):
    assert gathered([evaluation], "student")[0].reference == "student"
    with pytest.raises(UserError, match="no encoder here"):
        gathered([evaluation], "studnet")


@pytest.mark.parametrize("what", ["nothing", "empty", "older", "silent"])
def test_what_is_no_run_is_named_in_one_line(what, tmp_path):
    folder = tmp_path / "x"
    if what != "nothing":
        folder.mkdir()
    if what == "older":
        (folder / "results.jsonl").write_text("{}\n")
    if what == "silent":
        (folder / "config.yaml").write_text("student: resnet18\n")
    with pytest.raises(UserError, match=r"expected|neither|older"):
        gathered([folder])


def test_somebody_elses_page_is_not_replaced_and_ours_is(evaluation, tmp_path):
    out = tmp_path / "page.html"
    out.write_text("<p>mine</p>")
    with pytest.raises(UserError, match="not ours"):
        report([evaluation], out)
    assert out.read_text() == "<p>mine</p>"
    out.unlink()
    report([evaluation], out)
    report([evaluation], out, title="Again")
    assert "<h1>Again</h1>" in out.read_text()
