"""Gateways: processes that hold the node connections of one leader, so that these spread over cores."""
