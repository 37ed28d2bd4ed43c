"""What is said of an id that nobody knows, to whoever asks by it. Looks nothing up."""


def there_is_no_node(node_id: str) -> str:
    """Say that there is no such node, and where those are listed that there are."""
    return f"no node {node_id!r} is known: `gpu-agent registry nodes` lists them"


def there_is_no_token(token_id: str) -> str:
    """Say that there is no such join or operator token, and where those are listed that there are."""
    return f"no token {token_id!r} is known: `gpu-agent registry token list` lists them"
