"""A WebSocket in front of the gRPC contract, for browsers and all else that cannot stream in both directions by gRPC.

Its messages are the contract's own, as proto3 JSON; docs/browser.md tells how a page uses it.
"""
