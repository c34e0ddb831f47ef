-- Instead of being packed, what is frozen may go to a cheaper tablespace, as it is; NULL: it is packed.
ALTER TABLE lifecycle_policy ADD COLUMN tablespace text;
ALTER TABLE tenant_policy ADD COLUMN tablespace text;
