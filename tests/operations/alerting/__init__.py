"""What tests/operations/alerts is made of: a broker, what Prometheus would see of it, the runbook's commands, and the troubles."""
