"""A time says so where the machine was too busy for it to mean anything."""

from ssl_kd.runtime.timing import Timing


def test_a_wide_interval_is_said_to_be_the_machines_and_a_narrow_one_is_not():
    assert str(Timing(0.040, 0.032, 2.555, 9)) == "40.00 ms [32.00, 2555.00, the machine was busy: measure again]"
    assert str(Timing(0.040, 0.032, 0.050, 9)) == "40.00 ms [32.00, 50.00]"
