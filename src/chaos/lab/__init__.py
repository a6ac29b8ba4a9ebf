"""The lab: real agents and workers on one machine, each host a network namespace, with links as a scenario says."""
