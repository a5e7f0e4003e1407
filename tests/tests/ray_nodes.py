"""Prints how many workers there are, one line for each change."""

import time

import ray

ray.init(address="auto", _node_ip_address="127.0.0.1", logging_level="error", log_to_driver=False)
told = None
while True:
    there = sum(1 for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"])
    if there != told:
        print(there)
        told = there
    time.sleep(0.2)
