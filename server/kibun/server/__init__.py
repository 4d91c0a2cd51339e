"""The streaming analysis service: audio in, emotion and personality out."""
