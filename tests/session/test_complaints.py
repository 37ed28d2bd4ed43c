from gpu_agent.session.complaints import Complaints


def test_the_third_beat_in_a_row_that_is_complained_about_goes_too_far() -> None:
    complaints, verdicts = Complaints(), []
    for _ in range(3):
        complaints.beat_sent()
        verdicts.append(complaints.persist())
    assert verdicts == [False, False, True]


def test_a_beat_without_a_complaint_forgives_those_before() -> None:
    complaints = Complaints()
    for _ in range(5):
        complaints.beat_sent()
        assert not complaints.persist()
        complaints.beat_sent()
        assert not complaints.persist()
        complaints.beat_sent()


def test_many_errors_about_one_beat_count_once() -> None:
    complaints = Complaints()
    complaints.beat_sent()
    assert not any(complaints.persist() for _ in range(100))


def test_a_new_registration_begins_anew() -> None:
    complaints = Complaints()
    for _ in range(2):
        complaints.beat_sent()
        complaints.persist()
    complaints.registered()
    complaints.beat_sent()
    assert not complaints.persist()
