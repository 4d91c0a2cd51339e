"""What is known about the participants of a conversation, and the stores that keep it: memory, or a Redis that any
number of servers share and whose outages no stream notices.
"""
