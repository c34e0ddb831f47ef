"""Files of readings: ours, and what utilities, meters, chargers, inverters and dashboards export."""
