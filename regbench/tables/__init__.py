"""Paper tables: spec, plan, sweep, measured cells, verdicts and reports."""
