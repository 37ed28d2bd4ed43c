from gpu_agent.registry.unknown import there_is_no_node, there_is_no_token


def test_an_unknown_id_is_named_with_the_command_that_lists_the_known_ones() -> None:
    assert there_is_no_node("node-7") == "no node 'node-7' is known: `gpu-agent registry nodes` lists them"
    token = there_is_no_token("3f9a01bc")
    assert token == "no token '3f9a01bc' is known: `gpu-agent registry token list` lists them"
