"""What an evaluation says on a terminal beside its table."""

from ssl_kd.eval.results.results import together


def test_what_is_said_of_many_cells_is_said_once():
    notes = ["a, t, knn: k = 200 clamped", "left out: voc x knn", "a, s, knn: k = 200 clamped", "b, s, knn: other"]
    assert together(notes) == ["k = 200 clamped (a, t, knn and 1 more)", "left out: voc x knn", "b, s, knn: other"]
    assert together(["no colon", "x: y: z"]) == ["no colon", "x: y: z"]
    assert together([]) == []
