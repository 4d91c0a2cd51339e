"""The tests, in rooms named like those of the product; `support` is what several of them need."""
