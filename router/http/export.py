"""/v1/export: readings as they were sent, as NDJSON, in parts."""

from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, urlencode

import msgspec
from starlette.responses import Response

from router.http.endpoint import Call, Endpoint, Handler
from router.reads import export
from router.wire.openapi import Operation
from router.wire.queries import ExportQuery
from router.wire.stored import export_type
from shards.declaration import camel_case
from shards.kinds import Kind

MEDIA_TYPE: Final = "application/x-ndjson"
_encoder: Final = msgspec.json.Encoder()


def _export(kind: Kind) -> Handler:
    async def handle(call: Call) -> Response:
        device = call.query.device
        scope = call.scope_for(device) if device is not None else call.scope_for()
        part = await export.export(scope, kind, call.query)
        wire_type = export_type(kind)
        lines = _encoder.encode_lines([wire_type(**row) for row in part.rows])
        headers = {} if part.next is None else {"Link": _link(call, part.next)}
        return Response(lines, media_type=MEDIA_TYPE, headers=headers)

    return handle


def _link(call: Call, cursor: str) -> str:
    """Where the next part is: the same request, from there on."""
    given = [(name, value) for name, value in call.request.query_params.multi_items() if name != "cursor"]
    return f'<{quote(call.request.url.path)}?{urlencode([*given, ("cursor", cursor)])}>; rel="next"'


def endpoints(kinds: Iterable[Kind]) -> list[Endpoint]:
    """One of each kind."""
    return [
        Endpoint(
            Operation(
                "get",
                f"/v1/export/{kind.plural}",
                f"{camel_case(kind.name)}Export",
                "Readings as they were sent, a line each; the next part is in Link",
                "devices",
                media_type=MEDIA_TYPE,
                query=ExportQuery,
            ),
            _export(kind),
        )
        for kind in kinds
    ]
