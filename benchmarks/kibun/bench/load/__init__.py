"""Many streams at once: latency, throughput and memory of a running server."""
