"""What is known about the participants of a conversation, and where it is kept: in memory or in Redis."""
