"""Bytes of a stream → 16 kHz samples → segments of speech: decoding, voice activity detection, endpointing.

Imports nothing else of the server; its clock counts samples, never wall time.
"""
