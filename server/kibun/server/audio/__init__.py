"""Bytes of a stream → 16 kHz samples → utterances: decoding, voice activity detection, endpointing.

Imports nothing else of the server; its clock counts samples, never wall time.
"""
