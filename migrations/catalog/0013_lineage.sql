-- Which server of a shard is believed: every promotion begins a timeline, and who is on an older one was a primary once.

ALTER TABLE shard
ADD COLUMN system_identifier bigint,
ADD COLUMN timeline integer NOT NULL DEFAULT 0;
