from gpu_agent.session.story import UNHEARD, IllegalEventError, SessionError, State, Story


def test_a_story_keeps_the_last_transitions_oldest_first() -> None:
    story = Story()
    for step in range(40):
        story.record(float(step), (State.IDLE, State.CONNECTING), f"cause {step}")
    lines = str(story).splitlines()
    assert len(lines) == 32
    assert lines[-1] == "39.000 idle → connecting: cause 39"


def test_an_empty_story_says_so() -> None:
    assert str(Story()) == "nothing happened yet"


def test_an_illegal_event_names_itself_and_tells_the_story() -> None:
    error = IllegalEventError(Story(), "1.000 idle → connecting: started")
    assert isinstance(error, SessionError)
    assert str(error) == "Story cannot happen now. The story so far:\n1.000 idle → connecting: started"


def test_there_are_words_for_every_state_in_which_the_registry_does_not_hear_the_node() -> None:
    assert set(State) - set(UNHEARD) == {State.REGISTERED, State.LEAVING}
