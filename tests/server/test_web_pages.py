import pytest

from gpu_agent.server.address import Address
from gpu_agent.server.web_pages import LOOPBACK_NAMES, is_called, is_of, names_of


def test_on_loopback_the_names_are_known_and_elsewhere_nobody_can_know_them() -> None:
    assert names_of(Address("127.0.0.7", 80)) == LOOPBACK_NAMES | {"127.0.0.7"}
    assert names_of(Address("10.0.0.1", 80)) is None


@pytest.mark.parametrize("host", ["127.0.0.1:8081", "LOCALHOST", "[::1]:8081"])
def test_a_host_is_ours_by_its_name_whatever_its_port(host: str) -> None:
    assert is_called(host, LOOPBACK_NAMES)


@pytest.mark.parametrize("host", ["evil.example:8081", "127.0.0.1.evil.example", "", "["])
def test_any_other_host_is_not_ours_unless_all_may_be(host: str) -> None:
    assert not is_called(host, LOOPBACK_NAMES)
    assert is_called(host, None)


def test_a_page_is_of_the_place_that_served_it_port_and_all() -> None:
    assert is_of("http://Box:8081", "box:8081")


@pytest.mark.parametrize("origin", ["http://box", "http://box:3000", "http://other:8081", "null", "http://["])
def test_any_other_page_is_not(origin: str) -> None:
    assert not is_of(origin, "box:8081")
