"""Grafana's files: four dashboards, one question each, and what provisions them with their Prometheus.

Theory of operation. A dashboard is code: a module here says in which order which panels answer its question
(``paying_off``, ``fault_time``, ``thrashing``, ``health``), ``queries`` holds the PromQL they share, ``panels`` what a
panel of ours looks like. ``python -m deploy.grafana`` writes ``dashboards/*.json``, which is committed: Grafana reads
that, and whoever runs it needs no Python. A test holds the two together, another asks a real Prometheus every query.

Two labels hold everything together. ``vm`` is ours; ``cluster`` is put on by whoever scrapes (``deploy.scraper``, or any
Prometheus: all daemons of one run get the same value), since virtual time is told by another daemon than what happens
in it. Where nothing puts it on, the dashboards work as long as only one run is scraped.

The SDK (grafana-foundation-sdk) is for development only; nothing outside this package imports it.
"""
