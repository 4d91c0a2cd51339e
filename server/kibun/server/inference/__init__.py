"""Utterances → estimates: a queue that forms batches, and worker processes that own the devices.

Only `worker` imports torch.
"""
