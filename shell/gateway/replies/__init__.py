"""What answers look like: structs that describe them in `/openapi.json`.

Answers are written as plain objects, by whoever has them to tell; nothing is made of these structs. They are
closed, so that a field that somebody adds to an answer and not to its description is found by the tests that
hold answers against it.
"""
