"""The operators' HTTP API: routes, who may do what, models, problems."""
