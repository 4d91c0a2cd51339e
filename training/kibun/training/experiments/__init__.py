"""The paper's tables: which runs each row needs, and what they scored."""
