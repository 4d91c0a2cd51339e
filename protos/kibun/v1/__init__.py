"""The gRPC contract `kibun.v1`: generated messages and stubs, committed beside the .proto."""
