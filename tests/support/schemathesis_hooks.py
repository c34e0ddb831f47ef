"""What schemathesis does not know by itself: NDJSON, of which it sends one line."""

from typing import Any

import orjson
import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(_context: Any, value: Any) -> bytes:
    return orjson.dumps(value)
