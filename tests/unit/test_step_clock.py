from speculation.pace.step_clock import StepClock

RTT_MS, STEP_MS = 40.0, 30.0


def test_a_verifier_that_never_waits_steps_on_and_on() -> None:
    clock = StepClock()
    clock.heard(1000.0, RTT_MS, STEP_MS, goes_on=True)  # a step ended at 980, the next ends at 1010
    assert clock.next_step_ms(1000.0, RTT_MS, STEP_MS) == 1040.0  # what is sent now lands at 1020
    assert clock.next_step_ms(985.0, RTT_MS, STEP_MS) == 1010.0
    assert clock.blocks_for(1040.0, STEP_MS) == 0
    for blocks in (1, 2):
        clock.sent(1000.0, RTT_MS, STEP_MS, waits=False)
        assert clock.blocks_for(1040.0, STEP_MS) == blocks
    assert clock.blocks_for(1070.0, STEP_MS) == 0
    clock.sent(1025.0, RTT_MS, STEP_MS, waits=False)  # lands at 1045, for the step after
    assert clock.blocks_for(1070.0, STEP_MS) == 1


def test_a_waiting_verifier_begins_with_the_block_that_lands() -> None:
    clock = StepClock()
    clock.heard(1000.0, RTT_MS, STEP_MS, goes_on=False)  # it waits since 980
    assert clock.waited_ms(1025.0, STEP_MS) == 45.0
    clock.sent(1005.0, RTT_MS, STEP_MS, waits=True)  # lands at 1025, so it is busy until 1055
    assert clock.waited_ms(1045.0, STEP_MS) == -10.0
    assert clock.waited_ms(1060.0, STEP_MS) == 5.0


def test_what_lands_during_a_step_is_taken_by_the_next() -> None:
    clock = StepClock()
    clock.heard(1000.0, RTT_MS, STEP_MS, goes_on=False)
    clock.sent(1000.0, RTT_MS, STEP_MS, waits=True)  # busy from 1020 to 1050
    clock.sent(1010.0, RTT_MS, STEP_MS, waits=True)  # lands at 1030: taken at 1050, busy until 1080
    assert clock.waited_ms(1060.0, STEP_MS) == -20.0
    assert clock.waited_ms(1085.0, STEP_MS) == 5.0
