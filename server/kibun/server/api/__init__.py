"""The gRPC service: messages ↔ the session's types, authentication, quotas, errors → statuses."""
