"""One stream from its first request to its last reply: audio in, speech events and estimates out.

Begin with `session.Session.run`. Knows neither gRPC nor torch.
"""
