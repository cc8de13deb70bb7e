"""Stand-in for a Databricks workspace, as far as jobs, runs and their clusters are concerned."""
