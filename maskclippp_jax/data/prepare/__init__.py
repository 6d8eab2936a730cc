"""From official archives to records, one file per source."""
