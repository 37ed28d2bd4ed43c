from fastapi.routing import APIRoute

from gpu_agent.server.operator.routes import needs, refusals, role_of, subject, taker


def test_a_route_says_its_role_and_that_it_wants_a_credential() -> None:
    assert needs("read") == {"x-role": "read", "security": [{"operatorToken": []}]}
    assert needs("public") == {"x-role": "public"}


def test_a_role_is_read_from_the_route_that_declares_it() -> None:
    router = subject("nodes")

    @router.get("/a", openapi_extra=needs("admin"))
    async def declared() -> None: ...

    @router.get("/b")
    async def undeclared() -> None: ...

    assert [role_of(route) for route in router.routes] == ["admin", None]
    assert role_of(object()) is None
    names = {route.unique_id for route in router.routes if isinstance(route, APIRoute)}
    assert names == {"declared", "undeclared"}


def test_a_refusal_is_always_a_problem_document() -> None:
    (answer,) = refusals(404).values()
    assert list(answer["content"]) == ["application/problem+json"]


def test_a_request_is_taken_by_the_route_of_its_path_and_its_method() -> None:
    router = subject("nodes")

    @router.get("/a")
    async def read_a() -> None: ...

    @router.post("/a")
    async def write_a() -> None: ...

    def taken(method: str, path: str) -> bool:
        return taker(router.routes, {"type": "http", "method": method, "path": path}) is not None

    assert taker(router.routes, {"type": "http", "method": "POST", "path": "/a"}) is router.routes[1]
    assert (taken("GET", "/a"), taken("PUT", "/a"), taken("GET", "/b")) == (True, False, False)
