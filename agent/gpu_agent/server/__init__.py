"""The registry as a server: nodes on one port, operators on another, a facade that schedulers embed."""
