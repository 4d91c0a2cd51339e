"""The gRPC service: admits calls (gate, auth, quota), converts between messages and the session's types, and turns
failures into statuses. No other room knows `kibun.v1`."""
