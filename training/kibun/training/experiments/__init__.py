"""The paper's tables: the runs that each row needs, trained once and then only read, and their scores with
significance, printed beside the published figures."""
