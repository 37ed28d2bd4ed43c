"""The operators' HTTP API: routes, authorization, errors, connections."""
