-- Where packed months go when they are old enough, and what became of each.

-- Without what gives access to it: that comes from each router's environment.
CREATE TABLE archive_store (
    set_at timestamptz NOT NULL DEFAULT now(),
    is_one boolean PRIMARY KEY DEFAULT true CHECK (is_one),
    url text NOT NULL
);

-- The ledger. A month of a bucket and kind is dropped from its shard only when its state is `verified` (or, without an
-- object, `sealed`); each state is written after what it says was done.
CREATE TABLE archived_month (
    archived_month_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    readings bigint NOT NULL DEFAULT 0,
    bytes bigint,
    changed_at timestamptz NOT NULL DEFAULT now(),
    restored_until timestamptz, -- then it is dropped again
    month date NOT NULL CHECK (month = date_trunc('month', month)),
    bucket smallint NOT NULL,
    kind_id smallint NOT NULL REFERENCES kind,
    state text NOT NULL CHECK (state IN (
        'planned', 'sealed', 'exported', 'uploaded', 'verified', 'dropping', 'dropped', 'restoring', 'restored', 'expiring',
        'expired'
    )),
    packed_columns text [] NOT NULL DEFAULT '{}', -- of the packed rows, over which their fingerprint is
    fingerprint text,
    store text, -- where the object is
    object text,
    sha256 text,
    UNIQUE (kind_id, bucket, month)
);
