from gpu_agent.server.views import Clock


def test_a_monotonic_moment_is_told_as_wall_time() -> None:
    clock = Clock(monotonic=lambda: 100.0, wall=lambda: 1_000_000.0)
    assert clock.wall_at(97.5) == 999_997.5
    assert clock.wall_at(130.0) == 1_000_030.0


def test_a_step_of_the_wall_clock_moves_what_is_told() -> None:
    wall = [1_000_000.0]
    clock = Clock(monotonic=lambda: 100.0, wall=lambda: wall[0])
    before = clock.wall_at(90.0)
    wall[0] += 3600
    assert clock.wall_at(90.0) == before + 3600
