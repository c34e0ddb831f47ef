"""What schemathesis does not know by itself: NDJSON, of which it sends one line."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(_context: Any, value: Any) -> bytes:
    return json.dumps(value).encode()  # also of integers that no 64 bits hold
