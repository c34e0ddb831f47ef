"""Online moves of buckets: their states, their steps, who carries them out."""
