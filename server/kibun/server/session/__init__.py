"""The life of one stream: requests in, events out. Knows neither gRPC nor torch."""
