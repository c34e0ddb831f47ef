"""A client as its user writes it: no cast, no Any; mypy must accept it strictly beside the generated package."""

import json
import sys
from datetime import UTC, datetime

from voltroute_client import AuthenticatedClient
from voltroute_client.api.analytics import fleet
from voltroute_client.api.devices import meter_status
from voltroute_client.api.ingest import ingest_meter
from voltroute_client.models import Fleet, FleetInclude, IngestAnswer, MeterReading, MeterStatus, ProblemBody

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
now = datetime.now(UTC)

readings = [
    MeterReading(meter_id="PY-1", kwh_consumed_ac=0.25, timestamp=now),
    MeterReading(meter_id="PY-2", register_kwh=7, voltage=230, timestamp=now),
]
posted = ingest_meter.sync(client=client, body=readings)
if not isinstance(posted, IngestAnswer):
    sys.exit("not stored")
accepted: int = posted.accepted

status = meter_status.sync("PY-2", client=client)
if not isinstance(status, MeterStatus):
    sys.exit("no status")
register: float | None = status.register_kwh

found = fleet.sync(client=client, interval="day", tz="Europe/Berlin", include=FleetInclude.SUSPECT)
if not isinstance(found, Fleet):
    sys.exit("no fleet")
meters: int = found.meters

refused = ingest_meter.sync(client=client, body=MeterReading(meter_id="PY-1", kwh_consumed_ac=-1, timestamp=now))
code: str | None = None
if isinstance(refused, ProblemBody) and refused.errors:
    code = refused.errors[0].code

sys.stdout.write(json.dumps({"accepted": accepted, "register": register, "meters": meters >= 2, "code": code}))
