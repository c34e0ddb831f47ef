// A client as its user writes it: no cast, no `any`; it must compile strictly against the generated types.
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

declare const process: { argv: string[] };

const client = createClient<paths>({
  baseUrl: process.argv[2] ?? "",
  headers: { Authorization: `Bearer ${process.argv[3]}` },
});
const timestamp = new Date().toISOString();

const posted = await client.POST("/v1/ingest/meter", {
  body: [
    { meterId: "TS-1", kwhConsumedAc: 0.25, timestamp },
    { meterId: "TS-2", registerKwh: 7, voltage: 230, timestamp },
  ],
});
if (posted.data === undefined) {
  throw new Error(posted.error.detail);
}
const accepted: number = posted.data.accepted;

const status = await client.GET("/v1/meters/{id}/status", { params: { path: { id: "TS-2" } } });
if (status.data === undefined) {
  throw new Error(status.error.detail);
}
const register: number | null = status.data.registerKwh;

const fleet = await client.GET("/v1/analytics/fleet", {
  params: { query: { interval: "day", tz: "Europe/Berlin", include: "suspect" } },
});
if (fleet.data === undefined) {
  throw new Error(fleet.error.detail);
}
const meters: number = fleet.data.meters;

const refused = await client.POST("/v1/ingest/meter", { body: { meterId: "TS-1", kwhConsumedAc: -1, timestamp } });
const code: string | undefined = refused.error?.errors?.[0]?.code;

console.log(JSON.stringify({ accepted, register, meters: meters >= 2, code }));
